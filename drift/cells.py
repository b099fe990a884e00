"""What of a window chance moves together: the episodes of one cluster in one night, or in one hour of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.seasons import N_HOURS
from drift.windows import DriftWindow

MAX_CELLS = 65_536
"""Beyond, clusters are put together into bundles by chance, which leaves the variance of a sum as it is."""

_SEED = 7


@dataclass(frozen=True)
class Cells:
    """C cells of a window of N episodes.

    Attributes:
        nights: (C,) day number of each; ascending.
        clusters: (C,) code of each cell's cluster, or of its bundle of clusters.
        of_episode: (N,) cell of each episode.
        n_clusters: distinct clusters of the window, before any were bundled.
        hours: (C,) hour of the day of each; None where hours are not told apart.
    """

    nights: NDArray[np.int64]
    clusters: NDArray[np.int64]
    of_episode: NDArray[np.int64]
    n_clusters: int
    hours: NDArray[np.int64] | None = None

    @property
    def n_cells(self) -> int:
        """C."""
        return len(self.nights)

    @property
    def night_codes(self) -> NDArray[np.int64]:
        """(C,) the nights numbered from 0 without gaps."""
        return dense(self.nights)

    @property
    def clusters_per_code(self) -> float:
        """Clusters that a code stands for, on average: 1 where none were bundled."""
        return self.n_clusters / (int(self.clusters.max()) + 1)

    def of_seasons(self, kept: NDArray[np.bool_]) -> Cells:
        """The kept cells alone; `kept` holds whole nights, or hours of them, and no episode has a cell any more."""
        share = len(np.unique(self.clusters[kept])) / (int(self.clusters.max()) + 1)
        nobody = np.zeros(0, dtype=np.int64)
        n_clusters, hours = max(1, round(self.n_clusters * share)), None if self.hours is None else self.hours[kept]
        return Cells(self.nights[kept], dense(self.clusters[kept]), nobody, n_clusters, hours)


def cells_of(window: DriftWindow, *, by_hour: bool = False) -> Cells:
    """The cells of a window with at least one episode; `by_hour`: a night's hours lie in cells of their own.

    Raises:
        ValueError: hours are wanted, and the window has none.
    """
    if by_hour and window.hours is None:
        raise ValueError("the window does not know in which hour each episode started")
    clusters = dense(window.clusters)
    n_clusters = int(clusters.max()) + 1
    nights = window.day_numbers
    times = nights * N_HOURS + window.hours if by_hour else nights  # type: ignore[operator]  # they are there
    pairs = _codes(times, clusters)
    if pairs.max() >= MAX_CELLS:
        n_bundles = max(64, MAX_CELLS // len(np.unique(times)))
        if n_clusters > n_bundles:
            clusters = (np.random.default_rng(_SEED).permutation(n_clusters) % n_bundles)[clusters]
            pairs = _codes(times, clusters)
    first = np.unique(pairs, return_index=True)[1]
    hours = window.hours[first] if by_hour else None  # type: ignore[index]
    return Cells(nights[first], clusters[first], pairs, n_clusters, hours)


def dense(codes: NDArray[Any]) -> NDArray[np.int64]:
    """The codes renumbered from 0 without gaps, in their order."""
    numbers: NDArray[np.int64] = np.unique(codes, return_inverse=True)[1]
    return numbers


def _codes(times: NDArray[np.int64], clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) code of each pair of time and cluster, in the order of times, then clusters."""
    return dense((times - times.min()) * (int(clusters.max()) + 1) + clusters)
