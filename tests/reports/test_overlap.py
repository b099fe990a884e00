from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.overlap import OverlapBounds, largest_influence_share, measure_overlap, pareto_tail_index
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
