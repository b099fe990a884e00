"""Which part of the week and of the day an episode began in, where `[drift] seasonality` compares like with like."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

N_KINDS, N_HOURS = 7, 24
N_STRATA = N_KINDS * N_HOURS
"""Strata are numbered by the kind of the night, then the hour."""

UNKNOWN_HOUR = -1

_QUARTER = np.timedelta64(15, "m")
"""No zone is off UTC by less than a multiple of that, since 1972."""


def by_hour(seasonality: str) -> bool:
    """Whether hours are told apart."""
    return seasonality in ("hour", "weekday and hour")


def night_kinds(nights: NDArray[np.int64], seasonality: str) -> NDArray[np.int64]:
    """The kind of each day number: Monday is 0 where weekdays are told apart; 0 for all where not."""
    by_weekday = seasonality in ("weekday", "weekday and hour")
    return (nights + 3) % 7 if by_weekday else np.zeros_like(nights)  # day 0, 1970-01-01, was a Thursday


def strata(nights: NDArray[np.int64], hours: NDArray[np.int64] | None, seasonality: str) -> NDArray[np.int64]:
    """The stratum of each pair of day number and hour; the hour counts only where hours are told apart.

    Raises:
        ValueError: hours are told apart, and nights have none.
    """
    kinds = night_kinds(nights, seasonality) * N_HOURS
    if not by_hour(seasonality):
        return kinds
    if hours is None and len(nights):
        raise ValueError(f"seasonality = '{seasonality}' wants the hour of each episode's start, and there is none")
    return kinds if hours is None else kinds + hours


def hours_of(starts: NDArray[np.datetime64], zone: str | None) -> NDArray[np.int64]:
    """(N,) hour of the day, 0 to 23, of UTC instants in an IANA time zone; UTC for None, -1 for NaT."""
    whole = starts.astype("datetime64[m]")
    known = ~np.isnat(whole)
    quarters, place = np.unique(whole[known].astype(np.int64) // int(_QUARTER.astype(int)), return_inverse=True)
    there = ZoneInfo(zone) if zone else UTC
    hours = [datetime.fromtimestamp(int(quarter) * 900, tz=there).hour for quarter in quarters]
    found = np.full(len(starts), UNKNOWN_HOUR, dtype=np.int64)
    found[known] = np.array(hours, dtype=np.int64)[place]
    return found
