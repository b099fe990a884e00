"""The cluster bootstrap's arithmetic: draws of clusters, and every estimator with its standard error on each draw.

Only totals per cluster are kept. A replicate counts how often each cluster was drawn, (R, C), and the counts meet the
totals of all estimators in one matrix product.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.draws import cluster_counts
from reports.estimators import Floats, RatioSum, sum_of_ratios

Singles = NDArray[np.float32]
Places = NDArray[np.int64] | slice

_BLOCK_BYTES = 16 * 2**20
_FAINT = 1e-25
"""Sums of scaled denominators below this are computed in double precision; what single precision drops is below
1e-38 of the largest."""


@dataclass(frozen=True)
class Replicates:
    """One estimator on the log and on R draws of its clusters, in the estimator's unit."""

    value: float
    """On the log."""
    values: Floats
    """(R,) on each draw; NaN where it is not defined there."""
    error: float | None = None
    """Linearized standard error between clusters, on the log; None where it was not asked for."""
    errors: Floats | None = None
    """(R,) the same inside each draw, which is what a studentized interval divides by."""


def by_cluster(estimator: RatioSum, codes: NDArray[np.int64]) -> RatioSum:
    """The estimator with its (N, K) tables summed over each cluster's episodes, (C, K); its value is the same.

    Args:
        estimator: on N episodes.
        codes: (N,) cluster of each episode, 0..C-1, each of them used.
    """
    return RatioSum(sums_by_cluster(estimator.numerators, codes), sums_by_cluster(estimator.denominators, codes))


def sums_by_cluster(table: Floats, codes: NDArray[np.int64]) -> Floats:
    """(C, K) sums of an (N, K) table over the episodes of each cluster; codes (N,) 0..C-1, each of them used."""
    if np.array_equal(codes, np.arange(len(codes))):  # each episode is a cluster
        return table
    order = np.argsort(codes, kind="stable")
    return np.asarray(np.add.reduceat(table[order], np.flatnonzero(np.diff(codes[order], prepend=-1)), axis=0))


def linearized_error(totals: RatioSum, counts: Floats | None = None) -> float:
    """Standard error of a sum of ratios whose C rows are independent; NaN where it is not defined.

    `counts` (C,) says how often each row counts, once by default.

    With ratio R_k = sum_c n_ck / D_k, cluster c moves the value by z_c = sum_k (n_ck - R_k d_ck) / D_k, and the
    variance is C / (C - 1) sum_c z_c^2.

    Source: Särndal, Swensson, Wretman 1992, Model assisted survey sampling, section 5.5 (Taylor linearization).
    """
    n = len(totals.numerators)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        times = np.ones(n) if counts is None else counts
        sums, weights = times @ totals.numerators, times @ totals.denominators
        moved = ((totals.numerators - sums / weights * totals.denominators) / weights).sum(axis=1)
        return float(np.sqrt(n / (n - 1) * (times * moved**2).sum()))


def resample(
    totals: Mapping[str, RatioSum], *, n_replicates: int, rng: np.random.Generator, with_errors: Collection[str] = ()
) -> dict[str, Replicates]:
    """Every estimator on the same draws of C rows out of C with replacement.

    Counts meet totals in single precision, after the log's own value has been taken out: the error of a replicate is
    below 1e-4 of the estimator's standard error. Memory is bounded: draws are made in blocks.

    Args:
        totals: by name, from `by_cluster`, all with the same C.
        n_replicates: number of draws R.
        rng: source of all randomness.
        with_errors: names whose standard error is computed inside each draw as well.
    """
    n_clusters = len(next(iter(totals.values())).numerators)
    values = {name: np.full(n_replicates, np.nan) for name in totals}
    errors = {name: np.full(n_replicates, np.nan) for name in totals if name in with_errors}
    columns = _Columns(n_clusters)
    parts = {
        name: part
        for name, table in totals.items()
        if (part := _Part.of(table, columns, with_error=name in errors)) is not None
    }
    matrix = columns.matrix()
    block = max(1, min(n_replicates, _BLOCK_BYTES // (4 * n_clusters)))
    for start in range(0, n_replicates, block):
        rows = slice(start, min(start + block, n_replicates))
        counts = cluster_counts(n_clusters, rows.stop - rows.start, rng)
        sums = np.ascontiguousarray((counts @ matrix).T, dtype=np.float64)  # (columns, size): rows gather quickly
        for name, part in parts.items():
            values[name][rows], error = part.replicate(counts, sums, matrix)
            if error is not None:
                errors[name][rows] = error
    return {
        name: Replicates(
            totals[name].value,
            values[name],
            linearized_error(totals[name]) if name in errors else None,
            errors.get(name),
        )
        for name in totals
    }


class _Columns:
    """Columns of all estimators, equal ones once: they share weights, and plain means the ones they divide by."""

    def __init__(self, n_clusters: int) -> None:
        self._found: dict[tuple[float, float, float], list[int]] = {}
        self._columns: list[Singles] = []
        self._n_clusters = n_clusters

    def add(self, table: Floats) -> tuple[Places, Floats]:
        """Where the columns of a finite (C, K) table are, and their (K,) scales: the largest of each became 1."""
        scales = np.abs(table).max(axis=0)
        scales[scales == 0] = 1.0
        scaled = np.ascontiguousarray((table / scales).astype(np.float32).T)  # (K, C)
        places = np.array([self._place(column) for column in scaled])
        in_a_row = np.array_equal(places, np.arange(len(places)) + places[0])
        return slice(int(places[0]), int(places[-1]) + 1) if in_a_row else places, scales

    def matrix(self) -> Singles:
        """(C, n) all columns."""
        return np.array(self._columns, dtype=np.float32).reshape(len(self._columns), self._n_clusters).T

    def _place(self, column: Singles) -> int:
        same = self._found.setdefault((float(column[0]), float(column[-1]), float(column.sum())), [])
        for place in same:
            if np.array_equal(self._columns[place], column):
                return place
        self._columns.append(column)
        same.append(len(self._columns) - 1)
        return same[-1]


@dataclass(frozen=True)
class _Part:
    """One estimator: where its columns are, and what turns their sums over a draw into value and standard error.

    Numerators are centered, n_ck - R_k d_ck with the log's own ratios R_k: the value of a draw is the log's plus
    sum_k N_k / D_k of what is left, and no digits cancel where R_k is large.
    """

    totals: RatioSum
    numerators: tuple[Places, Floats]
    """Columns of the centered numerators, and the scale of each."""
    denominators: tuple[Places, Floats]
    products: tuple[Places, Floats] | None
    """Columns n^2, n d and d^2 of one scaled column each, where errors are asked for."""
    with_error: bool

    @staticmethod
    def of(totals: RatioSum, columns: _Columns, *, with_error: bool) -> _Part | None:
        """None where the log itself gives no finite ratios: then no draw is worth anything."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            ratios = totals.numerators.sum(axis=0) / totals.denominators.sum(axis=0)
            centered = totals.numerators - ratios * totals.denominators
        if not (np.all(np.isfinite(centered)) and np.all(np.isfinite(totals.denominators))):
            return None
        numerators, denominators = columns.add(centered), columns.add(totals.denominators)
        products = None
        if with_error and centered.shape[1] == 1:
            n, d = centered / numerators[1], totals.denominators / denominators[1]
            products = columns.add(np.column_stack([n * n, n * d, d * d]))
        return _Part(totals, numerators, denominators, products, with_error)

    def replicate(self, counts: Singles, sums: Floats, matrix: Singles) -> tuple[Floats, Floats | None]:
        """(size,) values and, where asked for, standard errors; (size, C) counts, sums = (counts @ matrix).T."""
        (at, scale), (below, weight_scale) = self.numerators, self.denominators
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            weights = sums[below]  # (K, size), of the scaled denominators
            shifts = sums[at] * (scale / weight_scale)[:, None] / weights
            values = self.totals.value + shifts.sum(axis=0)
            errors = self._errors(counts, sums, matrix, shifts, weights) if self.with_error else None
        # A draw without the largest weights may leave sums that single precision rounds to nothing.
        if np.abs(weights).min() < _FAINT:
            faint = np.flatnonzero((np.abs(weights) < _FAINT).any(axis=0))
            exact = counts[faint].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                values[faint] = sum_of_ratios(exact @ self.totals.numerators, exact @ self.totals.denominators)
            if errors is not None:
                errors[faint] = [linearized_error(self.totals, times) for times in exact]
        return values, errors

    def _errors(self, counts: Singles, sums: Floats, matrix: Singles, shifts: Floats, weights: Floats) -> Floats:
        n = counts.shape[1]
        (at, scale), (below, weight_scale) = self.numerators, self.denominators
        relative = scale / weight_scale
        if self.products is not None:  # three more sums instead of an influence per draw and cluster
            squared, mixed, weight_squared = sums[self.products[0]] * self.products[1][:, None]
            shift = shifts[0]
            squares = relative[0] ** 2 * squared - 2 * relative[0] * shift * mixed + shift**2 * weight_squared
            squares = np.maximum(squares, 0.0) / weights[0] ** 2
        else:
            moved = matrix[:, at] @ (relative[:, None] / weights).astype(np.float32)  # (C, size)
            moved -= matrix[:, below] @ (shifts / weights).astype(np.float32)
            squares = np.einsum("rc,cr,cr->r", counts, moved, moved, dtype=np.float64)
        return np.asarray(np.sqrt(n / (n - 1) * squares))
