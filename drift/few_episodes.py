"""Whether a shift is confined to few episodes such as the reference hardly holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.binning import histogram, histograms_by_unit
from drift.cells import dense
from drift.sides import LARGEST_SHARE, Confined, Floats, Ints, Sides
from drift.windows import DriftColumn, DriftWindow

OUTLYING = 0.01
"""Share of the reference's episodes, on either side, beyond which a live episode is one that it hardly holds."""


def few_episodes(sides: Sides, episodes: NDArray[np.str_]) -> Confined | None:
    """Whether the shift goes with the clusters of live episodes that the reference hardly holds."""
    known, known_unit = _units(sides.reference, sides.before, sides.bins.assign(sides.before), len(sides.probs))
    new, new_unit = _units(sides.live, sides.now, sides.slots, len(sides.probs))
    weights = sides.reference.weights_of(sides.before)
    if weights is None:
        weight = np.ones(len(known.mix))
    else:
        entry_units = known_unit[sides.reference.episodes_of(sides.before)]
        n = np.bincount(entry_units, minlength=len(known.mix))
        weight = np.bincount(entry_units, weights, minlength=len(known.mix)) / np.maximum(n, 1)
    live_probs = np.array(sides.column.live_probs)
    # What a bin says for the live window: the terms whose mean over live entries is KL(live || reference).
    terms = np.log(np.maximum(live_probs, sides.floor) / np.maximum(sides.probs, sides.floor))
    tails = [_beyond(known.mix @ terms, new.mix @ terms, weight)]
    if known.mean is not None and new.mean is not None:
        tails += [_beyond(sign * known.mean, sign * new.mean, weight) for sign in (-1.0, 1.0)]
    outlying = np.min(tails, axis=0) <= OUTLYING
    members = outlying[new_unit]
    if not members.any() or members.mean() > LARGEST_SHARE:
        return None
    rest = sides.slots[~members[sides.episode_of_entry]]
    psi = float(sides.psi(histogram(rest, len(sides.probs))))
    if psi > sides.goal:
        return None
    return Confined("few episodes", sides.column, tuple(episodes[members].tolist()), members, psi)


@dataclass(frozen=True)
class _Units:
    """Clusters of a night: (U, K) mix of bins, and (U,) mean value, NaN where all is missing; None of labels."""

    mix: Floats
    mean: Floats | None


def _units(window: DriftWindow, column: DriftColumn, slots: Ints, n_slots: int) -> tuple[_Units, Ints]:
    """The units of a window and (N,) the unit of each episode: a cluster's episodes of a night go together."""
    of_episode = dense(window.day_numbers * (int(window.clusters.max()) + 1) + dense(window.clusters))
    n_units = int(of_episode.max()) + 1
    units = of_episode[window.episodes_of(column)]
    counts = histograms_by_unit(slots, n_slots, units, n_units)
    mix = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    if column.kind != "numeric":
        return _Units(mix, None), of_episode
    seen = ~np.isnan(column.values)
    n = np.bincount(units[seen], minlength=n_units)
    total = np.bincount(units[seen], column.values[seen], minlength=n_units)
    return _Units(mix, np.where(n > 0, total / np.maximum(n, 1), np.nan)), of_episode


def _beyond(known: Floats, new: Floats, weight: Floats) -> Floats:
    """(U,) share of the reference's units at or above each live one, one more counted; 1 where either is missing."""
    there = ~np.isnan(known)
    if not there.any():
        return np.ones(len(new))
    order = np.argsort(known[there], kind="stable")
    ordered, above = known[there][order], np.cumsum(weight[there][order][::-1])[::-1]
    place = np.searchsorted(ordered, new - 1e-12 * np.abs(new), side="left")
    one = weight[there].sum() / len(ordered)
    mass = np.append(above, 0.0)[place]
    return np.where(np.isnan(new), 1.0, (mass + one) / (above[0] + one))
