"""The cluster bootstrap's arithmetic: draws of clusters, and every estimator with its standard error on each draw.

Only totals per cluster are kept. A replicate counts how often each cluster was drawn, (R, C), and the counts meet the
totals of all estimators in one matrix product.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.estimators import Floats, RatioSum, sum_of_ratios

_CHUNK_BYTES = 32 * 2**20


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
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return RatioSum(
        np.asarray(np.add.reduceat(estimator.numerators[order], starts, axis=0)),
        np.asarray(np.add.reduceat(estimator.denominators[order], starts, axis=0)),
    )


def linearized_error(totals: RatioSum) -> float:
    """Standard error of a sum of ratios whose C rows are independent; NaN where it is not defined.

    With ratio R_k = sum_c n_ck / D_k, cluster c moves the value by z_c = sum_k (n_ck - R_k d_ck) / D_k, and the
    variance is C / (C - 1) sum_c z_c^2.

    Source: Särndal, Swensson, Wretman 1992, Model assisted survey sampling, section 5.5 (Taylor linearization).
    """
    n = len(totals.numerators)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        sums, weights = totals.numerators.sum(axis=0), totals.denominators.sum(axis=0)
        moved = ((totals.numerators - sums / weights * totals.denominators) / weights).sum(axis=1)
        return float(np.sqrt(n / (n - 1) * (moved**2).sum()))


def resample(
    totals: Mapping[str, RatioSum], *, n_replicates: int, rng: np.random.Generator, with_errors: Collection[str] = ()
) -> dict[str, Replicates]:
    """Every estimator on the same draws of C rows out of C with replacement.

    Memory is bounded: draws are made in chunks.

    Args:
        totals: by name, from `by_cluster`, all with the same C.
        n_replicates: number of draws R.
        rng: source of all randomness.
        with_errors: names whose standard error is computed inside each draw as well.
    """
    n_clusters = len(next(iter(totals.values())).numerators)
    values = {name: np.empty(n_replicates) for name in totals}
    errors = {name: np.empty(n_replicates) for name in totals if name in with_errors}
    moments = {name: _Moments.of(totals[name]) for name in errors}
    chunk = max(1, min(n_replicates, _CHUNK_BYTES // (8 * n_clusters)))
    for start in range(0, n_replicates, chunk):
        part = slice(start, min(start + chunk, n_replicates))
        counts = _draw(n_clusters, part.stop - part.start, rng)
        for name, table in totals.items():
            with np.errstate(invalid="ignore", over="ignore"):  # overflowed weights end as NaN, which is refused later
                values[name][part] = sum_of_ratios(counts @ table.numerators, counts @ table.denominators)
            if name in errors:
                errors[name][part] = moments[name].errors(counts)
    return {
        name: Replicates(
            totals[name].value,
            values[name],
            linearized_error(totals[name]) if name in errors else None,
            errors.get(name),
        )
        for name in totals
    }


def _draw(n_clusters: int, size: int, rng: np.random.Generator) -> Floats:
    """(size, C) how often each cluster is drawn."""
    draws = rng.integers(n_clusters, size=(size, n_clusters)) + np.arange(size)[:, None] * n_clusters
    return np.bincount(draws.ravel(), minlength=size * n_clusters).reshape(size, n_clusters).astype(np.float64)


@dataclass(frozen=True)
class _Moments:
    """What the standard error inside a draw is made of."""

    centered: Floats
    """(C, K) numerators - R_k denominators with the log's own ratios R_k: no digits cancel where R_k is large."""
    denominators: Floats

    @staticmethod
    def of(totals: RatioSum) -> _Moments:
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            ratios = totals.numerators.sum(axis=0) / totals.denominators.sum(axis=0)
            return _Moments(totals.numerators - ratios * totals.denominators, totals.denominators)

    def errors(self, counts: Floats) -> Floats:
        """(size,) linearized standard error inside each draw."""
        n = self.centered.shape[0]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            weights = counts @ self.denominators
            shifts = counts @ self.centered / weights
            if self.centered.shape[1] == 1:  # three products of columns instead of an influence per draw and cluster
                z, d = self.centered[:, 0], self.denominators[:, 0]
                second = counts @ np.column_stack([z * z, z * d, d * d])
                shift = shifts[:, 0]
                squares = second[:, 0] - 2 * shift * second[:, 1] + shift**2 * second[:, 2]
                squares = np.maximum(squares, 0.0) / weights[:, 0] ** 2
            else:
                moved = self.centered @ (1 / weights).T - self.denominators @ (shifts / weights).T  # (C, size)
                squares = np.einsum("rc,cr,cr->r", counts, moved, moved)
            return np.asarray(np.sqrt(n / (n - 1) * squares))
