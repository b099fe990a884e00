from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.concentration import (
    WeightedReturns,
    clipped_bounds,
    empirical_bernstein_bounds,
    hoeffding_bounds,
)
from reports.estimators import Floats

ALPHA = 0.05


def test_bounds_of_four_terms_by_hand() -> None:
    terms, single = np.array([0.0, 1.0, 1.0, 0.0]), np.arange(4)
    hoeffding = hoeffding_bounds(terms, single, 0, 1, 0.05)
    assert hoeffding.lower == pytest.approx(0.5 - np.sqrt(np.log(20) / 8))
    bernstein = empirical_bernstein_bounds(terms, single, 0, 1, 0.05)  # variance 1/3, n = 4
    assert bernstein.upper == pytest.approx(0.5 + np.sqrt(2 / 3 * np.log(40) / 4) + 7 * np.log(40) / 9)


def test_clusters_of_equal_size_count_as_one_value_each() -> None:
    terms = np.repeat(np.random.default_rng(0).uniform(size=30), 4)
    clusters = np.repeat(np.arange(30), 4)
    for bounds in (hoeffding_bounds, empirical_bernstein_bounds):
        whole, single = bounds(terms, clusters, 0, 1, 0.05), bounds(terms[::4], np.arange(30), 0, 1, 0.05)
        assert (whole.lower, whole.upper) == pytest.approx((single.lower, single.upper))


def test_bounds_hold_on_rare_losses() -> None:
    """Rare losses, clusters of 1 to 5 episodes with one outcome: 22 % of the logs show no loss at all."""
    missed = np.zeros(2)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(50), rng.integers(1, 6, 50))
        terms = -(rng.uniform(size=50) < 0.03).astype(float)[clusters]
        for i, bounds in enumerate((hoeffding_bounds, empirical_bernstein_bounds)):
            found = bounds(terms, clusters, -1, 0, ALPHA)
            assert found.lower is not None
            missed[i] += found.lower > -0.03
    assert missed.max() <= stats.binom.ppf(0.999, 400, ALPHA), missed


def test_a_small_variance_makes_bernstein_the_narrower() -> None:
    terms = 0.5 + 0.01 * np.random.default_rng(0).standard_normal(2000)
    bounds = [b(terms, np.arange(2000), 0, 1, ALPHA) for b in (hoeffding_bounds, empirical_bernstein_bounds)]
    assert bounds[1].upper - bounds[1].lower < (bounds[0].upper - bounds[0].lower) / 2  # type: ignore[operator]  # both have numbers


def test_no_range_no_bound_and_a_wrong_range_is_an_error() -> None:
    terms, single = np.array([0.0, 1.0]), np.arange(2)
    for bounds in (hoeffding_bounds, empirical_bernstein_bounds):
        found = bounds(terms, single, -np.inf, 1, ALPHA)
        assert (found.lower, found.upper, found.refused) == (None, None, "a term has no largest possible value")
        assert bounds(terms, np.zeros(2), 0, 1, ALPHA).refused == "1 cluster: at least two are needed"
        with pytest.raises(ValueError, match=r"1 of 2 terms lie outside \[0, 0.5\], first 1"):
            bounds(terms, single, 0, 0.5, ALPHA)


class _Costs:
    """One decision: the safe action costs 1, the risky one 10. The log takes the risky one in 2 % of the episodes,
    the policy on trial in 40 %: truly -4.6 against -1.18."""

    LOW, HIGH, TRUTH = -10.0, 0.0, -0.4 * 10 - 0.6 * 1 - (-0.02 * 10 - 0.98 * 1)

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        risky = rng.uniform(size=n) < 0.02
        self.returns: Floats = np.where(risky, -10.0, -1.0)
        self.weights: Floats = np.where(risky, 0.4 / 0.02, 0.6 / 0.98)

    def bounds(self, rng: np.random.Generator) -> tuple[float, float]:
        n = len(self.returns)
        ours, log = WeightedReturns(self.returns, self.weights), WeightedReturns(self.returns, None)
        found = clipped_bounds(ours, log, np.arange(n), self.LOW, self.HIGH, ALPHA, rng)
        assert found.lower is not None
        assert found.upper is not None
        return found.lower, found.upper


def test_clipping_a_cost_never_flatters_it() -> None:
    """Clipped weights of negative returns, as they are, put the lower bound above the truth in most logs."""
    missed, naive = np.zeros(2), 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        log = _Costs(rng, 400)
        low, high = log.bounds(rng)
        missed += [low > log.TRUTH, high < log.TRUTH]
        terms = np.maximum(log.weights * log.returns, -20.0) - log.returns  # a threshold of 20 on what costs up to 200
        naive += empirical_bernstein_bounds(terms, np.arange(400), -20.0, 10.0, ALPHA).lower > log.TRUTH  # type: ignore[operator]  # has a number
    assert missed.max() <= stats.binom.ppf(0.999, 300, ALPHA), missed
    assert naive > 150, naive


def test_clipped_bounds_close_in_where_weights_are_small() -> None:
    """40,000 episodes, a policy 1 better whose weights reach 2: the bound finds it better without knowing the 2."""
    rng = np.random.default_rng(0)
    good = rng.uniform(size=40_000) < 0.5
    returns, weights = np.where(good, -1.0, -3.0), np.where(good, 2.0, 0.0)
    found = clipped_bounds(
        WeightedReturns(returns, weights), WeightedReturns(returns, None), np.arange(40_000), -4, 0, ALPHA, rng
    )
    assert found.lower is not None
    assert 0.8 < found.lower < 1.0 < found.upper  # type: ignore[operator]  # has a number
    assert "are cut off" in found.note


def test_exchanging_the_sides_mirrors_the_bounds() -> None:
    log = _Costs(np.random.default_rng(1), 500)
    ours, theirs = WeightedReturns(log.returns, log.weights), WeightedReturns(log.returns, log.weights[::-1].copy())
    there, back = (
        clipped_bounds(*sides, np.arange(500), -10, 0, ALPHA, np.random.default_rng(0))
        for sides in ((ours, theirs), (theirs, ours))
    )
    assert (there.lower, there.upper) == pytest.approx((-back.upper, -back.lower))  # type: ignore[operator]  # numbers


def test_what_clipping_cannot_bound_says_why() -> None:
    log = _Costs(np.random.default_rng(1), 500)
    ours, theirs = WeightedReturns(log.returns, log.weights), WeightedReturns(log.returns, None)
    rng = np.random.default_rng(0)
    found = clipped_bounds(ours, theirs, np.arange(500), -np.inf, 0, ALPHA, rng)
    assert found.refused == "a term has no largest possible value"
    found = clipped_bounds(ours, theirs, np.arange(500) % 10, -10, 0, ALPHA, rng)
    assert found.refused == "10 clusters are too few to choose a threshold on some of them"
    heavy = WeightedReturns(log.returns, np.append(log.weights[1:], np.inf))
    assert clipped_bounds(heavy, theirs, np.arange(500), -10, 0, ALPHA, rng).refused == "the weights overflow"
