"""Maximum mean discrepancy in what two columns do together, with random Fourier features.

A kernel on all columns at once sees little but how each of them moves alone, which their own PSI sees better, and
nights that share shocks move them all. So the features here are products over two columns of features of one, each
less its mean in the reference: where columns move alone they hardly change, and where columns move together they do.
Each counts in units of its own spread among the reference's clusters, or what varies most would hide the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from drift.joint_rows import JointRows, Side, standardized

MOST_FEATURES = 256
N_REPLICATES = 500
MOST_CLUSTERS = 2048
"""More are put together into this many bundles by chance, which leaves the variance of a sum as it is."""

_PER_COLUMN = 4
_WIDER = 2.0
"""The kernel's width in median distances: correlations are seen from afar."""
_MOST_PAIRED = 500
_BLOCK = 4096


@dataclass(frozen=True)
class MeanEmbeddings:
    """Of a window's cells, as sums: that of any set of cells follows without another look at the rows.

    Attributes:
        sums: (cells, F) complex, weighted sum of the features over the cell's rows.
        weights: (cells,) of the rows together.
        clusters: (cells,) from 0 without gaps.
    """

    sums: NDArray[np.complex128]
    weights: NDArray[np.float64]
    clusters: NDArray[np.int64]

    def mean(self, cells: NDArray[np.bool_] | None = None) -> NDArray[np.complex128]:
        """(F,) of the given cells ((cells,) bool), or of all; of cells without weight, that of all."""
        kept = slice(None) if cells is None else cells
        total = float(self.weights[kept].sum())
        if total <= 0.0:
            return self.mean() if cells is not None else np.zeros(self.sums.shape[1], dtype=np.complex128)
        return np.asarray(self.sums[kept].sum(axis=0) / total)

    def deviations(self, n_bundles: int, rng: np.random.Generator) -> NDArray[np.complex128]:
        """(clusters, F) by which each cluster, or bundle of clusters, moves the mean."""
        codes, n = self.clusters, int(self.clusters.max()) + 1
        if n > n_bundles:
            codes, n = (rng.permutation(n) % n_bundles)[codes], n_bundles
        off = self.sums - self.weights[:, None] * self.mean()
        order = np.argsort(codes, kind="stable")
        by_cluster = np.add.reduceat(off[order], np.searchsorted(codes[order], np.arange(n)), axis=0)
        return np.asarray(by_cluster * np.sqrt(n / max(1, n - 1)) / max(float(self.weights.sum()), 1e-300))

    def bootstrapped(self, rng: np.random.Generator) -> NDArray[np.complex128]:
        """(R, F) deviations of the mean, by normal multipliers on the clusters."""
        by_cluster = self.deviations(MOST_CLUSTERS, rng)
        return np.asarray(rng.standard_normal((N_REPLICATES, len(by_cluster))) @ by_cluster)


@dataclass(frozen=True)
class Embedded:
    """Both windows, on features in units of their spread.

    Attributes:
        matters: mean squared difference of the features where one pair of columns moves by one standard deviation of
            its products.
    """

    reference: MeanEmbeddings
    live: MeanEmbeddings
    matters: float


def embed(rows: JointRows, *, seed: int) -> Embedded:
    """Products of two columns' centered features, of every pair, or of pairs drawn by chance where there are many.

    Raises:
        ValueError: fewer than two columns vary.

    Source: Rahimi and Recht 2007, Random Features for Large-Scale Kernel Machines, algorithm 1; Gretton et al. 2005
        for products of centered kernels.
    """
    before, now, names = standardized(rows)
    rng = np.random.default_rng([seed, 4])
    varying = [name for name in dict.fromkeys(names) if np.ptp(before[:, np.array(names) == name], axis=0).any()]
    pairs = list(combinations(range(len(varying)), 2))
    if not pairs:
        raise ValueError(f"{len(varying)} of the columns vary in the reference, and it takes two to move together")
    if len(pairs) > MOST_FEATURES:
        pairs = [pairs[i] for i in np.sort(rng.permutation(len(pairs))[:MOST_FEATURES])]
    n_each = max(1, min(_PER_COLUMN, MOST_FEATURES // len(pairs)))
    frequencies = _frequencies(before, names, varying, n_each, rng)
    center = _means(rows.reference, before, frequencies)
    left, right = (np.array([[p[i] * n_each + k for k in range(n_each)] for p in pairs]).reshape(-1) for i in (0, 1))
    sides = [
        _summed(side, values, frequencies, center, left, right)
        for side, values in ((rows.reference, before), (rows.live, now))
    ]
    reference, squares = sides[0]
    weight = float(reference.weights.sum())
    by_row = squares / weight - np.abs(reference.mean()) ** 2
    by_cluster = weight * (np.abs(reference.deviations(len(reference.weights), rng)) ** 2).sum(axis=0)
    kept = by_cluster > 1e-9 * by_cluster.max()
    scale = np.sqrt(by_cluster[kept])
    scaled = [replace(side, sums=side.sums[:, kept] / scale) for side, _ in sides]
    matters = float((by_row[kept] / by_cluster[kept]).mean()) / len(pairs)
    return Embedded(scaled[0], scaled[1], matters)


def _frequencies(
    values: NDArray[np.float64], names: tuple[str, ...], varying: list[str], n_each: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(P, columns * n_each) of a Gaussian kernel on each column alone, as wide as rows are apart there (median)."""
    frequencies = np.zeros((values.shape[1], len(varying) * n_each))
    sample = values[rng.permutation(len(values))[: 2 * _MOST_PAIRED]]
    half = len(sample) // 2
    for place, name in enumerate(varying):
        own = np.array(names) == name
        distances = np.sqrt(((sample[:half, own] - sample[half : 2 * half, own]) ** 2).sum(axis=1))
        apart = distances[distances > 0]
        width = _WIDER * (float(np.median(apart)) if len(apart) else 1.0)
        frequencies[own, place * n_each : (place + 1) * n_each] = rng.standard_normal((int(own.sum()), n_each)) / width
    return frequencies


def _features(values: NDArray[np.float64], frequencies: NDArray[np.float64]) -> NDArray[np.complex128]:
    angles = values @ frequencies
    return np.asarray(np.cos(angles) + 1j * np.sin(angles))


def _means(side: Side, values: NDArray[np.float64], frequencies: NDArray[np.float64]) -> NDArray[np.complex128]:
    total = np.zeros(frequencies.shape[1], dtype=np.complex128)
    for start in range(0, len(values), _BLOCK):  # bounded memory, here and below
        block = slice(start, start + _BLOCK)
        total += side.weights[block] @ _features(values[block], frequencies)
    return np.asarray(total / max(float(side.weights.sum()), 1e-300))


def _summed(
    side: Side,
    values: NDArray[np.float64],
    frequencies: NDArray[np.float64],
    center: NDArray[np.complex128],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
) -> tuple[MeanEmbeddings, NDArray[np.float64]]:
    """Sums by cell of the products of the features `left` and `right`, and (F,) of their squares over all rows."""
    n_cells = len(side.night_of_cell)
    order = np.argsort(side.cell, kind="stable")
    sums = np.zeros((n_cells, len(left)), dtype=np.complex128)
    squares = np.zeros(len(left))
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        features = _features(values[block], frequencies) - center
        products = features[:, left] * features[:, right]
        squares += side.weights[block] @ (np.abs(products) ** 2)
        cells, first = np.unique(side.cell[block], return_index=True)
        sums[cells] += np.add.reduceat(products * side.weights[block, None], first, axis=0)
    weights = np.zeros(n_cells)
    np.add.at(weights, side.cell, side.weights)
    return MeanEmbeddings(sums, weights, side.cluster_of_cell), squares
