from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports import intervals
from reports.draws import cluster_counts
from reports.estimators import RatioSum, difference_of, mean_of
from reports.resampling import Replicates, by_cluster, linearized_error
from reports.studentized import bca_bounds, jackknife_acceleration, studentized_bounds
from tests.benchmarks.interval_errors import error_rates, lognormal, unequal


def _sums(n: int = 60) -> tuple[dict[str, RatioSum], np.ndarray]:
    rng = np.random.default_rng(0)
    weights, values = rng.exponential(size=(n, 3)), rng.normal(size=(n, 3)) + 5
    sums = {
        "mean": mean_of(values[:, 0]),
        "ratio": RatioSum(weights[:, :1] * values[:, :1], weights[:, :1]),
        "steps": RatioSum(weights * values, weights),
    }
    return sums, np.repeat(np.arange(n // 3), rng.multinomial(n, np.full(n // 3, 3 / n)))


def test_standard_error_of_a_mean_and_of_a_ratio_by_hand() -> None:
    # mean of (1, 2, 6): residuals (-2, -1, 3), squares add up to 14; 3/2 * 14 / 3^2 = 7/3
    assert linearized_error(mean_of(np.array([1.0, 2, 6]))) == pytest.approx(np.sqrt(7 / 3))
    # ratio (1 + 5) / (1 + 3) = 1.5: influences (1 - 1.5) / 4 and (5 - 4.5) / 4; 2/1 * 2 * (1/8)^2 = 1/16
    assert linearized_error(RatioSum(np.array([[1.0], [5]]), np.array([[1.0], [3]]))) == pytest.approx(0.25)


def test_standard_error_of_a_mean_is_that_of_the_t_interval() -> None:
    sums, clusters = _sums()
    totals = by_cluster(sums["mean"], intervals.cluster_codes(clusters))
    assert linearized_error(totals) ** 2 == pytest.approx(intervals.variance_of_mean(sums["mean"].terms, clusters))


@pytest.mark.parametrize("name", ["mean", "ratio", "steps"])
def test_each_draw_has_the_standard_error_of_the_clusters_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, clusters = _sums()
    counts: list[np.ndarray] = []
    draw = cluster_counts
    monkeypatch.setattr("reports.resampling.cluster_counts", lambda *a: counts.append(draw(*a)) or counts[-1])  # type: ignore[func-returns-value]  # append, then the value
    drawn = intervals.bootstrap(
        sums, clusters, n_replicates=20, rng=np.random.default_rng(1), with_errors={name}
    )[name]  # fmt: skip
    totals = by_cluster(sums[name], intervals.cluster_codes(clusters))
    assert drawn.errors is not None
    for replicate, times in enumerate(np.concatenate(counts).astype(int)):
        rows = np.repeat(np.arange(len(times)), times)
        again = RatioSum(totals.numerators[rows], totals.denominators[rows])
        assert drawn.values[replicate] == pytest.approx(again.value, rel=1e-5)
        assert drawn.errors[replicate] == pytest.approx(linearized_error(again), rel=1e-5)


def test_difference_of_unlike_estimators_is_paired() -> None:
    sums, clusters = _sums()
    both = sums | {"difference": difference_of(sums["steps"], sums["mean"])}
    drawn = intervals.bootstrap(both, clusters, n_replicates=50, rng=np.random.default_rng(0))
    np.testing.assert_allclose(drawn["difference"].values, drawn["steps"].values - drawn["mean"].values, atol=1e-5)
    assert difference_of(sums["mean"], mean_of(np.ones(60))).terms == pytest.approx(sums["mean"].terms - 1)


def test_bounds_scale_and_shift_with_the_terms() -> None:
    rng = np.random.default_rng(2)
    terms = rng.exponential(size=40)
    found = []
    for moved in (terms, 3 * terms - 7):
        mean = mean_of(moved)
        drawn = intervals.bootstrap(
            {"m": mean}, np.arange(40), n_replicates=500, rng=np.random.default_rng(3), with_errors={"m"}
        )["m"]
        acceleration = jackknife_acceleration(mean, np.arange(40))
        found.append((studentized_bounds(drawn, 0.05), bca_bounds(drawn, acceleration, 0.05)))
    for before, after in zip(*found, strict=True):
        assert before.lower is not None
        assert before.upper is not None
        assert (after.lower, after.upper) == pytest.approx((3 * before.lower - 7, 3 * before.upper - 7))


def test_bca_equals_scipy_on_the_same_draws() -> None:
    terms = np.random.default_rng(4).lognormal(size=80)
    theirs = stats.bootstrap(
        (terms,), np.mean, n_resamples=20_000, confidence_level=0.9, method="BCa", rng=np.random.default_rng(5)
    )
    drawn = Replicates(float(terms.mean()), theirs.bootstrap_distribution)
    ours = bca_bounds(drawn, jackknife_acceleration(mean_of(terms), np.arange(80)), 0.05)
    # scipy 1.17 interpolates between the two draws around the quantile, ours takes the outer one
    assert (ours.lower, ours.upper) == pytest.approx(tuple(theirs.confidence_interval), abs=2e-3)


def test_equal_terms_are_their_own_bounds() -> None:
    mean = mean_of(np.full(30, -0.7))
    drawn = intervals.bootstrap(
        {"m": mean}, np.arange(30), n_replicates=500, rng=np.random.default_rng(0), with_errors={"m"}
    )["m"]
    for bounds in (studentized_bounds(drawn, 0.05), bca_bounds(drawn, 0.0, 0.05)):
        assert (bounds.lower, bounds.upper) == pytest.approx((-0.7, -0.7))


def test_a_side_without_an_end_is_missing_with_its_cause() -> None:
    """One loss in 50: a third of the draws lack it, and say nothing about how large the next may be."""
    terms = np.where(np.arange(50) == 0, -10.0, 0.0)
    drawn = intervals.bootstrap(
        {"m": mean_of(terms)}, np.arange(50), n_replicates=1000, rng=np.random.default_rng(0), with_errors={"m"}
    )["m"]
    found = studentized_bounds(drawn, 0.05)
    assert found.lower is None
    assert found.upper is not None
    assert found.refused is not None
    assert "no cluster differs from another" in found.refused


def test_undefined_draws_leave_no_bound() -> None:
    drawn = Replicates(1.0, np.append(np.ones(999), np.nan), 0.1, np.ones(1000))
    for found in (studentized_bounds(drawn, 0.05), bca_bounds(drawn, 0.0, 0.05)):
        assert (found.lower, found.upper, found.refused) == (None, None, "1 of 1000 draws hold no weight, or overflow")


def test_draws_without_a_standard_error_leave_no_bound() -> None:
    """A missing number is no draw that did not move: it would make the bound too narrow, or of no width at all."""
    values = np.random.default_rng(0).normal(0.1, 1, 1000)
    for n_missing in (1, 1000):
        errors = np.where(np.arange(1000) < n_missing, np.nan, 1.0)
        found = studentized_bounds(Replicates(0.1, values, 1.0, errors), 0.01)
        assert (found.lower, found.upper) == (None, None)
        assert found.refused == f"{n_missing} of 1000 draws have no standard error: their weights overflow or vanish"


def test_draws_that_neither_moved_nor_varied_are_pivots_of_zero() -> None:
    values, errors = np.zeros(1000), np.ones(1000)
    values[:500] = np.random.default_rng(1).normal(0, 1, 500)
    errors[500:] = 0.0
    found = studentized_bounds(Replicates(0.0, values, 1.0, errors), 0.1)
    assert found.refused is None
    # half of the pivots are 0, so a tail of .1 of all is one of .2 of the others
    assert found.upper == pytest.approx(-np.quantile(values[:500], 0.2), abs=0.02)


def test_bounds_that_were_not_prepared_are_an_error() -> None:
    with pytest.raises(ValueError, match="with_errors"):
        studentized_bounds(Replicates(1.0, np.ones(1000)), 0.05)
    with pytest.raises(ValueError, match="use 1000"):
        studentized_bounds(Replicates(1.0, np.ones(500), 0.1, np.ones(500)), 0.01)


def test_on_skewed_terms_studentized_bounds_err_least() -> None:
    """A slice of `python -m tests.benchmarks.interval_errors`; the upper bound of a lognormal mean is the hard side."""
    found = error_rates(lognormal(1.0), 50, 0.05, n_seeds=600, n_replicates=200)
    assert found.upper["studentized"] < min(found.upper["percentile"], found.upper["Student t"]) - 0.02, found
    lowest, highest = stats.binom.ppf([0.001, 0.999], 600, 0.05) / 600  # .022 to .082
    assert lowest <= found.lower["studentized"] <= highest, found
    assert found.upper["studentized"] <= 0.105 + 3 * np.sqrt(0.105 * 0.895 / 600), found  # .096 to .105 at 2,000 logs


def test_bounds_hold_their_level_on_unequal_clusters() -> None:
    found = error_rates(unequal(0.5), 100, 0.05, n_seeds=400, n_replicates=200)
    highest = stats.binom.ppf(0.999, 400, 0.06) / 400
    assert max(found.lower["studentized"], found.upper["studentized"]) <= highest, found
