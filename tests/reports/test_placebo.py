from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.estimators import RatioSum, difference_of, mean_of
from reports.intervals import bootstrap
from reports.placebo import FEWEST_UNITS, clopper_pearson, half_bounds, placebo
from reports.proof_records import Placebo
from reports.studentized import studentized_bounds

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]


def run(terms: Floats, clusters: object, units: object, *, alpha: float = 0.05, n_halves: int = 1000) -> Placebo:
    return placebo(
        terms, np.asarray(clusters), np.asarray(units), of="return of the log", unit="cluster", alpha=alpha,
        n_halves=n_halves, rng=np.random.default_rng(7),
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_independent_episodes_pass_as_often_as_alpha(alpha: float) -> None:
    """20 logs of 300 skewed returns, 500 halves each: the rate of all 10,000 is alpha within binomial error.

    Halves of one log are not independent of each other across logs' chance, so the band is 4 standard errors.
    """
    rng, n_logs, n_halves = np.random.default_rng(0), 20, 500
    found = [
        run(rng.exponential(1.0, 300), np.arange(300), np.arange(300), alpha=alpha, n_halves=n_halves)
        for _ in range(n_logs)
    ]
    rate = sum(f.n_passed for f in found) / (n_logs * n_halves)
    error = np.sqrt(alpha * (1 - alpha) / (n_logs * n_halves))

    assert abs(rate - alpha) < 4 * error, f"{rate:.4f} of halves pass at {alpha}"


def test_a_level_that_holds_is_said_to_hold() -> None:
    rng = np.random.default_rng(1)
    found = run(rng.normal(0, 1, 600), np.arange(600), np.arange(600), n_halves=4000)

    assert found.verdict == "held"
    assert found.rate == found.n_passed / 4000
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.05 <= found.high <= 0.075


def test_clusters_that_are_ignored_are_found_out() -> None:
    """100 clusters of 10 episodes that share half of their variance: whole clusters are dealt, and the bound of
    independent episodes is too high by sqrt(1 + 9 / 2) = 2.3, so 24 % of halves pass at 5 %."""
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(100), 10)
    terms = rng.normal(0, 1, 100)[clusters] + rng.normal(0, 1, 1000)
    ignored, known = run(terms, np.arange(1000), clusters), run(terms, clusters, clusters)

    assert known.rate == pytest.approx(0.05, abs=0.02)
    assert ignored.verdict == "too often"
    assert ignored.rate == pytest.approx(stats.norm.cdf(-1.645 / np.sqrt(1 + 9 / 2)), abs=0.04)


def test_shocks_of_nights_are_found_out_where_nights_are_dealt() -> None:
    rng = np.random.default_rng(3)
    nights, episodes = np.repeat(np.arange(30), 40), np.arange(1200)
    terms = rng.normal(0, 0.4, 30)[nights] + rng.normal(0, 1, 1200)

    assert run(terms, episodes, episodes).rate == pytest.approx(0.05, abs=0.02), "each half holds every night"
    assert run(terms, episodes, nights).verdict == "too often"
    assert run(terms, nights, nights).rate == pytest.approx(0.05, abs=0.02), "with nights for clusters the bound knows"


def test_nights_that_share_nothing_are_seldom_said_to() -> None:
    """15 nights of independent episodes differ by chance, so halves of them often pass in more than 5 %. Of 40 logs at
    most 2 may be called "too often": .4 are expected at 1 %, and 3 or more have a chance of .8 %."""
    rng, episodes, nights = np.random.default_rng(10), np.arange(600), np.arange(600) % 15
    found = [run(rng.normal(0, 1, 600), episodes, nights, n_halves=400) for _ in range(40)]

    assert sum(f.verdict == "too often" for f in found) <= 2
    assert sum(f.low is not None and f.low > 0.05 for f in found) > 2, "the rate alone would have accused more"


def test_a_cluster_in_many_nights_stays_one_when_nights_are_dealt() -> None:
    """Users who come every night differ a lot, but not by night: their differences cancel between halves of nights."""
    rng = np.random.default_rng(4)
    nights, users = np.repeat(np.arange(30), 40), np.tile(np.arange(40), 30)
    terms = rng.normal(0, 2, 40)[users] + rng.normal(0, 1, 1200)
    found = run(terms, users, nights)

    assert found.rate == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("seed", [9, 10, 11])
def test_the_closed_form_is_the_studentized_bootstrap(seed: int) -> None:
    """Of one deal of 300 skewed episodes in 60 clusters, beside 20,000 draws.

    Tolerance: the order 1 / 60 that the forms differ by, and the draws' chance.
    """
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(60), 5)
    terms = rng.exponential(1.0, 300) + rng.exponential(1.0, 60)[clusters]
    (bound,) = half_bounds(terms, clusters, clusters, alpha=0.05, n_halves=1, rng=np.random.default_rng(seed))
    ranks = np.random.default_rng(seed).random((1, 60)).argsort(axis=1).argsort(axis=1)[0]
    first = (ranks < 30)[clusters]
    both = mean_of(terms)
    one, other = (
        RatioSum(both.numerators * chosen[:, None], both.denominators * chosen[:, None]) for chosen in (first, ~first)
    )
    drawn = bootstrap(
        {"difference": difference_of(one, other)}, clusters, n_replicates=20_000, rng=rng, with_errors={"difference"}
    )["difference"]
    theirs = studentized_bounds(drawn, 0.05).lower

    assert drawn.error is not None
    assert theirs is not None
    assert bound == pytest.approx(theirs, abs=0.08 * drawn.error), f"error {drawn.error:.3f}"


def test_the_rate_does_not_depend_on_the_unit_of_the_reward() -> None:
    terms = np.random.default_rng(6).exponential(1.0, 200)
    one, other = run(terms, np.arange(200), np.arange(200)), run(1e6 * terms - 3e6, np.arange(200), np.arange(200))

    assert one.n_passed == other.n_passed


@pytest.mark.parametrize("n", [0, 1, FEWEST_UNITS - 1])
def test_too_few_units_cannot_be_judged(n: int) -> None:
    found = run(np.arange(n, dtype=np.float64), np.arange(n), np.arange(n))

    assert (found.verdict, found.rate, found.n_halves) == ("cannot be judged", None, 0)
    assert found.cause == f"{n} cluster{'' if n == 1 else 's'}, and it takes 14 to deal halves of them"


def test_equal_returns_cannot_be_judged() -> None:
    found = run(np.full(50, 2.0), np.arange(50), np.arange(50))

    assert found.cause == "all 50 episodes have the same value, so halves of them never differ"


def test_a_term_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 20 terms are not finite"):
        run(np.array([np.nan, *range(19)], dtype=np.float64), np.arange(20), np.arange(20))


def test_a_large_log_is_sampled_by_whole_units() -> None:
    rng = np.random.default_rng(8)
    clusters = np.repeat(np.arange(8_000), 5)
    found = run(rng.normal(0, 1, 40_000), clusters, clusters, n_halves=50)

    assert (found.n_episodes, found.n_units) == (20_000, 4_000)


@pytest.mark.parametrize(("n_hits", "low", "high"), [(0, 0.0, 0.3085), (1, 0.0025, 0.4450), (10, 0.6915, 1.0)])
def test_clopper_pearson_of_ten_draws(n_hits: int, low: float, high: float) -> None:
    """0 of 10: 1 - .025^(1/10) = .3085; 1 of 10: Clopper and Pearson's own table; 10 of 10: the mirror of 0."""
    assert clopper_pearson(n_hits, 10, 0.95) == pytest.approx((low, high), abs=5e-5)
