from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.overlap import OverlapBounds, effective_events, largest_influence_share, measure_overlap, pareto_tail_index
from reports.records import Interval


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.0])
def test_tail_index_finds_the_shape_of_a_pareto_tail(shape: float) -> None:
    found = [pareto_tail_index(stats.genpareto.rvs(shape, size=5000, random_state=seed)) or 0.0 for seed in range(40)]
    # The prior, worth 10 of 213 tail values, draws it a little towards .5.
    assert np.mean(found) == pytest.approx((shape * 213 + 5) / 223, abs=0.06)


def test_light_tails_have_a_small_index() -> None:
    assert (pareto_tail_index(np.random.default_rng(0).uniform(size=2000)) or 0.0) < 0.0
    assert (pareto_tail_index(np.abs(np.random.default_rng(0).normal(size=2000))) or 0.0) < 0.3


def test_tail_index_with_ties_and_without_spread() -> None:
    assert pareto_tail_index(np.ones(100)) == 0.0
    assert pareto_tail_index(np.arange(20.0)) is None  # too few
    assert (pareto_tail_index(np.r_[np.zeros(700), np.ones(300)]) or 0.0) < 0.0  # two values: bounded
    assert pareto_tail_index(np.r_[np.zeros(999), 1.0]) is None  # one value above all others tells nothing


def test_share_of_the_most_influential_episode() -> None:
    assert largest_influence_share(np.array([1.0, -1.0, 0.0])) == 0.5
    assert largest_influence_share(np.zeros(3)) == 0.0


def test_every_cause_is_named() -> None:
    log_weights = np.full(200, -50.0)
    log_weights[0] = 0.0
    influence = np.full(200, 0.01)
    influence[:20] = 10.0 ** np.arange(20)
    overlap = measure_overlap(
        "candidate", log_weights, influence, 0.005, Interval(0.0, 0.02, 0.95, "bootstrap"), OverlapBounds()
    )
    assert overlap.effective_sample_size == pytest.approx(1.0)
    assert overlap.refused is not None
    for cause in ("excludes 1", "effective sample size is 1.0", "tail index", "one episode carries 99%"):
        assert cause in overlap.refused


def test_overflowed_weights_are_refused_without_a_number() -> None:
    overlap = measure_overlap("candidate", np.full(50, 800.0), np.full(50, np.inf), np.inf, None, OverlapBounds())
    assert overlap.mean_weight is None
    assert overlap.refused is not None
    assert "overflow" in overlap.refused


def test_equal_rare_events_count_as_many_as_there_are() -> None:
    # k terms of -(1 - k / n) among n - k of k / n: for n large (sum u^2)^3 / (sum u^3)^2 = k^3 / k^2 = k.
    terms = np.zeros(1_000_000)
    terms[:17] = -5.0
    assert effective_events(terms - terms.mean()) == pytest.approx(17, rel=1e-3)
    assert effective_events(terms.mean() - terms) == pytest.approx(17, rel=1e-3)
    assert effective_events(np.array([-1.0, 1.0])) is None
    assert effective_events(np.zeros(5)) is None
    assert effective_events(np.array([-1e200, 5e199, 5e199])) is None  # skewed less than three events


@pytest.mark.parametrize(("n", "loss_rate", "refused"), [(500, 0.02, True), (4000, 0.2, False)])
def test_bounds_fail_where_events_are_few_and_are_refused_there(n: int, loss_rate: float, refused: bool) -> None:
    """Ten actions at random, a candidate that takes one of them and is worth exactly as much as the log."""
    rng, bound_above_truth, refusals, n_logs = np.random.default_rng(0), 0, 0, 100
    for _ in range(n_logs):
        weights = np.where(rng.integers(10, size=n) == 0, 9.1, 0.1)
        rewards = -(rng.random(n) < loss_rate).astype(np.float64)
        terms = (weights - 1) * (rewards - rewards.mean())  # doubly robust - log, with a constant for a model
        draws = rng.multinomial(n, np.full(n, 1 / n), size=400) @ terms / n
        bound_above_truth += float(np.quantile(draws, 0.05)) > 0.0
        influence = terms - terms.mean()
        overlap = measure_overlap(
            "candidate", np.log(weights), influence, 1.0, Interval(0.9, 1.1, 0.95, "bootstrap"), OverlapBounds()
        )
        refusals += "rare events, under 28" in (overlap.refused or "")
    assert (bound_above_truth > 20) is refused, f"the bound failed in {bound_above_truth} of {n_logs} logs"
    assert refusals >= 95 if refused else refusals <= 5, f"{refusals} of {n_logs} logs refused"
