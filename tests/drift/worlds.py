"""Simulated windows whose truth is known: autocorrelated episodes, shocks that a night shares, a shift on demand."""

from __future__ import annotations

import numpy as np

from drift.windows import DriftColumn, DriftWindow


def window_of_nights(
    rng: np.random.Generator,
    *,
    n_nights: int,
    episodes_per_night: int,
    first_night: int = 0,
    shift: float = 0.0,
    night_sd: float = 0.0,
    correlation: float = 0.7,
) -> DriftWindow:
    """Episodes of 10 to 30 steps; four numeric columns of variance 1 and three made from them.

    Args:
        shift: added to x0, in its standard deviations.
        night_sd: standard deviation of each numeric column's shock, shared by a night's episodes.
        correlation: between two steps of an episode.
    """
    n = n_nights * episodes_per_night
    night = np.repeat(np.arange(n_nights), episodes_per_night)
    episode = np.repeat(np.arange(n), rng.integers(10, 31, size=n))
    columns = {}
    for j in range(4):
        level = np.sqrt(correlation) * rng.standard_normal(n) + (night_sd * rng.standard_normal(n_nights))[night]
        noise = np.sqrt(1.0 - correlation) * rng.standard_normal(len(episode))
        columns[f"x{j}"] = DriftColumn("numeric", level[episode] + noise + (shift if j == 0 else 0.0))
    columns["busy"] = DriftColumn("boolean", (columns["x1"].values > 1.0).astype(np.float64))
    zones = np.digitize(columns["x2"].values, [-1.0, 0.0, 1.5])
    columns["zone"] = DriftColumn("categorical", zones, ("a", "b", "c", "d"))
    columns["queue"] = DriftColumn("numeric", np.maximum(columns["x3"].values, 0.0))  # half of it exactly 0
    nights = np.datetime64("2026-03-01") + first_night + night
    return DriftWindow(columns, episode, np.arange(n), nights)


def one_column(values: DriftColumn, n_episodes: int = 100) -> DriftWindow:
    """One night of equal episodes with the single column `x`."""
    episode = np.arange(len(values.values)) * n_episodes // max(1, len(values.values))
    night = np.full(n_episodes, np.datetime64("2026-03-01"))
    return DriftWindow({"x": values}, episode, np.arange(n_episodes), night)
