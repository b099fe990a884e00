"""Live nights one by one, and stretches of them up to the newest, for slow changes and to say since when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.binning import histograms_by_unit
from drift.comparison import ColumnBins
from drift.config import DriftConfig
from drift.divergence import psi_of_rows
from drift.night_null import Stretch, night_kinds
from drift.null import BinnedColumn
from drift.reference import Reference
from drift.windows import DriftColumn, DriftWindow

_LENGTHS = (2, 4, 7, 14, 28)
"""Nights of the stretches that are tested. A change that began between two of them shows in both, a little weaker."""


@dataclass(frozen=True)
class NightCounts:
    """M nights up to the newest live one.

    Attributes:
        nights: (M,) day numbers, ascending; days without an episode are left out.
        n_live: nights of the live window, the newest.
        n_episodes: (M,) that started in each.
        night_of_episode: (episodes,) index of each episode's night.
        clusters: (episodes,) code of its cluster.
    """

    nights: NDArray[np.int64]
    n_live: int
    n_episodes: NDArray[np.int64]
    night_of_episode: NDArray[np.int64]
    clusters: NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        """(M,) ISO dates."""
        return tuple(str(night) for night in self.nights.astype("datetime64[D]"))

    def first_of(self, n_nights: int) -> str:
        """ISO date of the first of the newest `n_nights`."""
        return self.names[-n_nights]

    def n_clusters(self, n_nights: int) -> int:
        """Distinct clusters of the newest `n_nights`, a cluster counted once in each of them."""
        newest = self.night_of_episode >= len(self.nights) - n_nights
        return len(np.unique(np.stack([self.night_of_episode[newest], self.clusters[newest]]), axis=1).T)

    def by_night(self, window: DriftWindow, column: DriftColumn, bins: ColumnBins) -> NDArray[np.float64]:
        """(M, K) entries of a column in each night and slot."""
        night = self.night_of_episode[window.episodes_of(column)]
        return histograms_by_unit(bins.assign(column), len(bins.labels), night, len(self.nights))

    def psi(self, by_night: NDArray[np.float64], probs: NDArray[np.float64], n_nights: int, floor: float) -> float:
        """PSI of the newest `n_nights` together against (K,) `probs`; 0 where they hold no entry."""
        sums = by_night[-n_nights:].sum(axis=0)
        return float(psi_of_rows(probs, sums / sums.sum(), floor=floor)) if sums.sum() else 0.0


def night_counts(live: DriftWindow, recent: DriftWindow) -> NightCounts:
    """The nights of `recent`, of which those of `live` are the newest.

    Raises:
        ValueError: the live nights are not the newest ones of `recent`.
    """
    nights, night_of_episode = np.unique(recent.day_numbers, return_inverse=True)
    n_live = live.n_nights
    if n_live and not np.array_equal(nights[-n_live:], np.unique(live.day_numbers)):
        raise ValueError("the live nights must be the newest ones of the recent nights")
    return NightCounts(
        nights, n_live, np.bincount(night_of_episode, minlength=len(nights)), night_of_episode, recent.clusters
    )


def stretches_of(counts: NightCounts, config: DriftConfig) -> list[Stretch]:
    """The live window, then the longer stretches that are tested, as far as there are nights."""
    kinds = night_kinds(counts.nights, config.seasonality)
    most = min(config.slow_nights, len(kinds))
    lengths = [n for n in sorted({*_LENGTHS, most}) if counts.n_live < n <= most]
    return [Stretch(kinds[-n:]) for n in (counts.n_live, *lengths) if n]


def nightly(
    binned: BinnedColumn, reference: Reference, by_night: NDArray[np.float64], counts: NightCounts, config: DriftConfig
) -> tuple[float, ...]:
    """(M,) PSI of each night against the reference's nights of its kind."""
    return tuple(
        _psi(binned, reference, by_night[m], np.array([kind]), config)
        for m, kind in enumerate(night_kinds(counts.nights, config.seasonality))
    )


def furthest_since(
    binned: BinnedColumn, reference: Reference, by_night: NDArray[np.float64], counts: NightCounts, config: DriftConfig
) -> str:
    """The night, ISO date, from which on the nights up to the newest differ most from the reference.

    The stretch of L nights whose PSI is largest in units of what chance gives it, which falls as 1 / L + 1 / N: after a
    lasting shift it begins with the shift. Source: the likelihood ratio of a change point, as in window-limited
    sequential tests (Lai 1995).
    """
    n_reference = reference.window.n_nights
    kinds = night_kinds(counts.nights, config.seasonality)
    lengths = range(1, min(config.slow_nights, len(kinds)) + 1)
    relative = [
        _psi(binned, reference, by_night[-n:].sum(axis=0), kinds[-n:], config) / (1.0 / n + 1.0 / n_reference)
        for n in lengths
    ]
    return counts.first_of(lengths[int(np.argmax(relative))])


def _psi(
    binned: BinnedColumn,
    reference: Reference,
    live_counts: NDArray[np.float64],
    kinds: NDArray[np.int64],
    config: DriftConfig,
) -> float:
    total = live_counts.sum()
    there = reference.has_kinds(kinds)
    if not total or not there.any():
        return 0.0
    probs = reference.shares(binned, Stretch(kinds[there]))
    return float(psi_of_rows(probs, live_counts / total, floor=config.floor))
