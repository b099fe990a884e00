"""Bounds from the range of the terms alone, at any sample size: Hoeffding, empirical Bernstein, clipped weights.

Nothing is assumed of the distribution, so they are wide. The range is what a term can be at all (the largest possible
weight times the range of returns), never what was observed: a log that missed the rare large terms would shrink its
own bound. Where the largest possible weight is unknown or too large, weighted returns are clipped, on the side that
can only lower the bound.

Clusters are independent; given its size, a cluster's sum of terms has expectation size times the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.estimators import Floats
from reports.intervals import cluster_codes
from reports.records import Bounds

HOEFFDING = "Hoeffding"
EMPIRICAL_BERNSTEIN = "empirical Bernstein"
CLIPPED = "clipped weights"

_CHOOSING_SHARE = 0.2
_N_THRESHOLDS = 60


def hoeffding_bounds(terms: Floats, clusters: NDArray[np.generic], low: float, high: float, alpha: float) -> Bounds:
    """Mean -+ (high - low) sqrt(ln(1 / alpha) / 2 * sum_c n_c^2) / N.

    Args:
        terms: (N,) per-episode terms of a plain mean.
        clusters: (N,) cluster of each episode, of n_c episodes.
        low, high: what a term can be at all.
        alpha: one-sided.

    Raises:
        ValueError: a term lies outside [low, high].

    Source: Hoeffding 1963, Probability inequalities for sums of bounded random variables, theorem 2.
    """
    cause = _refused(terms, clusters, low, high)
    if cause is not None:
        return Bounds(HOEFFDING, None, None, alpha, cause)
    sizes = np.bincount(cluster_codes(clusters)).astype(np.float64)
    half = (high - low) * float(np.sqrt(np.log(1 / alpha) / 2 * (sizes**2).sum())) / len(terms)
    mean = float(terms.mean())
    return Bounds(HOEFFDING, mean - half, mean + half, alpha)


def empirical_bernstein_bounds(
    terms: Floats, clusters: NDArray[np.generic], low: float, high: float, alpha: float
) -> Bounds:
    """Mean -+ sqrt(2 V ln(2 / alpha) / C) + 7 b ln(2 / alpha) / (3 (C - 1)) over C clusters of range b and variance V.

    A small variance makes it narrower than Hoeffding's; the second term, which the range sets, falls with 1 / C.
    Arguments and errors as for `hoeffding_bounds`.

    Source: Maurer and Pontil 2009, Empirical Bernstein bounds and sample variance penalization (arXiv:0907.3740),
    theorem 11, which asks for independent values and not for equal distributions.
    """
    cause = _refused(terms, clusters, low, high)
    if cause is not None:
        return Bounds(EMPIRICAL_BERNSTEIN, None, None, alpha, cause)
    half = _bernstein_half(terms, cluster_codes(clusters), high - low, (low + high) / 2, alpha)
    mean = float(terms.mean())
    return Bounds(EMPIRICAL_BERNSTEIN, mean - half, mean + half, alpha)


@dataclass(frozen=True)
class WeightedReturns:
    """One side of a difference: what N episodes returned and how they weigh for the policy."""

    returns: Floats
    """(N,) discounted returns, in reward units."""
    weights: Floats | None
    """(N,) whole-episode weights; None where the policy wrote the log."""


def clipped_bounds(
    ours: WeightedReturns,
    theirs: WeightedReturns,
    clusters: NDArray[np.generic],
    low: float,
    high: float,
    alpha: float,
    rng: np.random.Generator,
) -> Bounds:
    """Bounds of value(ours) - value(theirs) from clipped weighted returns, without any largest possible weight.

    For the lower bound ours is low + E[w (G - low)] and theirs high - E[w (high - G)]: both expectations are of
    numbers that cannot be negative, so cutting them off from above only lowers the bound. Clipping the weight of a
    negative return would raise it. The upper bound is the lower bound of the exchanged difference.

    The threshold is chosen on a fifth of the clusters, which the bound then leaves out.

    Args:
        ours, theirs: on the same N episodes.
        clusters: (N,) cluster of each episode.
        low, high: smallest and largest feasible return.
        alpha: one-sided.
        rng: deals the clusters that choose the threshold.

    Raises:
        ValueError: a return lies outside [low, high].

    Source: Thomas, Theocharous, Ghavamzadeh 2015, High-confidence off-policy evaluation, theorem 1, with one threshold.
    Differs from it: a fifth of the data chooses instead of a twentieth; two sides are subtracted inside the mean.
    """
    codes = cluster_codes(clusters)
    cause = _refused(ours.returns, clusters, low, high)
    if cause is None and codes.max() + 1 < 4 / _CHOOSING_SHARE:
        cause = f"{int(codes.max()) + 1} clusters are too few to choose a threshold on some of them"
    if cause is None and not all(
        np.all(np.isfinite(side.weights)) for side in (ours, theirs) if side.weights is not None
    ):
        cause = "the weights overflow"
    if cause is not None:
        return Bounds(CLIPPED, None, None, alpha, cause)
    n_clusters = int(codes.max()) + 1
    chooses = np.isin(codes, rng.permutation(n_clusters)[: int(np.ceil(_CHOOSING_SHARE * n_clusters))])
    lower, at = _clipped_lower(ours, theirs, codes, chooses, low, high, alpha)
    upper, at_upper = _clipped_lower(theirs, ours, codes, chooses, low, high, alpha)
    note = f"weighted returns above {at:.4g} (for the upper bound {at_upper:.4g}) are cut off, which only widens it"
    return Bounds(CLIPPED, lower, -upper, alpha, None, note)


def _clipped_lower(
    ours: WeightedReturns,
    theirs: WeightedReturns,
    codes: NDArray[np.int64],
    chooses: NDArray[np.bool_],
    low: float,
    high: float,
    alpha: float,
) -> tuple[float, float]:
    """Lower bound of value(ours) - value(theirs), and the threshold."""
    gain, loss = ours.returns - low, high - theirs.returns  # (N,) both in [0, high - low]
    gain_weighted = gain if ours.weights is None else ours.weights * gain
    loss_weighted = loss if theirs.weights is None else theirs.weights * loss

    def clipped(threshold: float) -> tuple[Floats, float]:
        ends = [high - low if side.weights is None else threshold for side in (ours, theirs)]
        return np.minimum(gain_weighted, ends[0]) + np.minimum(loss_weighted, ends[1]), sum(ends)

    kept = cluster_codes(codes[~chooses])
    largest = max(float(np.maximum(gain_weighted, loss_weighted)[chooses].max()), high - low)
    found = []
    for threshold in np.geomspace((high - low) / 10, largest, _N_THRESHOLDS):
        values, width = clipped(threshold)
        center = float(values[chooses].mean())
        half = _bernstein_half(values[chooses], cluster_codes(codes[chooses]), width, center, alpha, as_if=kept)
        found.append((center - half, float(threshold), center))
    _, threshold, center = max(found)
    values, width = clipped(threshold)
    half = _bernstein_half(values[~chooses], kept, width, center, alpha)
    return float(values[~chooses].mean()) - half + low - high, threshold


def _bernstein_half(
    terms: Floats,
    codes: NDArray[np.int64],
    width: float,
    center: float,
    alpha: float,
    as_if: NDArray[np.int64] | None = None,
) -> float:
    """How far the mean of terms may be off, that lie in an interval of this width.

    `center` is a number fixed beforehand near the mean: clusters of unequal sizes then vary the less. `as_if` are the
    clusters of another part of the log, for which the half is predicted.
    """
    sizes = np.bincount(codes if as_if is None else as_if)
    n, mean_size = len(sizes), float(sizes.mean())
    sums = np.bincount(codes, weights=terms - center)
    variance = float(sums.var(ddof=1)) / mean_size**2  # of sums over the mean size: their mean is the mean of terms
    log = float(np.log(2 / alpha))
    return float(np.sqrt(2 * variance * log / n)) + 7 * width * float(sizes.max()) / mean_size * log / (3 * (n - 1))


def _refused(terms: Floats, clusters: NDArray[np.generic], low: float, high: float) -> str | None:
    if not np.isfinite(low) or not np.isfinite(high):
        return "a term has no largest possible value"
    slack = 1e-9 * (1 + abs(low) + abs(high))
    outside = ~((terms >= low - slack) & (terms <= high + slack))
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {len(terms)} terms lie outside [{low:g}, {high:g}], first "
            f"{terms[np.flatnonzero(outside)[0]]:g}: the range must be what a term can be at all."
        )
    n_clusters = len(np.unique(clusters))
    return None if n_clusters > 1 else f"{n_clusters} cluster: at least two are needed"
