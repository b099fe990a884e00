"""What PSI looks like when nothing has changed, for windows of the sizes at hand.

Rows of an episode depend on each other, episodes of a cluster and of a night too, so the null is never drawn from rows:

* `drift.night_null`: from the reference's nights, each against the others, where there are enough of them. Nights share
  shocks (weather, a sale, an incident), and only whole nights carry them.
* `drift.cluster_null`: before that from its clusters, two pseudo windows drawn with replacement. It knows nothing of
  night shocks, so it alarms too often where there are any, and its result is called optimistic.

All columns are judged together by the largest of their scores. A column's score is the cube root of its PSI,
standardized by the null: PSI behaves like a multiple of a chi-square, whose cube root is nearly normal (Wilson and
Hilferty 1931), so columns with two bins and with twelve become comparable. The null of the largest score needs no tiny
p-values and bounds the share of unchanged nights with any alarm at all. The column with the largest score is judged
among all, the next one among those that are left, and so on: that bounds the chance of naming any column falsely, and
with it the rate of false discoveries (Westfall and Young 1993, the step-down procedure).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drift.binning import histograms_by_unit
from drift.cells import Cells

_TINY = 1e-9  # scale of a column that never moves in the reference: any move of the live window is beyond its null


@dataclass(frozen=True)
class BinnedColumn:
    """A reference column after binning, by cell.

    Attributes:
        by_cell: (C, K) summed weight of the cell's entries in each slot; without weights, their number.
        n_entries: (C,) entries of each cell, whatever their weight.
        weighted: whether entries have weights.
    """

    by_cell: NDArray[np.float64]
    n_entries: NDArray[np.float64]
    weighted: bool = False

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """(K,) of all cells together."""
        total = self.by_cell.sum(axis=0)
        pooled: NDArray[np.float64] = total / total.sum()
        return pooled

    @property
    def n_cells(self) -> int:
        """Cells with any entry."""
        return int((self.n_entries > 0).sum())

    @cached_property
    def cells_by_slot(self) -> NDArray[np.int64]:
        """(K,) cells with any entry in each slot."""
        filled: NDArray[np.int64] = (self.by_cell > 0).sum(axis=0)
        return filled


def binned_column(
    slots: NDArray[np.int64],
    n_slots: int,
    cell_of_entry: NDArray[np.int64],
    cells: Cells,
    weights: NDArray[np.float64] | None = None,
) -> BinnedColumn:
    """From (entries,) slots, cells and weights, None for all alike."""
    by_cell = histograms_by_unit(slots, n_slots, cell_of_entry, cells.n_cells, weights)
    n_entries = np.bincount(cell_of_entry, minlength=cells.n_cells).astype(np.float64)
    return BinnedColumn(by_cell, n_entries, weights is not None)


@dataclass(frozen=True)
class PsiNull:
    """The joint null of the PSI of J columns.

    Attributes:
        unit: what was taken as independent.
        n_units: how many of them the reference holds.
        center, scale: (J,) of each column's cube root of PSI in unchanged worlds.
        scores: (R, J) standardized scores of R unchanged worlds.
    """

    unit: Literal["night", "cluster"]
    n_units: int
    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    scores: NDArray[np.float64]

    def p_values(self, psi: NDArray[np.float64]) -> NDArray[np.float64]:
        """(J,) chance that an unchanged night names any column this far out, stepping down from the furthest."""
        found = (np.cbrt(psi) - self.center) / self.scale
        order = np.argsort(-found, kind="stable")
        # Of each column the largest draw among itself and those that are less far out.
        rivals = np.maximum.accumulate(self.scores[:, order[::-1]], axis=1)[:, ::-1]
        stepped = (1.0 + (rivals >= found[order]).sum(axis=0)) / (1.0 + len(self.scores))
        p_values = np.empty(len(psi))
        p_values[order] = np.maximum.accumulate(stepped)
        return p_values

    def thresholds(self, rate: float) -> NDArray[np.float64]:
        """(J,) PSI above which a column alarms, whatever the others do. All columns share the rate."""
        bounds: NDArray[np.float64] = (self.center + self._largest(self.scores, rate) * self.scale).clip(min=0.0) ** 3
        return bounds

    def stepped_thresholds(self, psi: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
        """(J,) the same, where a column that `p_values` names at the rate is judged among those that were left."""
        bounds, p_values = self.thresholds(rate), self.p_values(psi)
        order = np.argsort(-(np.cbrt(psi) - self.center) / self.scale, kind="stable")
        for place, j in enumerate(order):
            if p_values[j] > rate:
                break
            largest = self._largest(self.scores[:, order[place:]], rate)
            bounds[j] = max(float(self.center[j] + largest * self.scale[j]), 0.0) ** 3
        return bounds

    def _largest(self, scores: NDArray[np.float64], rate: float) -> float:
        """What the largest of some columns' scores exceeds at a rate."""
        n_allowed = int(rate * (1.0 + len(scores)) + 1e-9)
        if n_allowed < 1:
            raise ValueError(f"{len(scores)} replicates cannot resolve a rate of {rate}")
        return float(np.partition(scores.max(axis=1), -n_allowed)[-n_allowed])

    def of_columns(self, order: NDArray[np.int64]) -> PsiNull:
        """The same null of some columns, or of all in another order."""
        return PsiNull(self.unit, self.n_units, self.center[order], self.scale[order], self.scores[:, order])

    @property
    def typical_psi(self) -> NDArray[np.float64]:
        """(J,) about the median PSI of an unchanged night."""
        typical: NDArray[np.float64] = self.center.clip(min=0.0) ** 3
        return typical


def psi_null(unit: Literal["night", "cluster"], n_units: int, psi: NDArray[np.float64]) -> PsiNull:
    """The null that (R, J) PSI values of R unchanged worlds make."""
    roots = np.cbrt(psi)
    center, scale = roots.mean(axis=0), np.maximum(roots.std(axis=0, ddof=1), _TINY)
    return PsiNull(unit, n_units, center, scale, (roots - center) / scale)


def joined(nulls: Sequence[PsiNull]) -> PsiNull:
    """The null of all their columns side by side; the first says what was independent.

    Their worlds were drawn apart, as if columns of different nulls did not depend on each other: alarms are then as
    rare as promised or rarer.
    """
    first = nulls[0]
    n = min(len(null.scores) for null in nulls)
    return PsiNull(
        first.unit,
        first.n_units,
        np.concatenate([null.center for null in nulls]),
        np.concatenate([null.scale for null in nulls]),
        np.concatenate([null.scores[:n] for null in nulls], axis=1),
    )
