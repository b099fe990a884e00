from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports import intervals, resampling
from reports.draws import cluster_counts
from reports.estimators import RatioSum, mean_of, sum_of_ratios


def test_replicates_of_a_mean_spread_like_its_standard_error() -> None:
    terms = np.random.default_rng(0).normal(size=500)
    rng = np.random.default_rng(1)
    found = intervals.bootstrap_replicates({"mean": mean_of(terms)}, np.arange(500), n_replicates=4000, rng=rng)["mean"]
    assert found.std() == pytest.approx(terms.std() / np.sqrt(500), rel=0.05)
    assert found.mean() == pytest.approx(terms.mean(), abs=0.005)


def test_all_estimators_share_each_draw_and_weights_are_normalized_inside_it() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=50), rng.uniform(size=50)
    sums = {
        "mean": mean_of(values),
        "shifted": mean_of(values + 3),
        "weighted": RatioSum((weights * (values + 3))[:, None], weights[:, None]),
        "weighted plain": RatioSum((weights * values)[:, None], weights[:, None]),
    }
    found = intervals.bootstrap_replicates(sums, np.arange(50), n_replicates=200, rng=rng)
    np.testing.assert_allclose(found["shifted"] - found["mean"], 3.0)
    np.testing.assert_allclose(found["weighted"] - found["weighted plain"], 3.0)


def test_clusters_are_drawn_whole() -> None:
    terms = np.repeat([0.0, 1.0], 50)
    rng = np.random.default_rng(0)
    found = intervals.bootstrap_replicates({"m": mean_of(terms)}, np.repeat([7, 3], 50), n_replicates=500, rng=rng)["m"]
    assert set(np.unique(found)) == {0.0, 0.5, 1.0}


def test_blocks_bound_memory_and_further_estimators_leave_replicates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terms, clusters = np.random.default_rng(0).normal(size=300), np.arange(300)
    sums = {"m": mean_of(terms)}
    monkeypatch.setattr(resampling, "_BLOCK_BYTES", 4 * 300 * 7)
    alone = intervals.bootstrap_replicates(sums, clusters, n_replicates=100, rng=np.random.default_rng(0))["m"]
    both = sums | {"other": mean_of(terms**2)}
    among = intervals.bootstrap_replicates(both, clusters, n_replicates=100, rng=np.random.default_rng(0))["m"]
    np.testing.assert_allclose(alone, among, rtol=1e-6)
    assert len(np.unique(alone)) == 100


def test_single_precision_costs_no_more_than_a_thousandth_of_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights over many orders of magnitude, a large common value, and columns of steps."""
    rng = np.random.default_rng(0)
    weights = np.exp(4 * rng.standard_normal((2000, 10)))
    values = 1e4 + rng.standard_normal((2000, 10))
    sums = {"steps": RatioSum(weights * values, weights), "mean": mean_of(weights[:, 0] * values[:, 0])}
    kept: list[np.ndarray] = []
    draw = cluster_counts
    monkeypatch.setattr("reports.resampling.cluster_counts", lambda *a: kept.append(draw(*a)) or kept[-1])  # type: ignore[func-returns-value]  # append, then the value
    found = intervals.bootstrap_replicates(sums, np.arange(2000), n_replicates=300, rng=rng)
    counts = np.concatenate(kept).astype(np.float64)
    for name, table in sums.items():
        exact = sum_of_ratios(counts @ table.numerators, counts @ table.denominators)
        assert np.abs(found[name] - exact).max() < 1e-3 * exact.std(), name


def test_a_draw_without_the_heavy_weights_keeps_its_digits() -> None:
    """One weight 1e60 times the others, which single precision alone would round to nothing."""
    weights = np.append(1e60, np.ones(49))
    values = np.append(5.0, np.arange(49.0))
    sums = {"weighted": RatioSum((weights * values)[:, None], weights[:, None])}
    found = intervals.bootstrap_replicates(sums, np.arange(50), n_replicates=400, rng=np.random.default_rng(0))
    without = found["weighted"][np.abs(found["weighted"] - 5) > 1e-6]
    assert 0.3 < len(without) / 400 < 0.44  # (1 - 1/50)^50 = .364
    assert without.mean() == pytest.approx(24, abs=1)


def test_one_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        intervals.bootstrap_replicates(
            {"m": mean_of(np.ones(3))}, np.zeros(3), n_replicates=10, rng=np.random.default_rng(0)
        )
    with pytest.raises(ValueError, match="at least two"):
        intervals.student_t_interval(np.ones(3), np.zeros(3), 0.95)


def test_undefined_replicates_leave_no_interval() -> None:
    assert intervals.percentile_interval(np.append(np.zeros(999), np.nan), 0.95) is None


def test_too_few_replicates_for_a_tail_are_refused() -> None:
    with pytest.raises(ValueError, match=r"use 1000"):
        intervals.lower_bound(np.zeros(999), 0.01)


def test_student_t_equals_the_textbook_where_each_episode_is_a_cluster() -> None:
    terms = np.random.default_rng(0).normal(size=30)
    found = intervals.student_t_interval(terms, np.arange(30), 0.95)
    wanted = stats.ttest_1samp(terms, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_intervals_cover_the_mean_of_clustered_terms_as_often_as_they_claim() -> None:
    # 400 logs of 60 clusters of 5 episodes that share a shock; bootstrap and t at 95 %, judged with binomial error.
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 5)
    hits = np.zeros(3)
    for _ in range(400):
        terms = rng.normal(size=60)[clusters] + rng.normal(size=300)
        drawn = intervals.bootstrap_replicates({"m": mean_of(terms)}, clusters, n_replicates=800, rng=rng)["m"]
        by_cluster = intervals.percentile_interval(drawn, 0.95)
        assert by_cluster is not None
        t = intervals.student_t_interval(terms, clusters, 0.95)
        naive = intervals.student_t_interval(terms, np.arange(300), 0.95)
        hits += [i.low <= 0 <= i.high for i in (by_cluster, t, naive)]
    low, high = stats.binom.ppf([0.001, 0.999], 400, 0.95)
    assert low - 4 <= hits[0] <= high  # the percentile bootstrap is a little short at 60 clusters
    assert low <= hits[1] <= high
    assert hits[2] < low  # taking episodes for independent is not harmless
