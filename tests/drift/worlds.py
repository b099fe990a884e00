"""Simulated windows whose truth is known: autocorrelated episodes, shocks that a night shares, changes on demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drift.windows import DriftColumn, DriftWindow


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is different about a window's nights. Nothing, by default.

    Attributes:
        shift: added to x0, in its standard deviations.
        spread: what x0 is multiplied by.
        tail: share of episodes in which x0 is 4 higher.
        label: share of rows whose zone becomes "d".
        joint: share of x1 that becomes x0's, so that they correlate while each stays as it is.
        trend: added to x0 in each night, as much more as nights have passed.
    """

    shift: float = 0.0
    spread: float = 1.0
    tail: float = 0.0
    label: float = 0.0
    joint: float = 0.0
    trend: float = 0.0


UNCHANGED = Change()


def window_of_nights(
    rng: np.random.Generator,
    *,
    n_nights: int,
    episodes_per_night: int,
    first_night: int = 0,
    shift: float = 0.0,
    night_sd: float = 0.0,
    correlation: float = 0.7,
    weekend: float = 0.0,
    rhythm: float = 0.0,
    hours: tuple[int, int] = (0, 24),
    change: Change = UNCHANGED,
) -> DriftWindow:
    """Episodes of 10 to 30 steps; four numeric columns of variance 1 and three made from them.

    Args:
        first_night: night 0 is a Sunday.
        shift: as in `Change`, which it is added to.
        night_sd: standard deviation of each numeric column's shock, shared by a night's episodes.
        correlation: between two steps of an episode.
        weekend: added to every numeric column on Saturdays and Sundays.
        rhythm: by how much every numeric column is higher at 6 than at midnight, and lower at 18.
        hours: first hour in which episodes begin, evenly spread, and the one after the last.
    """
    n = n_nights * episodes_per_night
    night = np.repeat(np.arange(n_nights), episodes_per_night)
    episode = np.repeat(np.arange(n), rng.integers(10, 31, size=n))
    values, hour = [], None
    if rhythm or hours != (0, 24):
        hour = rng.integers(*hours, size=n)
    for _ in range(4):
        level = np.sqrt(correlation) * rng.standard_normal(n) + (night_sd * rng.standard_normal(n_nights))[night]
        level += weekend * np.isin((first_night + night) % 7, (0, 6))
        if hour is not None:
            level += rhythm * np.sin(2.0 * np.pi * hour / 24.0)
        values.append(level[episode] + np.sqrt(1.0 - correlation) * rng.standard_normal(len(episode)))
    values[1] = change.joint * values[0] + np.sqrt(1.0 - change.joint**2) * values[1]
    zones = np.digitize(values[2], [-1.0, 0.0, 1.5])
    busy = (values[1] > 1.0).astype(np.float64)
    values[0] = change.spread * values[0] + shift + change.shift + change.trend * (night + 1)[episode]
    if change.tail:
        values[0] += 4.0 * (rng.random(n) < change.tail)[episode]
    if change.label:
        zones = np.where(rng.random(len(zones)) < change.label, 3, zones)
    columns = {f"x{j}": DriftColumn("numeric", x) for j, x in enumerate(values)}
    columns["busy"] = DriftColumn("boolean", busy)
    columns["zone"] = DriftColumn("categorical", zones, ("a", "b", "c", "d"))
    columns["queue"] = DriftColumn("numeric", np.maximum(values[3], 0.0))  # half of it exactly 0
    nights = np.datetime64("2026-03-01") + first_night + night
    return DriftWindow(columns, episode, np.arange(n), nights, None, hour)


def newest_night(window: DriftWindow) -> DriftWindow:
    """The last night of a window alone."""
    return window.subset(window.nights == window.nights.max())


def one_column(values: DriftColumn, n_episodes: int = 100) -> DriftWindow:
    """One night of equal episodes with the single column `x`."""
    episode = np.arange(len(values.values)) * n_episodes // max(1, len(values.values))
    night = np.full(n_episodes, np.datetime64("2026-03-01"))
    return DriftWindow({"x": values}, episode, np.arange(n_episodes), night)
