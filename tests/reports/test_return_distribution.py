from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import return_distribution as r
from reports.estimators import Floats
from reports.records import Interval, LevelValue, ReturnDistribution
from reports.return_pictures import return_picture
from reports.trial import Trial, step_weights_of
from tests.reports.report_samples import passed_evaluation
from tests.reports.worlds import GAMMA, greedy, make_trial, simulate, small_world

WORLD = small_world()
UNIFORM = np.full((4, 2), 0.5)
CANDIDATE = greedy(WORLD, 0.6)


def trial_of(n: int, seed: int, **changes: object) -> Trial:
    return make_trial(WORLD, simulate(WORLD, UNIFORM, n, np.random.default_rng(seed)), UNIFORM, CANDIDATE, **changes)


def found(trial: Trial, refused: str | None = None, level: float = 0.9) -> dict[str, ReturnDistribution]:
    weights = step_weights_of(trial).product["candidate"]
    distributions = r.return_distributions(trial, weights, refused, level=level, rng=np.random.default_rng(0))
    return {d.estimator: d for d in distributions}


def simulated(policy: Floats, n: int = 200_000) -> Floats:
    """Returns of the policy itself, sorted: the truth but for the noise of so many."""
    log = simulate(WORLD, policy, n, np.random.default_rng(99))
    steps = np.arange(len(log.actions)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))
    return np.sort(np.add.reduceat(GAMMA**steps * log.rewards, log.offsets[:-1]))


TRUTH = simulated(CANDIDATE)


def worst(returns: Floats, u: float) -> float:
    return float(returns[: int(u * len(returns))].mean())


def test_weighted_shares_by_hand() -> None:
    # Returns 1, 2, 2, 5 of weights 1, 2, 1, 4: at or below 1: 1/8, 2: 4/8, 5: 1. Clusters 0, 0, 1, 1.
    returns, weights, codes = np.array([1.0, 2.0, 2.0, 5.0]), np.array([1.0, 2.0, 1.0, 4.0]), np.array([0, 0, 1, 1])
    cells = r.cells_of(returns, weights, 10)
    np.testing.assert_array_equal(cells.upper, [1.0, 2.0, 5.0])
    np.testing.assert_array_equal(cells.values, cells.upper)
    sums, totals = r.weighted_shares(cells, weights, codes)
    np.testing.assert_array_equal(sums, [[1.0, 3.0, 3.0], [0.0, 1.0, 5.0]])
    np.testing.assert_array_equal(totals, [3.0, 5.0])
    np.testing.assert_allclose(sums.sum(axis=0) / totals.sum(), [1 / 8, 4 / 8, 1.0])


def test_quantiles_and_worst_parts_by_hand() -> None:
    values, shares = np.array([1.0, 2.0, 5.0]), np.array([[1 / 8, 4 / 8, 1.0]])
    assert r.quantile(values, shares, 0.125)[0] == 1.0
    assert r.quantile(values, shares, 0.13)[0] == 2.0
    assert r.quantile(values, shares, 0.75)[0] == 5.0
    assert r.tail_mean(values, shares, 0.125)[0] == pytest.approx(1.0)
    assert r.tail_mean(values, shares, 0.25)[0] == pytest.approx((1 / 8 * 1 + 1 / 8 * 2) / 0.25)
    assert r.tail_mean(values, shares, 1.0)[0] == pytest.approx(1 / 8 + 3 / 8 * 2 + 4 / 8 * 5)  # the mean


def test_many_returns_share_cells_and_keep_their_mean() -> None:
    returns = np.random.default_rng(0).normal(size=5_000)
    cells = r.cells_of(returns, np.where(returns > 1, 1.0, 0.0), 50)
    assert len(cells.upper) <= 52
    assert (cells.upper > 1).sum() >= 25  # half the bounds where the weight is
    counts = np.bincount(cells.of_episode)
    assert cells.values @ counts / 5_000 == pytest.approx(returns.mean())
    assert np.all(returns <= cells.upper[cells.of_episode])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_shares_ascend_within_0_and_1_whatever_the_correction(seed: int) -> None:
    curve = np.random.default_rng(seed).normal(0.5, 1.0, size=(3, 20))
    shares = r._as_distribution(curve, np.ones(3))
    assert np.all(np.diff(shares, axis=1) >= 0)
    assert np.all((shares >= 0) & (shares <= 1))
    assert np.all(shares[:, -1] == 1.0)


def test_the_logging_policy_as_candidate_has_the_logs_own_distribution() -> None:
    log = simulate(WORLD, UNIFORM, 300, np.random.default_rng(0))
    same = found(make_trial(WORLD, log, UNIFORM, UNIFORM))
    np.testing.assert_allclose(same["wis"].shares, same["on_policy"].shares, atol=1e-12)
    assert [q.value for q in same["wis"].quantiles] == [q.value for q in same["on_policy"].quantiles]


def test_order_of_episodes_does_not_matter_to_the_log_and_the_weighted_one() -> None:
    trial = trial_of(200, 3)
    order = np.random.default_rng(0).permutation(200)
    steps = np.concatenate([np.arange(trial.offsets[i], trial.offsets[i + 1]) for i in order])
    turned = replace(
        trial,
        actions=trial.actions[steps], rewards=trial.rewards[steps], behavior_probs=trial.behavior_probs[steps],
        offsets=np.concatenate([[0], np.cumsum(np.diff(trial.offsets)[order])]), clusters=trial.clusters[order],
        candidate=replace(trial.candidate, probs=trial.candidate.probs[steps], q=trial.candidate.q[steps]),  # type: ignore[index]  # it has one
    )  # fmt: skip
    for name, one in found(trial).items():
        np.testing.assert_allclose(found(turned)[name].shares, one.shares, atol=1e-9)


def test_both_estimates_land_near_the_truth_and_their_intervals_hold_it() -> None:
    distributions = found(trial_of(8_000, 2), level=0.99)
    for name in ("wis", "dr"):
        one = distributions[name]
        at = np.searchsorted(TRUTH, one.returns, side="right") / len(TRUTH)
        assert np.abs(np.array(one.shares) - at).max() < 0.05, name
        for q in one.quantiles:
            assert q.interval.low - 0.02 <= np.quantile(TRUTH, q.level) <= q.interval.high + 0.02, (name, q)
        for t in one.tail_means:
            assert t.interval.low - 0.02 <= worst(TRUTH, t.level) <= t.interval.high + 0.02, (name, t)


def test_a_model_takes_variance_away_and_leaves_no_bias_though_it_is_wrong() -> None:
    u, covered = 0.25, 0
    errors: dict[str, list[float]] = {"wis": [], "dr": []}
    for seed in range(30):
        distributions = found(trial_of(500, seed))
        for name, into in errors.items():
            tail = next(t for t in distributions[name].tail_means if t.level == u)
            into.append(tail.value - worst(TRUTH, u))
            covered += name == "dr" and tail.interval.low <= worst(TRUTH, u) <= tail.interval.high
    spread = {name: np.std(values) for name, values in errors.items()}
    assert spread["dr"] < spread["wis"]
    for name, values in errors.items():
        assert abs(np.mean(values)) < 4 * spread[name] / np.sqrt(30) + 0.02, name
    assert covered >= 20  # of a nominal 90 %: fewer would be 1 in 10,000


def test_clusters_are_drawn_whole() -> None:
    trial = trial_of(300, 1)
    alone = found(trial)["on_policy"]
    together = found(replace(trial, clusters=np.arange(300) // 100))["on_policy"]
    assert alone.shares == together.shares
    assert alone.quantiles[2].interval != together.quantiles[2].interval


def test_products_without_overlap_are_refused_with_the_cause_and_the_log_is_not() -> None:
    distributions = found(trial_of(100, 0), refused="the effective sample size is 3.1 episodes, under 30")
    assert distributions["on_policy"].refused is None
    for name in ("wis", "dr"):
        assert distributions[name].refused == "the effective sample size is 3.1 episodes, under 30"
        assert distributions[name].quantiles == ()


def test_a_policy_that_never_does_what_the_log_did_is_refused() -> None:
    trial = trial_of(50, 0)
    steps = np.full(len(trial.actions), -np.inf)
    for d in r.return_distributions(trial, steps, None, level=0.9, rng=np.random.default_rng(0)):
        assert (d.refused is None) is (d.policy == "log" or d.estimator == "dr")


def test_one_cluster_is_refused_and_equal_rewards_are_one_value() -> None:
    alone = found(replace(trial_of(20, 0), clusters=np.zeros(20)))
    assert all("fewer than two clusters" in (d.refused or "") for d in alone.values())
    trial = trial_of(100, 0)
    n = len(trial.actions)
    same = found(replace(trial, rewards=np.zeros(n)))
    for d in same.values():
        assert {q.value for q in (*d.quantiles, *d.tail_means)} == {0.0}


def test_the_picture_puts_log_and_candidate_side_by_side_and_names_refusals() -> None:
    value = LevelValue(0.05, -9.0, Interval(-9.5, -8.5, 0.95, "cluster bootstrap, percentile"))
    log = ReturnDistribution("log", "on_policy", (-9.0,), (1.0,), (value,), (value,))
    evaluation = replace(
        passed_evaluation(),
        return_distributions=(
            log, replace(log, policy="candidate", estimator="dr"),
            ReturnDistribution("candidate", "wis", (), (), (), (), "no overlap"),
        ),
    )  # fmt: skip
    picture = return_picture(evaluation)
    assert [(row.label, row.detail) for row in picture.rows] == [
        ("mean of the worst 5%", "the log, as logged"),
        ("mean of the worst 5%", "release 7, doubly robust"),
        ("5% return at most", "the log, as logged"),
        ("5% return at most", "release 7, doubly robust"),
    ]
    assert [row.repeats for row in picture.rows] == [False, True, False, True]
    assert [(x.what, x.cause) for x in picture.refused] == [("release 7: weighted importance sampling", "no overlap")]
    assert return_picture(replace(evaluation, return_distributions=())).rows == ()
