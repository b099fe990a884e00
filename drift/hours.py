"""Which live episodes began in hours that the references know: only these can be compared hour by hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.config import DriftConfig
from drift.seasons import N_HOURS, N_STRATA, UNKNOWN_HOUR, by_hour, strata
from drift.windows import DriftWindow

FEWEST_CLUSTERS = 5
"""Of a reference in an hour, from which on it knows that hour well enough to say what chance does there."""

SMALLEST_SHARE = 0.5
"""Of the live episodes, that must be left: less says nothing of the night."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True)
class SameHours:
    """Windows of episodes that began in the same hours.

    Attributes:
        references, live, recent: without the episodes of other hours.
        kept: (episodes,) of the live window, which were kept.
        left_out: which live episodes were not, as a clause; "" where all were.
        problem: why too little is left to judge; "" where enough is.
    """

    references: tuple[DriftWindow, ...]
    live: DriftWindow
    recent: DriftWindow
    kept: NDArray[np.bool_]
    left_out: str = ""
    problem: str = ""


def in_same_hours(
    references: Sequence[DriftWindow], live: DriftWindow, recent: DriftWindow, config: DriftConfig
) -> SameHours:
    """Leaves out live episodes of hours that a reference lacks, and reference episodes of hours that no recent one has.

    With `weekday and hour` an hour of one day of the week is another one than that of the next. A reference knows an
    hour in which five of its clusters began, in two nights where nights are the unit of its null. As they are where
    `seasonality` knows no hours.
    """
    if not by_hour(config.seasonality):
        return SameHours(tuple(references), live, recent, np.ones(live.n_episodes, dtype=bool))
    known = [_known(window, config) for window in references]
    by_all = np.ones(N_STRATA, dtype=bool)
    for window, its in zip(references, known, strict=True):
        by_all &= its | (window.n_episodes == 0)
    kept, of_recent = _within(live, by_all, config), _within(recent, by_all, config)
    hours = np.zeros(N_HOURS, dtype=bool)
    if recent.hours is not None:
        hours[recent.hours[of_recent]] = True
    matched = tuple(
        window.subset(_within(window, its & np.tile(hours, N_STRATA // N_HOURS), config))
        for window, its in zip(references, known, strict=True)
    )
    left_out = _left_out(live, kept, config)
    problem = ""
    if live.n_episodes and (kept.mean() < SMALLEST_SHARE or kept.sum() < config.min_live_episodes):
        wanted = max(config.min_live_episodes, int(np.ceil(SMALLEST_SHARE * live.n_episodes)))
        problem = f"{left_out}: {int(kept.sum())} are left, and it takes {wanted}"
    return SameHours(matched, live.subset(kept), recent.subset(of_recent), kept, left_out, problem if left_out else "")


def _strata(window: DriftWindow, config: DriftConfig) -> NDArray[np.int64]:
    """(episodes,) stratum of each, -1 where its hour is not known."""
    if window.hours is None:
        return np.full(window.n_episodes, UNKNOWN_HOUR)
    found = strata(window.day_numbers, window.hours, config.seasonality)
    return np.where(window.hours == UNKNOWN_HOUR, UNKNOWN_HOUR, found)


def _known(window: DriftWindow, config: DriftConfig) -> NDArray[np.bool_]:
    """(strata,) which a reference knows well enough."""
    codes = _strata(window, config)
    there = codes != UNKNOWN_HOUR
    enough = _distinct(codes[there], window.clusters[there]) >= FEWEST_CLUSTERS
    if window.n_nights >= config.min_nights:
        enough &= _distinct(codes[there], window.day_numbers[there]) >= 2
    return enough


def _distinct(codes: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """(strata,) distinct values of each stratum."""
    pairs = np.unique(np.stack([codes, values]), axis=1)
    return np.bincount(pairs[0], minlength=N_STRATA)


def _within(window: DriftWindow, known: NDArray[np.bool_], config: DriftConfig) -> NDArray[np.bool_]:
    codes = _strata(window, config)
    within: NDArray[np.bool_] = (codes != UNKNOWN_HOUR) & known[codes.clip(min=0)]
    return within


def _left_out(live: DriftWindow, kept: NDArray[np.bool_], config: DriftConfig) -> str:
    if kept.all():
        return ""
    codes = _strata(live, config)[~kept]
    named = [
        f"{_DAYS[code // N_HOURS]} {code % N_HOURS:02d}" if "weekday" in config.seasonality else f"{code:02d}"
        for code in np.unique(codes[codes != UNKNOWN_HOUR])
    ]
    what = []
    if named:
        hours = f"hours {', '.join(named)}" if len(named) > 1 else f"hour {named[0]}"
        what.append(f"in the {hours} (of [time] zone, or else UTC), of which the reference holds too few episodes")
    if (codes == UNKNOWN_HOUR).any():
        what.append("at a time that the log does not say")
    n = int((~kept).sum())
    return f"{n} of {live.n_episodes} live episodes ({n / live.n_episodes:.0%}) began {' or '.join(what)}"
