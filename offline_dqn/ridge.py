"""Ridge regression by action with shared coefficients, for many right-hand sides: factored once, solved often."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from offline_dqn.fqe_features import Array, Features

_GRAM_ROWS = 8_192
"""Rows that are widened to float64 at once."""


class Regression:
    """Ridge regression of targets on features by action, where each action's coefficients are common + its own.

    Both parts are shrunk alike, so that an action with few steps falls back on what all have in common, and everything
    falls back on the mean (the first feature is constant, and free in the common part). Factorisations are kept by
    strength of shrinkage.
    """

    def __init__(self, features: Features, actions: NDArray[np.int64], n_actions: int, weights: Array) -> None:
        self.rows = [np.flatnonzero(actions == a) for a in range(n_actions)]
        self.weights = weights
        # Rows are weighted once: a moment is the weighted block times the targets.
        plain = bool((weights == 1.0).all())
        self.blocks = [features[rows] if plain else _weighted(features[rows], weights[rows]) for rows in self.rows]
        self.grams = np.stack([
            _gram(features, rows, block) for rows, block in zip(self.rows, self.blocks, strict=True)
        ])  # (A, D', D')  # fmt: skip
        self.size, self.constant = features.shape[1], float(features[0, 0])
        self.factors: dict[float, tuple[Array, Array]] = {}

    def solve(self, targets: Array, ridge: float) -> Array:
        """Coefficients (D', A) for targets (T,)."""
        center = float(np.average(targets, weights=self.weights))
        centered = (targets - center).astype(np.float32)
        moments = np.stack([block.T @ centered[rows] for block, rows in zip(self.blocks, self.rows, strict=True)])
        coefficients = self.coefficients(moments.astype(np.float64), ridge)
        coefficients[0] += center / self.constant
        return coefficients

    def coefficients(self, moments: Array, ridge: float) -> Array:
        """Coefficients (D', A) for moments (A, D'); linear and symmetric in them."""
        own, common = self._factored(ridge)
        shared = common @ (ridge * np.einsum("aij,aj->i", own, moments))
        parts = np.einsum("aij,aj->ai", own, moments - self.grams @ shared)
        found: Array = (shared + parts).T
        return found

    def _factored(self, ridge: float) -> tuple[Array, Array]:
        if ridge not in self.factors:
            eye = np.eye(self.size)
            own = _inverses(self.grams + ridge * eye)
            common = ridge * eye
            common[0, 0] = 1e-6 * ridge
            # Eliminating an action's own part leaves G - G (G + rI)^-1 G = r (I - r (G + rI)^-1) for the common one.
            common += ridge * (eye - ridge * own).sum(axis=0)
            self.factors[ridge] = own, _inverses(common)
        return self.factors[ridge]


def _weighted(features: Features, weights: Array) -> Features:
    return features * weights[:, None].astype(np.float32)


def _gram(features: Features, rows: NDArray[np.int64], block: Features) -> Array:
    """(D', D') in float64: the rounding of a float32 sum over many steps outweighs the smallest ridge."""
    size = features.shape[1]
    gram = np.zeros((size, size))
    for start in range(0, len(rows), _GRAM_ROWS):
        part = slice(start, start + _GRAM_ROWS)
        gram += features[rows[part]].T.astype(np.float64) @ block[part].astype(np.float64)
    return gram


def _inverses(matrices: Array) -> Array:
    """Of symmetric positive definite matrices, one or a stack."""
    inverses: Array = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(matrices))).numpy()
    return inverses
