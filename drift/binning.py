"""Bins cut on the reference window, and weighted histograms over them.

Numeric columns get bins of about equal reference mass. Every bin is a half-open interval [edge, next edge), the first
and the last reach to infinity, so one wild value moves one row's mass and never an edge. A value that holds a bin's
worth of mass by itself (the zero of a zero-inflated column, the only value of a constant one) is a point mass with a
bin of its own: [v, the next float after v). Whatever lies between point masses has bins too, though the reference may
leave them empty: that is where new values show. The last slot is always the missing one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING_LABEL = "(missing)"
UNSEEN_LABEL = "(rare or unseen)"

RARE_SHARE = 0.001
"""A label below this share of the reference shares the slot of unseen ones: such labels come and go by chance."""

_FEW_EDGES = 64
"""Up to as many, comparing with every edge is quicker than a binary search, whose branches no processor foresees."""

_CHUNK = 32_768
"""Values compared at once: they stay in the processor's cache from one edge to the next."""

MAX_LABELS = 30
"""Labels with a bin of their own, the heaviest first; the others share the slot of unseen ones."""


@dataclass(frozen=True)
class NumericBins:
    """Intervals between ascending `edges` (K - 2,), then the missing slot: K slots with `labels`."""

    edges: NDArray[np.float64]
    labels: tuple[str, ...]

    def assign(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """(rows,) slot of each value; NaN goes to the missing slot."""
        slots = _slots(self.edges, values)
        slots[np.isnan(values)] = len(self.labels) - 1
        return slots

    def counts(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(K,) values in each slot: the histogram of `assign`, without the slot of each."""
        if len(self.edges) > _FEW_EDGES:
            return histogram(self.assign(values), len(self.labels))
        n_above = np.zeros(len(self.edges), dtype=np.int64)
        n_missing = 0
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK]
            n_missing += int(np.count_nonzero(np.isnan(chunk)))
            n_above += np.array([np.count_nonzero(chunk >= edge) for edge in self.edges], dtype=np.int64)
        reached = np.array([len(values) - n_missing, *n_above, 0], dtype=np.float64)
        return np.concatenate([reached[:-1] - reached[1:], [n_missing]])


@dataclass(frozen=True)
class CategoryBins:
    """One slot per label of `kept`, then rare or unseen labels, then missing ones: K slots with `labels`."""

    kept: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """(K,) what each slot holds."""
        return (*self.kept, UNSEEN_LABEL, MISSING_LABEL)

    def assign(self, codes: NDArray[Any], vocabulary: tuple[str, ...]) -> NDArray[np.int64]:
        """(rows,) slot of each code into `vocabulary`, which may differ from the reference's; -1 is missing."""
        slot_of_label = {label: slot for slot, label in enumerate(self.kept)}
        unseen = len(self.kept)
        # The last entry stands for code -1.
        slots = [*(slot_of_label.get(label, unseen) for label in vocabulary), unseen + 1]
        return np.array(slots, dtype=np.int64).take(codes)


def numeric_bins(
    values: NDArray[np.float64],
    *,
    n_bins: int,
    weights: NDArray[np.float64] | None = None,
    groups: NDArray[Any] | None = None,
) -> NumericBins:
    """Bins of about equal mass in the reference, with point masses apart.

    Args:
        values: (rows,) reference values, NaN where missing.
        n_bins: bins among which the mass is shared; ties and point masses may make it fewer or more.
        weights: (rows,) not negative; None counts every row alike.
        groups: (rows,) what makes rows dependent. A value counts as a point mass only if two groups share it: in a
            small reference one long episode with a constant value is none.

    Raises:
        ValueError: a value is infinite, or `n_bins` is below 2.
    """
    if n_bins < 2:
        raise ValueError(f"n_bins = {n_bins} cuts nothing; it must be at least 2")
    if np.isinf(values).any():
        raise ValueError(f"{int(np.isinf(values).sum())} values are infinite; bins want finite numbers or NaN")
    distinct, mass = _distinct_mass(values, weights)
    points = np.flatnonzero(mass >= 1.0 / n_bins - 1e-12)
    groups = np.arange(len(values)) if groups is None else groups
    points = np.array([i for i in points if _is_shared(groups[values == distinct[i]])], dtype=np.int64)
    edges = [edge for i in points for edge in (distinct[i], np.nextafter(distinct[i], np.inf))]
    bounds = np.concatenate([[-1], points, [len(distinct)]])
    for left, right in pairwise(bounds.tolist()):
        between = slice(left + 1, right)
        edges.extend(_quantile_edges(distinct[between], mass[between], n_bins))
    cut = np.unique(np.array(edges, dtype=np.float64))
    return NumericBins(cut, (*_interval_labels(cut), MISSING_LABEL))


def category_bins(
    codes: NDArray[Any], vocabulary: tuple[str, ...], *, weights: NDArray[np.float64] | None = None
) -> CategoryBins:
    """A bin for each label that the reference holds in number, in the order of the vocabulary.

    Args:
        codes: (rows,) reference codes into `vocabulary`, -1 where missing.
        vocabulary: labels by code.
        weights: (rows,) not negative; None counts every row alike.
    """
    mass = histogram(codes + 1, len(vocabulary) + 1, weights)[1:]
    enough = np.flatnonzero(mass > RARE_SHARE * mass.sum())
    heaviest = enough[np.argsort(-mass[enough], kind="stable")[:MAX_LABELS]]
    return CategoryBins(tuple(vocabulary[code] for code in np.sort(heaviest)))


def histogram(slots: NDArray[Any], n_slots: int, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """(n_slots,) summed weight of the rows in each slot; without weights, their number."""
    return np.bincount(slots, weights=weights, minlength=n_slots).astype(np.float64)


def histograms_by_unit(
    slots: NDArray[Any],
    n_slots: int,
    unit_of_row: NDArray[np.int64],
    n_units: int,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(n_units, n_slots) one histogram per unit, from (rows,) slots and (rows,) units."""
    return histogram(unit_of_row * n_slots + slots, n_units * n_slots, weights).reshape(n_units, n_slots)


def _slots(edges: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """(rows,) how many edges lie at or below each value; none for NaN."""
    if len(edges) > _FEW_EDGES:
        return np.searchsorted(edges, values, side="right")
    slots = np.zeros(len(values), dtype=np.uint8)
    above = np.empty(min(_CHUNK, len(values)), dtype=np.bool_)
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        beyond, counted = above[: len(chunk)], slots[start : start + _CHUNK]
        for edge in edges:
            np.greater_equal(chunk, edge, out=beyond)
            counted += beyond.view(np.uint8)
    return slots.astype(np.int64)


def _distinct_mass(
    values: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distinct values in order, and the share of the non-missing mass that each holds."""
    seen = ~np.isnan(values) if weights is None else ~np.isnan(values) & (weights > 0)
    if not seen.any():
        return np.empty(0), np.empty(0)
    if weights is None:
        ordered = in_order(values[seen])
        starts = _starts(ordered)
        mass = np.diff(starts, append=len(ordered)).astype(np.float64)
    else:
        order = np.argsort(values[seen], kind="stable")
        ordered = values[seen][order]
        starts = _starts(ordered)
        mass = np.add.reduceat(weights[seen][order], starts)
    return ordered[starts], mass / mass.sum()


def in_order(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values ascending. Those that already are cost one look; sorting them again would cost the same again."""
    return values if bool((values[:-1] <= values[1:]).all()) else np.sort(values)


def _starts(ordered: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where each distinct value begins."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _is_shared(groups: NDArray[Any]) -> bool:
    return bool((groups != groups[0]).any())


def _quantile_edges(distinct: NDArray[np.float64], mass: NDArray[np.float64], n_bins: int) -> list[float]:
    """Inner edges that cut a stretch without point masses into bins of about 1 / n_bins each."""
    n_inner = round(float(mass.sum()) * n_bins) - 1
    if n_inner < 1 or len(distinct) < 2:
        return []
    below = np.cumsum(mass)[:-1]  # mass below the second, third, ... distinct value
    targets = mass.sum() * np.arange(1, n_inner + 1) / (n_inner + 1)
    right = np.searchsorted(below, targets).clip(max=len(below) - 1)
    left = (right - 1).clip(min=0)
    nearest = np.where(targets - below[left] < below[right] - targets, left, right)
    return [float(edge) for edge in distinct[nearest + 1]]


def _interval_labels(edges: NDArray[np.float64]) -> list[str]:
    """What each interval holds; one that starts just above a point mass says so by an open bracket."""
    if not len(edges):
        return ["any value"]
    is_point = np.append(edges[1:] == np.nextafter(edges[:-1], np.inf), False)
    after_point = np.append(False, is_point[:-1])
    # The edge just above a point mass prints as the point: next to 0 it would print as 4.94066e-324.
    texts = [f"{edges[i - 1] if after_point[i] else edges[i]:.6g}" for i in range(len(edges))]
    labels = [f"< {texts[0]}"]
    for i in range(len(edges) - 1):
        bracket = "(" if after_point[i] else "["
        labels.append(texts[i] if is_point[i] else f"{bracket}{texts[i]}, {texts[i + 1]})")
    return [*labels, f"{'>' if after_point[-1] else '>='} {texts[-1]}"]
