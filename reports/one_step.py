"""Doubly robust forms for logs whose episodes are one step long: heavy weights switched off, or shrunk.

IPS and SNIPS are `importance_sampling` and `weighted_importance_sampling` of such a log, and DR is `doubly_robust`; the
two forms here trade some of their variance for bias. How much is chosen for each fifth of the clusters by what the
others say, so that no decision has a voice in how its own weight is treated, and the terms stay those of a mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reports.estimators import Floats, RatioSum, mean_of
from reports.intervals import cluster_codes, variance_of_mean

STRENGTHS = (np.inf, *np.geomspace(1e8, 1e-4, 37).tolist(), 0.0)
"""Candidates for the strength of optimistic shrinkage: from DR itself to the direct method."""
_N_THRESHOLDS = 30
_N_FOLDS = 5


def switch_doubly_robust(
    rewards: Floats, q_taken: Floats, state_values: Floats, log_weights: Floats, clusters: NDArray[np.generic]
) -> RatioSum:
    """Switch-DR: DR where the weight is at most a threshold, the model alone where it is above.

    Args:
        rewards: (N,) in reward units.
        q_taken: (N,) Q of the logged action, from a model not fitted on the same episode.
        state_values: (N,) sum_a pi(a | s) Q(s, a).
        log_weights: (N,) of evaluation over behavior probability.
        clusters: (N,) code of each decision's cluster.

    Source: Wang, Agarwal, Dudik 2017, Optimal and adaptive off-policy evaluation in contextual bandits
    (arXiv:1612.01205), eq. 6, in its doubly robust form.
    Differs from it: the threshold is chosen by `least_variance_without_visible_bias`, on other clusters.
    """
    candidates = np.stack([switched(log_weights, threshold) for threshold in _thresholds(log_weights)])
    return _tuned(candidates, rewards - q_taken, state_values, clusters)


def shrunk_doubly_robust(
    rewards: Floats, q_taken: Floats, state_values: Floats, log_weights: Floats, clusters: NDArray[np.generic]
) -> RatioSum:
    """DRos: DR with weights that `shrunk` makes smaller. Arguments as for `switch_doubly_robust`.

    Source: Su, Dimakopoulou, Krishnamurthy, Dudik 2020, Doubly robust off-policy evaluation with shrinkage
    (arXiv:1907.09623), section 4.1.
    Differs from it: the strength is chosen by `least_variance_without_visible_bias`, on other clusters.
    """
    candidates = np.stack([shrunk(log_weights, strength) for strength in STRENGTHS])
    return _tuned(candidates, rewards - q_taken, state_values, clusters)


def switched(log_weights: Floats, log_threshold: float) -> Floats:
    """(N,) weights, 0 where they are above the threshold."""
    with np.errstate(over="ignore"):
        return np.where(log_weights <= log_threshold, np.exp(log_weights), 0.0)


def shrunk(log_weights: Floats, strength: float) -> Floats:
    """(N,) weights s w / (w^2 + s): near w where w^2 is far below s, falling to 0 far above; w itself at infinity."""
    with np.errstate(over="ignore", divide="ignore"):
        weights = np.exp(log_weights)
        if np.isinf(strength):
            return np.asarray(weights)
        if strength == 0.0:
            return np.zeros_like(weights)
        return np.asarray(1.0 / (weights / strength + 1.0 / weights))  # an overflowed weight shrinks to 0


def least_variance_without_visible_bias(terms: Floats, clusters: NDArray[np.generic]) -> int:
    """Which of S estimates to take, ordered from the least biased to the least variable.

    Each is taken to lie within a standard error of its own expectation. The last estimate is taken whose interval,
    and those of all before it, have a point in common: up to there no bias shows. Estimates that overflow are passed
    over.

    Args:
        terms: (S, N) of S plain means on the same N episodes.
        clusters: (N,) code of each episode's cluster, two or more.

    Source: Su, Srinath, Krishnamurthy 2020, Adaptive estimator selection for off-policy evaluation (arXiv:2002.07729),
    algorithm 1 (SLOPE), with standard errors by cluster as the widths.
    """
    known = np.flatnonzero(np.all(np.isfinite(terms), axis=1))
    middles = terms[known].mean(axis=1)
    reach = np.array([np.sqrt(variance_of_mean(row, clusters)) for row in terms[known]])
    common = np.maximum.accumulate(middles - reach) <= np.minimum.accumulate(middles + reach)
    return int(known[len(common) - 1 if common.all() else int(np.argmin(common)) - 1])


def _thresholds(log_weights: Floats) -> Floats:
    """Logs of thresholds, descending: from one that switches nothing off to one that switches everything off."""
    finite = log_weights[np.isfinite(log_weights)]
    if not len(finite):
        return np.array([np.inf])
    return np.array([np.inf, *np.linspace(finite.max(), finite.min(), _N_THRESHOLDS), -np.inf])


def _tuned(candidates: Floats, errors: Floats, state_values: Floats, clusters: NDArray[np.generic]) -> RatioSum:
    """DR with (S, N) candidates for the weights, chosen for each fold of clusters on the others."""
    codes = cluster_codes(clusters)
    folds = codes % min(_N_FOLDS, int(codes.max()) + 1)
    with np.errstate(invalid="ignore", over="ignore"):  # candidates that overflow are passed over
        terms = state_values + np.where(errors == 0.0, 0.0, candidates * errors)
    chosen = terms[0].copy()
    for fold in range(int(folds.max()) + 1):
        others = folds != fold
        if len(np.unique(codes[others])) >= 2:  # else there is no error to compare: plain DR
            best = least_variance_without_visible_bias(terms[:, others], clusters[others])
            chosen[~others] = terms[best, ~others]
    return mean_of(chosen)
