"""One column of two windows side by side: on which bins, and how far apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.binning import CategoryBins, NumericBins, category_bins, histogram, numeric_bins
from drift.divergence import js_divergence, kl_divergence, population_stability_index, wasserstein_distance
from drift.windows import ColumnKind, DriftColumn

_BOOLEAN_LABELS = ("false", "true")


@dataclass(frozen=True)
class ColumnBins:
    """Bins of a scalar column, cut on the reference: K slots, the missing one last, and before it, of labels, the rare
    or unseen one."""

    bins: NumericBins | CategoryBins

    @property
    def labels(self) -> tuple[str, ...]:
        """(K,) what each slot holds."""
        return self.bins.labels

    def assign(self, column: DriftColumn) -> NDArray[np.int64]:
        """(entries,) slot of each entry of the same column in any window."""
        if isinstance(self.bins, NumericBins):
            return self.bins.assign(column.values)
        return self.bins.assign(*_labelled(column))

    def counts(self, column: DriftColumn) -> NDArray[np.float64]:
        """(K,) entries in each slot."""
        if isinstance(self.bins, NumericBins):
            return self.bins.counts(column.values)
        return histogram(self.assign(column), len(self.labels))


def column_bins(
    before: DriftColumn,
    *,
    groups: NDArray[np.int64] | None = None,
    weights: NDArray[np.float64] | None = None,
    n_bins: int,
) -> ColumnBins:
    """Bins cut on a scalar column of the reference.

    Args:
        before: the column.
        groups: (entries,) what makes its entries dependent; None if nothing does.
        weights: (entries,) not negative; None counts every entry alike.
        n_bins: of a numeric column.
    """
    if before.kind == "numeric":
        return ColumnBins(numeric_bins(before.values, n_bins=n_bins, weights=weights, groups=groups))
    codes, vocabulary = _labelled(before)
    if before.kind == "boolean":
        return ColumnBins(CategoryBins(vocabulary))
    return ColumnBins(category_bins(codes, vocabulary, weights=weights))


def divergences(
    before: DriftColumn,
    now: DriftColumn,
    bins: ColumnBins,
    probs: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    *,
    floor: float,
) -> dict[str, Any]:
    """The numbers of `drift.records.ColumnDrift` that two sides of a column give, by their names there.

    Args:
        probs: (K,) shares of the reference.
        weights: (entries of `before`,) what each counts in its distribution of values; None for all alike.
    """
    live_counts = bins.counts(now)
    distance = distance_of_values(before.values, now.values, weights) if before.kind == "numeric" else None
    return divergences_of_shares(
        before.kind, bins.labels, probs, live_counts / live_counts.sum(), distance, floor=floor
    )


def divergences_of_shares(
    kind: ColumnKind,
    labels: tuple[str, ...],
    probs: NDArray[np.float64],
    live_probs: NDArray[np.float64],
    distance: float | None,
    *,
    floor: float,
) -> dict[str, Any]:
    """The same numbers from (K,) shares of both sides, and Wasserstein-1 of a numeric column."""
    return {
        "psi": population_stability_index(probs, live_probs, floor=floor),
        "kl": kl_divergence(probs, live_probs, floor=floor),
        "kl_reverse": kl_divergence(live_probs, probs, floor=floor),
        "js": js_divergence(probs, live_probs),
        "wasserstein": distance,
        "reference_missing_share": float(probs[-1]),
        "live_missing_share": float(live_probs[-1]),
        "unseen_share": None if kind == "numeric" else float(live_probs[-2]),
        "bins": labels,
        "reference_probs": tuple(probs.tolist()),
        "live_probs": tuple(live_probs.tolist()),
    }


def _labelled(column: DriftColumn) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Codes and vocabulary of a categorical or boolean column."""
    if column.kind == "categorical":
        return column.values, column.vocabulary
    return np.where(np.isnan(column.values), -1, column.values).astype(np.int64), _BOOLEAN_LABELS


def distance_of_values(
    before: NDArray[np.float64], now: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> float | None:
    """Wasserstein-1 over the values that are there; None where a side has none."""
    seen, live_seen = ~np.isnan(before), ~np.isnan(now)
    if weights is not None:
        seen &= weights > 0
    if not seen.any() or not live_seen.any():
        return None
    kept = None if weights is None else weights[seen]
    return wasserstein_distance(before[seen], now[live_seen], reference_weights=kept)
