"""Confidence intervals for estimators on clustered episodes: cluster bootstrap and Student t.

The bootstrap draws clusters with replacement and asks every estimator for its value on the same draw. Differences of
two estimators are therefore paired, and self-normalized weights are normalized anew inside each replicate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reports.estimators import Floats, RatioSum
from reports.records import Bounds, Interval
from reports.resampling import Replicates, by_cluster, linearized_error, resample

PERCENTILE = "cluster bootstrap, percentile"
STUDENT_T = "Student t, by cluster"


def cluster_codes(clusters: NDArray[np.generic]) -> NDArray[np.int64]:
    """(N,) the clusters renumbered 0..C-1."""
    return np.asarray(np.unique(clusters, return_inverse=True)[1], dtype=np.int64)


def bootstrap(
    estimators: Mapping[str, RatioSum],
    clusters: NDArray[np.generic],
    *,
    n_replicates: int,
    rng: np.random.Generator,
    with_errors: Collection[str] = (),
) -> dict[str, Replicates]:
    """Each estimator on the log and on the same draws of whole clusters.

    Args:
        estimators: by name, on the same N episodes.
        clusters: (N,) code of each episode's cluster; clusters are what is drawn.
        n_replicates: number of draws.
        rng: source of all randomness.
        with_errors: names that `studentized_bounds` will be asked about; their standard error is computed inside each
            draw as well. For a difference of two estimators add `difference_of` the two as an estimator of its own.

    Returns:
        By name; NaN in a replicate where the estimator is not defined (no episode drawn had weight).

    Raises:
        ValueError: if there are fewer than two clusters, or an estimator has another number of episodes.

    Source: Field and Welsh 2007, Bootstrapping clustered data (the cluster, or block, bootstrap).
    """
    codes = cluster_codes(clusters)
    n_clusters = int(codes.max()) + 1 if len(codes) else 0
    if n_clusters < 2:
        raise ValueError(f"{n_clusters} clusters: a bootstrap needs at least two.")
    for name, estimator in estimators.items():
        if len(estimator.numerators) != len(codes):
            raise ValueError(f"{name} has {len(estimator.numerators)} episodes, the clusters {len(codes)}.")
    totals = {name: by_cluster(estimator, codes) for name, estimator in estimators.items()}
    return resample(totals, n_replicates=n_replicates, rng=rng, with_errors=with_errors)


def bootstrap_replicates(
    estimators: Mapping[str, RatioSum],
    clusters: NDArray[np.generic],
    *,
    n_replicates: int,
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """(n_replicates,) values of each estimator alone, as `bootstrap` draws them."""
    drawn = bootstrap(estimators, clusters, n_replicates=n_replicates, rng=rng)
    return {name: replicates.values for name, replicates in drawn.items()}


def percentile_interval(replicates: Floats, level: float) -> Interval | None:
    """Two-sided interval between the outer quantiles of bootstrap replicates; None if any replicate is undefined.

    Args:
        replicates: (R,) values of one estimator, or the paired difference of two.
        level: two-sided confidence level in (0, 1).
    """
    tail = (1 - level) / 2
    low, high = lower_bound(replicates, tail), upper_bound(replicates, tail)
    return None if low is None or high is None else Interval(low, high, level, PERCENTILE)


def spanning(biased: Interval, unbiased: Interval, name: str) -> Interval:
    """The interval over both: for an estimate whose bias cannot be told from below the noise of one that has none.

    Args:
        biased: of the narrower estimate, which does not know its bias.
        unbiased: of an estimate of the same value, at the same level; what it covers the result covers too.
        name: of the unbiased estimate, for the words on how the interval was made.
    """
    low, high = min(biased.low, unbiased.low), max(biased.high, unbiased.high)
    return Interval(low, high, biased.level, f"{biased.method}, and over that of {name}")


def lower_bound(replicates: Floats, alpha: float) -> float | None:
    """One-sided lower bound at confidence 1 - alpha; None if any replicate is undefined.

    Raises:
        ValueError: if there are fewer than 10 / alpha replicates: the quantile would rest on a handful of draws.
    """
    return _quantile(replicates, alpha, alpha, "lower")


def upper_bound(replicates: Floats, alpha: float) -> float | None:
    """One-sided upper bound at confidence 1 - alpha; None if any replicate is undefined."""
    return _quantile(replicates, 1 - alpha, alpha, "higher")


def student_t_interval(terms: Floats, clusters: NDArray[np.generic], level: float) -> Interval:
    """Two-sided interval of the mean of (N,) per-episode terms, with the variance between clusters.

    Raises:
        ValueError: if there are fewer than two clusters.

    Source: Liang and Zeger 1986, Longitudinal data analysis using generalized linear models (the robust variance).
    """
    codes = cluster_codes(clusters)
    n_clusters = int(codes.max()) + 1 if len(codes) else 0
    if n_clusters < 2:
        raise ValueError(f"{n_clusters} clusters: an interval needs at least two.")
    mean, quantile = float(terms.mean()), float(stats.t.ppf((1 + level) / 2, n_clusters - 1))
    half = quantile * float(np.sqrt(variance_of_mean(terms, clusters)))
    return Interval(mean - half, mean + half, level, STUDENT_T)


def student_t_bounds(estimator: RatioSum, clusters: NDArray[np.generic], alpha: float) -> Bounds:
    """Value -+ t quantile times the linearized standard error between clusters, for any sum of ratios."""
    totals = by_cluster(estimator, cluster_codes(clusters))
    n_clusters = len(totals.numerators)
    if n_clusters < 2:
        return Bounds(STUDENT_T, None, None, alpha, f"{n_clusters} cluster: at least two are needed")
    half = float(stats.t.ppf(1 - alpha, n_clusters - 1)) * linearized_error(totals)
    if not np.isfinite(estimator.value + half):
        return Bounds(STUDENT_T, None, None, alpha, "the estimate is not finite: its weights overflow or are all zero")
    return Bounds(STUDENT_T, estimator.value - half, estimator.value + half, alpha)


def percentile_bounds(replicates: Replicates, alpha: float) -> Bounds:
    """The outer quantiles of bootstrap replicates as bounds."""
    low, high = lower_bound(replicates.values, alpha), upper_bound(replicates.values, alpha)
    n_undefined = int((~np.isfinite(replicates.values)).sum())
    cause = f"{n_undefined} of {len(replicates.values)} draws hold no weight, or overflow" if n_undefined else None
    return Bounds(PERCENTILE, low, high, alpha, cause)


def variance_of_mean(terms: Floats, clusters: NDArray[np.generic]) -> float:
    """Variance of the mean of (N,) terms when whole clusters are independent; needs at least two clusters."""
    codes = cluster_codes(clusters)
    residuals = np.bincount(codes, weights=terms - terms.mean())
    n_clusters = len(residuals)
    return float(n_clusters / (n_clusters - 1) * (residuals**2).sum() / len(terms) ** 2)


def _quantile(replicates: Floats, q: float, alpha: float, method: str) -> float | None:
    if len(replicates) * alpha < 10 * (1 - 1e-9):
        raise ValueError(f"{len(replicates)} replicates are too few for a tail of {alpha}; use {10 / alpha:.0f}.")
    if not np.all(np.isfinite(replicates)):
        return None
    return float(np.quantile(replicates, q, method=method))  # type: ignore[call-overload]  # one of numpy's names
