"""Placebo: the log's own policy as its own candidate, on random halves of its episodes.

Two random halves of one log were written by the same policies in the same nights, so the difference of their means has
truth 0; the gate's lower bound of it must lie above 0 in a share alpha of the halves and no more. Dealt by cluster this
tests the bound on returns as they are in this log, with their tails. Dealt by night it tests what the bound assumes:
where nights share shocks, two halves of nights differ by more than the clusters tell, and the bound passes too often.

It tests the way of bounding (studentized, whole clusters) on the log's own returns, which have no weights. It does not
test the gate's estimator: the tails of its weights, and a bias that both halves share, such as wrong behavior
probabilities, are not in it. Overlap checks and backtest look for those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reports.dependence import design_effect
from reports.estimators import Floats, Ints
from reports.intervals import cluster_codes
from reports.proof_records import Placebo, PlaceboVerdict

FEWEST_UNITS = 14
"""Fewer cannot be dealt into halves in enough ways: 14 can in 1,716."""

LARGEST_EXCESS = 1.5
"""A level is held if the interval of the rate ends below this many times alpha (TRUST.md 24)."""

CHANCE_LEVEL = 0.01
"""A few nights differ by chance, too: more passes than alpha count only where nights that share nothing would hardly
show so many."""

_MOST_CELLS = 20_000
"""Of units and clusters; beyond it some units at random speak for all."""

_CHUNK_CELLS = 4_000_000


def placebo(
    terms: Floats,
    clusters: NDArray[Any],
    units: NDArray[Any],
    *,
    of: str,
    unit: str,
    alpha: float,
    n_halves: int,
    rng: np.random.Generator,
) -> Placebo:
    """Share of random halves whose difference of means has a lower bound above 0.

    Args:
        terms: (N,) per episode, in reward units.
        clusters: (N,) code of each episode's cluster: what the bound takes for independent.
        units: (N,) code of what is dealt into halves: the same clusters, or nights.
        of, unit: what terms and units are, in words.
        alpha: level of the bound.
        n_halves: how often the units are dealt anew.
        rng: deals.

    Returns:
        The rate with its Clopper-Pearson interval. Halves of one log are independent draws given the log, so the count
        is binomial; the rate is that of this log. Where units are not the clusters, the rate depends on how these few
        units happen to differ, so "too often" also asks for the chance of that (`reports.dependence`).

    Raises:
        ValueError: if lengths differ or a term is not finite.
    """
    if not len(terms) == len(clusters) == len(units):
        raise ValueError(f"{len(terms)} terms, {len(clusters)} clusters and {len(units)} units: wants one per episode.")
    if not np.all(np.isfinite(terms)):
        raise ValueError(f"{int((~np.isfinite(terms)).sum())} of {len(terms)} terms are not finite.")
    kept = _some_units(cluster_codes(units), rng) if len(terms) else np.zeros(0, dtype=bool)
    terms, clusters, units = terms[kept], cluster_codes(clusters[kept]), cluster_codes(units[kept])
    n_units = int(units.max()) + 1 if len(units) else 0
    cause = ""
    if n_units < FEWEST_UNITS:
        cause = f"{n_units} {unit}{'' if n_units == 1 else 's'}, and it takes {FEWEST_UNITS} to deal halves of them"
    elif np.ptp(terms) == 0:
        cause = f"all {len(terms)} episodes have the same value, so halves of them never differ"
    if cause:
        return Placebo(of, unit, alpha, len(terms), n_units, 0, 0, None, None, None, "cannot be judged", cause=cause)
    n_passed = int((half_bounds(terms, clusters, units, alpha=alpha, n_halves=n_halves, rng=rng) > 0).sum())
    low, high = clopper_pearson(n_passed, n_halves, 0.95)
    chance = None
    if len(np.unique(units * (int(clusters.max()) + 1) + clusters)) > n_units:
        chance = design_effect(unit, units, "cluster", clusters, terms, ignored=True, rng=rng).p_value
    verdict: PlaceboVerdict = "undecided"
    if low > alpha and (chance is None or chance <= CHANCE_LEVEL):
        verdict = "too often"
    elif high <= LARGEST_EXCESS * alpha:
        verdict = "held"
    rate = n_passed / n_halves
    return Placebo(of, unit, alpha, len(terms), n_units, n_halves, n_passed, rate, low, high, verdict, chance)


def half_bounds(
    terms: Floats, clusters: Ints, units: Ints, *, alpha: float, n_halves: int, rng: np.random.Generator
) -> Floats:
    """(n_halves,) lower bounds at 1 - alpha of the mean of one random half minus that of the other.

    The bound is studentized, as the gate's is, in closed form: value - error * q, with q the quantile of Student t
    corrected for the skewness of the clusters' influence. A studentized bootstrap of 10,000 draws in each of thousands
    of halves would take hours and say nearly the same.

    Args:
        terms: (N,) per-episode values.
        clusters, units: (N,) codes 0..C-1 and 0..U-1, as in `placebo`.
        alpha: level of the bound.
        n_halves: how often the units are dealt.
        rng: deals.

    Source: Hall 1992, On the removal of skewness by transformation (the monotone cubic and its inverse), as good as the
    studentized bootstrap to second order.
    """
    # Episodes of one unit and cluster go the same way: what is dealt is their sum.
    n_clusters, n_units = int(clusters.max()) + 1, int(units.max()) + 1
    pairs, cell = np.unique(units * n_clusters + clusters, return_inverse=True)
    sums, sizes = np.bincount(cell, weights=terms), np.bincount(cell).astype(np.float64)
    unit_of, cluster_of = pairs // n_clusters, pairs % n_clusters
    quantile = float(stats.t.ppf(1 - alpha, n_clusters - 1))
    bounds = np.empty(n_halves)
    chunk = max(1, _CHUNK_CELLS // len(pairs))
    for start in range(0, n_halves, chunk):
        n = min(chunk, n_halves - start)
        ranks = rng.random((n, n_units)).argsort(axis=1).argsort(axis=1)
        first = (ranks < n_units // 2)[:, unit_of]  # (n, cells)
        n_first, n_second = first @ sizes, (~first) @ sizes
        mean_first, mean_second = (first @ sums) / n_first, ((~first) @ sums) / n_second
        influence = np.where(
            first,
            (sums - mean_first[:, None] * sizes) / n_first[:, None],
            -(sums - mean_second[:, None] * sizes) / n_second[:, None],
        )
        if n_clusters < len(pairs):  # a cluster in several nights is still one
            rows = np.arange(n)[:, None] * n_clusters + cluster_of
            influence = np.bincount(rows.ravel(), influence.ravel(), n * n_clusters).reshape(n, n_clusters)
        variance = (influence**2).sum(axis=1)
        skewness = (influence**3).sum(axis=1) / np.maximum(variance, np.finfo(np.float64).tiny) ** 1.5
        error = np.sqrt(n_clusters / (n_clusters - 1) * variance)
        bounds[start : start + n] = mean_first - mean_second - error * _studentized_quantile(quantile, skewness)
    return bounds


def _studentized_quantile(quantile: float, skewness: Floats) -> Floats:
    """Quantiles of (mean - truth) / error, from that of no skewness and the mean's skewness in each of (n,) halves."""
    shifted = quantile - skewness / 6
    some = np.abs(skewness) > 1e-4  # below, the cubic's inverse is its first two terms
    s = np.where(some, skewness, 1.0)
    return np.where(some, 3 / s * (np.cbrt(1 + s * shifted) - 1), shifted - skewness * shifted**2 / 3)


def clopper_pearson(n_hits: int, n: int, level: float) -> tuple[float, float]:
    """Two-sided interval of a binomial share that holds its level for every n.

    Source: Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial.
    """
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, n_hits, n - n_hits + 1)) if n_hits else 0.0
    high = float(stats.beta.ppf(1 - tail, n_hits + 1, n - n_hits)) if n_hits < n else 1.0
    return low, high


def _some_units(units: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(N,) which episodes are used: those of all units, or of as many at random as hold so many episodes."""
    sizes = np.bincount(units)
    if len(units) <= _MOST_CELLS:
        return np.ones(len(units), dtype=bool)
    order = rng.permutation(len(sizes))
    n_kept = max(FEWEST_UNITS, int(np.searchsorted(np.cumsum(sizes[order]), _MOST_CELLS, side="right")))
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[:n_kept]] = True
    return np.asarray(chosen[units])
