"""Bootstrap bounds that correct the percentile's bias on skewed terms: studentized (bootstrap-t) and BCa.

On skewed per-episode terms the percentile interval errs in one tail more often than it says: with costs, or with
importance weights, the mean of a log that missed the rare large terms is too small and so is its spread. Studentized
bounds learn that dependence from the draws (each is divided by its own standard error); BCa shifts the quantiles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reports.estimators import Floats, RatioSum
from reports.intervals import cluster_codes
from reports.records import Bounds
from reports.resampling import Replicates, by_cluster

STUDENTIZED = "cluster bootstrap, studentized"
BCA = "cluster bootstrap, BCa"

_FEWEST_IN_TAIL = 5
_INFINITE = 1e3
"""A draw this many of its own standard errors away from the log's value is one in which nothing varies: only rounding
(single precision, squared) kept its standard error from zero."""


def studentized_bounds(replicates: Replicates, alpha: float) -> Bounds:
    """Bounds value - error * q, with q the quantiles of (value* - value) / error* over the draws.

    Args:
        replicates: of one estimator, from `reports.intervals.bootstrap` with its name in `with_errors`.
        alpha: one-sided; both bounds together are an interval of level 1 - 2 alpha.

    Raises:
        ValueError: the replicates hold no standard errors, or are too few for alpha.

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, section 12.5; Hall 1988, Theoretical
    comparison of bootstrap confidence intervals (second-order accuracy).
    """
    if replicates.errors is None or replicates.error is None:
        raise ValueError("The replicates hold no standard errors: name the estimator in `with_errors`.")
    value, error, values = replicates.value, replicates.error, replicates.values
    cause = _undefined(value, values, alpha) or (None if np.isfinite(error) else "the standard error is not finite")
    if cause is not None:
        return Bounds(STUDENTIZED, None, None, alpha, cause)
    n_missing = int(np.isnan(replicates.errors).sum())
    if n_missing:
        cause = f"{n_missing} of {len(values)} draws have no standard error: their weights overflow or vanish"
        return Bounds(STUDENTIZED, None, None, alpha, cause)
    if error <= 1e-12 * abs(value):  # all terms equal
        return Bounds(STUDENTIZED, value, value, alpha)
    away = values - value
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = np.where(
            np.abs(away) >= _INFINITE * replicates.errors, np.sign(away) * np.inf, away / replicates.errors
        )
    pivots = np.where((away == 0) & (replicates.errors == 0), 0.0, pivots)  # neither moved nor varied
    low = value - error * float(np.quantile(pivots, 1 - alpha, method="higher"))
    high = value - error * float(np.quantile(pivots, alpha, method="lower"))
    cause = None
    if not np.isfinite(low + high):
        share = float(np.isinf(pivots).mean())
        cause = f"in {share:.1%} of the draws no cluster differs from another, so that side has no end"
    return Bounds(STUDENTIZED, low if np.isfinite(low) else None, high if np.isfinite(high) else None, alpha, cause)


def bca_bounds(replicates: Replicates, acceleration: float, alpha: float) -> Bounds:
    """Quantiles of the draws at tails corrected for bias and for a spread that grows with the value.

    Args:
        replicates: of one estimator.
        acceleration: from `jackknife_acceleration` of the same estimator and clusters.
        alpha: one-sided; both bounds together are an interval of level 1 - 2 alpha.

    Raises:
        ValueError: the replicates are too few for alpha.

    Source: Efron 1987, Better bootstrap confidence intervals, eq. 6.6 and 2.3.
    """
    value, values = replicates.value, replicates.values
    cause = _undefined(value, values, alpha) or (
        None if np.isfinite(acceleration) else "one cluster alone makes the estimate defined"
    )
    if cause is not None:
        return Bounds(BCA, None, None, alpha, cause)
    if np.ptp(values) <= 1e-12 * abs(value):
        return Bounds(BCA, value, value, alpha)
    below = float((values < value).mean() + 0.5 * (values == value).mean())
    tails = [_corrected(below, acceleration, tail) for tail in (alpha, 1 - alpha)]
    fewest = _FEWEST_IN_TAIL / len(values)
    low = float(np.quantile(values, tails[0], method="lower")) if tails[0] >= fewest else None
    high = float(np.quantile(values, tails[1], method="higher")) if tails[1] <= 1 - fewest else None
    cause = None
    if low is None or high is None:
        tail = tails[0] if low is None else 1 - tails[1]
        cause = f"the corrected tail of {max(tail, 0.0):.2g} holds fewer than {_FEWEST_IN_TAIL} of {len(values)} draws"
    return Bounds(BCA, low, high, alpha, cause)


def jackknife_acceleration(estimator: RatioSum, clusters: NDArray[np.generic]) -> float:
    """Skewness of the estimate when single clusters are left out, over 6; 0 where nothing varies, NaN where undefined.

    Source: Efron 1987, eq. 6.6, by the jackknife over clusters.
    """
    totals = by_cluster(estimator, cluster_codes(clusters))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        numerators = totals.numerators.sum(axis=0) - totals.numerators
        without = (numerators / (totals.denominators.sum(axis=0) - totals.denominators)).sum(axis=1)  # (C,)
        away = without.mean() - without
        spread = float((away**2).sum())
        if not np.isfinite(spread):
            return float("nan")
        return float((away**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _corrected(below: float, acceleration: float, tail: float) -> float:
    """The tail at which BCa reads the draws; on the side of `tail` and beyond every draw where it has none."""
    if not 0 < below < 1:
        return float(tail > 0.5)
    shift, quantile = stats.norm.ppf(below), stats.norm.ppf(tail)
    shrink = 1 - acceleration * (shift + quantile)
    if shrink <= 0:
        return float(tail > 0.5)
    return float(stats.norm.cdf(shift + (shift + quantile) / shrink))


def _undefined(value: float, values: Floats, alpha: float) -> str | None:
    if len(values) * alpha < 10 * (1 - 1e-9):
        raise ValueError(f"{len(values)} replicates are too few for a tail of {alpha}; use {10 / alpha:.0f}.")
    if not np.isfinite(value):
        return "the estimate is not finite: its weights overflow or are all zero"
    n_undefined = int((~np.isfinite(values)).sum())
    return f"{n_undefined} of {len(values)} draws hold no weight, or overflow" if n_undefined else None
