"""A drifted column of both windows on its bins, and a shift of it that goes with few live episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drift.binning import histograms_by_unit
from drift.comparison import ColumnBins, column_bins
from drift.config import DriftConfig
from drift.divergence import psi_of_rows
from drift.records import ColumnDrift
from drift.windows import DriftColumn, DriftWindow

LARGEST_SHARE = 0.2
"""Of the live episodes, that a shift may be confined to: more than that is how the world is now."""

EXPLAINED = 0.75
"""Share of a column's PSI, beyond that of an unchanged night, that must go with the groups that are left out."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Confined:
    """A shift of one column that goes with some live episodes: (N,) bool `members`, and the PSI of the rest."""

    kind: Literal["few sources", "one policy version", "few episodes"]
    column: ColumnDrift
    where: tuple[str, ...]
    members: NDArray[np.bool_]
    psi_of_rest: float


@dataclass(frozen=True)
class Sides:
    """A drifted column of both windows on its bins.

    Attributes:
        probs: (K,) shares of the reference.
        slots, episode_of_entry: (entries,) of the live side.
        goal: PSI at most which the rest counts as like the reference.
    """

    column: ColumnDrift
    reference: DriftWindow
    before: DriftColumn
    live: DriftWindow
    now: DriftColumn
    bins: ColumnBins
    probs: Floats
    slots: Ints
    episode_of_entry: Ints
    floor: float
    goal: float

    @classmethod
    def of(
        cls,
        column: ColumnDrift,
        reference: DriftWindow,
        before: DriftColumn,
        live: DriftWindow,
        now: DriftColumn,
        config: DriftConfig,
    ) -> Sides:
        of_cluster, weights = reference.clusters[reference.episodes_of(before)], reference.weights_of(before)
        bins = column_bins(before, groups=of_cluster, weights=weights, n_bins=config.n_bins)
        psi, typical = column.psi or 0.0, column.typical_psi or 0.0
        goal = min(column.allowed(config.min_psi) or config.min_psi, psi - EXPLAINED * (psi - typical))
        probs = np.array(column.reference_probs)
        return cls(
            column, reference, before, live, now, bins, probs, bins.assign(now), live.episodes_of(now), config.floor,
            goal,
        )  # fmt: skip

    def psi(self, counts: Floats, probs: Floats | None = None) -> Floats:
        """PSI of (..., K) live counts against `probs`, by default the reference's; infinite where none is counted."""
        total = counts.sum(axis=-1, keepdims=True)
        shares = counts / np.where(total > 0, total, 1.0)
        psi = psi_of_rows(
            np.broadcast_to(self.probs if probs is None else probs, shares.shape), shares, floor=self.floor
        )
        return np.where(total[..., 0] > 0, psi, np.inf)

    def reference_by(self, labels: NDArray[np.str_], names: NDArray[np.str_]) -> Floats:
        """(G, K) share of the reference that lies in each bin and is of each of the named groups."""
        code = np.searchsorted(names, labels).clip(max=len(names) - 1)
        of_entry = np.where(names[code] == labels, code, len(names))[self.reference.episodes_of(self.before)]
        slots, weights = self.bins.assign(self.before), self.reference.weights_of(self.before)
        by_group = histograms_by_unit(slots, len(self.probs), of_entry, len(names) + 1, weights)
        # In each bin the groups share what the comparison took for the whole bin.
        whole = by_group.sum(axis=0)
        return by_group[:-1] * np.where(whole > 0, self.probs / np.where(whole > 0, whole, 1.0), 0.0)
