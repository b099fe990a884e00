"""Marginalized weights: how much more often a policy visits what the log saw, by one linear system.

The product of a horizon's ratios has a variance that grows exponentially with it; the ratio of visits does not. It is
known only up to a model, here linear in the features of fitted Q evaluation, and rests on the observation (with the
step index) being all that matters for what comes next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offline_dqn.fqe_features import Array, Features

RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4)
"""Candidates for the strength of shrinkage towards the log's own visits, in steps' worth of evidence."""


@dataclass(frozen=True)
class Visits:
    """T logged steps of N episodes with what a policy would do there.

    Attributes:
        features: (T, D) of each step; the first is constant.
        inner: (I,) steps that another one of their episode follows, at `inner + 1`.
        first: (N,) first steps.
        reach: (T,) gamma^t.
        gamma: discount of one step.
        ratios: (T,) evaluation_prob / behavior_prob of each logged action.
    """

    features: Features
    inner: NDArray[np.int64]
    first: NDArray[np.int64]
    reach: Array
    gamma: float
    ratios: Array


def fit_state_weights(
    visits: Visits, halves: NDArray[np.bool_], ridges: tuple[float, ...] = RIDGES
) -> tuple[Array, float]:
    """Coefficients (D,) of w(s) = 1 + features(s) @ coefficients, and the ridge that was chosen.

    w is such that, for every feature f, the reweighted log visits what the policy visits:

        E[sum_t gamma^t w_t f_t] = E[f_0] + gamma E[sum_t gamma^t w_t ratio_t f_(t+1)].

    The ridge is the one whose weights, fitted on one half, leave this least unbalanced on the other.

    Args:
        visits: the steps.
        halves: (T,) bool, the steps of one half of the clusters; all True or all False compares nothing and takes the
            strongest ridge.
        ridges: candidates for the strength of shrinkage, ascending.

    Source: Liu, Li, Tang, Zhou 2018, Breaking the Curse of Horizon (arXiv:1810.12429), eq. 9; Uehara, Huang, Jiang
    2020, Minimax Weight and Q-Function Learning (arXiv:1910.12809), section 4, linear case. Differs from them:
    discounted from the first step on, shrunk towards 1, the strength chosen by balance on held-out clusters.
    """
    scale = _scale(visits.features)
    whole = _moments(visits, scale, np.ones(len(visits.ratios), dtype=bool))
    if halves.all() or not halves.any():
        ridge = max(ridges)
    else:
        parts = [_moments(visits, scale, halves), _moments(visits, scale, ~halves)]
        imbalance = [
            sum(
                float((((held[0] @ _solved(fitted, r) - held[1]) / held[2]) ** 2).sum())
                for fitted, held in (parts, parts[::-1])
            )
            for r in ridges
        ]
        ridge = ridges[min(range(len(ridges)), key=lambda i: (imbalance[i], -i))]
    return _solved(whole, ridge) / scale, ridge


def state_weights(features: Features, coefficients: Array) -> Array:
    """(T,) weights of steps with (T, D) features; at least 0."""
    found: Array = np.maximum(1.0 + features.astype(np.float64) @ coefficients, 0.0)
    return found


_Moments = tuple[Array, Array, float]


def _moments(visits: Visits, scale: Array, steps: NDArray[np.bool_]) -> _Moments:
    """The system (D, D) and right-hand side (D,) of the balance on some steps, and how many there are."""
    inner = visits.inner[steps[visits.inner]]
    weighted = visits.features * (visits.reach * steps).astype(np.float32)[:, None]
    onward = (visits.gamma * visits.reach * visits.ratios)[inner].astype(np.float32)
    following = visits.features[inner + 1] * onward[:, None]
    system = (weighted.T @ visits.features - following.T @ visits.features[inner]).astype(np.float64)
    starts = visits.features[visits.first[steps[visits.first]]].sum(axis=0, dtype=np.float64)
    unbalanced = starts - weighted.sum(axis=0, dtype=np.float64) + following.sum(axis=0, dtype=np.float64)
    return system / np.outer(scale, scale), unbalanced / scale, max(1.0, float(steps.sum()))


def _solved(moments: _Moments, ridge: float) -> Array:
    system, unbalanced, _ = moments
    return np.asarray(np.linalg.solve(system + ridge * np.eye(len(system)), unbalanced), dtype=np.float64)


def _scale(features: Features) -> Array:
    """(D,) root mean square of each feature: a ridge then counts steps, whatever the features' size."""
    size = np.sqrt((features.astype(np.float64) ** 2).mean(axis=0))
    return np.where(size > 0, size, 1.0)
