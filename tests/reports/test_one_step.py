from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import estimators as e
from reports import one_step as o
from reports.assessment import assess
from reports.evaluate_config import AssessmentConfig
from reports.gate import GateConfig
from reports.trial import Trial
from tests.reports.worlds import greedy, make_trial, simulate, small_world

# Four decisions with weights .5, 1, 2 and 8; rewards, Q of the logged action, V.
WEIGHTS = np.array([0.5, 1.0, 2.0, 8.0])
LOG_WEIGHTS = np.log(WEIGHTS)
REWARDS = np.array([1.0, 0.0, 1.0, 1.0])
Q_TAKEN = np.array([0.5, 0.25, 0.5, 0.75])
VALUES = np.array([0.4, 0.3, 0.6, 0.7])  # mean .5
UNIFORM = np.full((4, 2), 0.5)
Estimate = Callable[..., e.RatioSum]
ESTIMATES = (o.switch_doubly_robust, o.shrunk_doubly_robust)


def test_one_step_estimates_by_hand() -> None:
    # weight times reward: .5, 0, 2, 8; weights sum to 11.5
    assert e.importance_sampling(REWARDS, LOG_WEIGHTS).value == pytest.approx(10.5 / 4)
    assert e.weighted_importance_sampling(REWARDS, LOG_WEIGHTS).value == pytest.approx(10.5 / 11.5)
    # .5 + (.5 * .5 - 1 * .25 + 2 * .5 + 8 * .25) / 4
    robust = e.doubly_robust(REWARDS, Q_TAKEN, VALUES, LOG_WEIGHTS, np.arange(5), 1.0)
    assert robust.value == pytest.approx(0.5 + 3.0 / 4)


def test_weights_above_the_threshold_are_switched_off() -> None:
    np.testing.assert_allclose(o.switched(LOG_WEIGHTS, np.log(2.0)), [0.5, 1.0, 2.0, 0.0])
    np.testing.assert_allclose(o.switched(LOG_WEIGHTS, np.inf), WEIGHTS)


def test_shrunk_weights_by_hand() -> None:
    # s w / (w^2 + s) at s = 4: 2/4.25, 4/5, 8/8, 32/68
    np.testing.assert_allclose(o.shrunk(LOG_WEIGHTS, 4.0), [2 / 4.25, 0.8, 1.0, 32 / 68])
    np.testing.assert_allclose(o.shrunk(LOG_WEIGHTS, np.inf), WEIGHTS)
    np.testing.assert_array_equal(o.shrunk(LOG_WEIGHTS, 0.0), np.zeros(4))


def test_the_last_estimate_is_taken_whose_interval_still_meets_all_before() -> None:
    # Means 0, .5, 1.5; variance of a mean of two is (difference / 2)^2, so errors are 2, 1, .2:
    # [-2, 2], [-.5, 1.5], [1.3, 1.7]: all share 1.3 to 1.5. With the third at 3 it meets neither.
    terms = np.array([[-2.0, 2.0], [-0.5, 1.5], [1.3, 1.7]])
    assert o.least_variance_without_visible_bias(terms, np.arange(2)) == 2
    terms[2] += 1.5
    assert o.least_variance_without_visible_bias(terms, np.arange(2)) == 1
    assert o.least_variance_without_visible_bias(np.vstack([[np.inf, 0.0], terms]), np.arange(2)) == 2


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_heavy_weights_are_tamed_where_the_model_is_right_and_kept_where_it_is_wrong(estimate: Estimate) -> None:
    # A policy that takes action 1 with probability .5 where the log took it with .01: weights .505 and 50.
    rng = np.random.default_rng(0)
    n, rare = 4_000, 0.01
    taken = rng.random(n) < rare
    log_weights = np.log(np.where(taken, 0.5 / rare, 0.5 / (1 - rare)))
    rewards = np.where(taken, 2.0, 1.0) + rng.normal(0, 0.5, n)
    right = estimate(rewards, np.where(taken, 2.0, 1.0), np.full(n, 1.5), log_weights, np.arange(n))
    wrong = estimate(rewards, np.where(taken, -1.0, 1.0), np.full(n, 0.0), log_weights, np.arange(n))
    robust = e.doubly_robust(
        rewards, np.where(taken, 2.0, 1.0), np.full(n, 1.5), log_weights, np.arange(n + 1), 1.0
    )  # fmt: skip
    assert right.terms.std() < 0.7 * robust.terms.std()
    assert right.value == pytest.approx(1.5, abs=0.05)
    assert wrong.value == pytest.approx(1.5, abs=1.0)  # the model alone would say 0


def test_no_decision_has_a_voice_in_its_own_weight() -> None:
    # One wild reward moves the choice for the other folds only: its own term is linear in it.
    rng = np.random.default_rng(1)
    rewards, q, v = rng.normal(size=(3, 200))
    log_weights, clusters = rng.normal(0, 1.5, 200), np.arange(200)
    for estimate in ESTIMATES:
        terms = []
        for wild in (0.0, 50.0, 100.0):
            rewards[7] = wild
            terms.append(estimate(rewards, q, v, log_weights, clusters).terms[7])
        assert terms[2] - terms[1] == pytest.approx(terms[1] - terms[0])


@pytest.mark.parametrize("estimate", ESTIMATES)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_equal_policies_and_a_right_model_leave_nothing_to_correct(estimate: Estimate, seed: int, n: int) -> None:
    values = np.random.default_rng(seed).normal(size=n)
    assert estimate(values, values, values, np.zeros(n), np.arange(n)).value == pytest.approx(values.mean())


@pytest.mark.parametrize("estimate", ESTIMATES)
@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_estimates_move_and_stretch_with_rewards_and_model(
    estimate: Estimate, seed: int, shift: float, scale: float
) -> None:
    rewards, q, v, log_weights = np.random.default_rng(seed).normal(size=(4, 30))
    plain = estimate(rewards, q, v, log_weights, np.arange(30)).value
    moved = estimate(*(scale * x + shift for x in (rewards, q, v)), log_weights, np.arange(30)).value
    assert moved == pytest.approx(scale * plain + shift, abs=1e-8 * (1 + scale + abs(shift)))


@pytest.mark.parametrize("estimate", ESTIMATES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_order_of_decisions_does_not_matter(estimate: Estimate, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, order = rng.normal(size=(4, 30)), rng.permutation(30)
    assert estimate(*table[:, order], order).value == pytest.approx(estimate(*table, np.arange(30)).value)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_overflowing_and_vanishing_weights_fall_back_on_the_model(estimate: Estimate) -> None:
    for log_weights in (np.full(20, 2_000.0), np.full(20, -np.inf)):
        found = estimate(np.ones(20), np.zeros(20), np.full(20, 0.3), log_weights, np.arange(20)).value
        assert found == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_one_decision_is_plain_dr(estimate: Estimate) -> None:
    one = np.zeros(1, dtype=int)
    assert estimate(np.ones(1), np.zeros(1), np.full(1, 0.3), np.log([2.0]), one).value == pytest.approx(2.3)


def one_step_trial(n: int) -> tuple[Trial, float]:
    """The first decisions of a tabular world as a log of their own, and the candidate's true value there."""
    world = small_world()
    log = simulate(world, UNIFORM, n, np.random.default_rng(1))
    candidate = greedy(world, 0.5)
    first = log.offsets[:-1]
    trial = make_trial(world, log, UNIFORM, candidate)
    rewards = world.rewards + 0.1 * np.cos(np.arange(8)).reshape(4, 2)
    trial = replace(
        trial,
        actions=log.actions[first],
        rewards=log.rewards[first],
        available=trial.available[first],
        behavior_probs=trial.behavior_probs[first],
        offsets=np.arange(n + 1),
        candidate=replace(
            trial.candidate, probs=candidate[log.states[first]], q=rewards[log.states[first]]
        ),
    )  # fmt: skip
    return trial, float(world.first @ (candidate * world.rewards).sum(axis=1))


def test_forms_of_one_step_stand_beside_dr_where_every_episode_is_one_step() -> None:
    trial, truth = one_step_trial(3_000)
    result = assess(trial, AssessmentConfig(n_replicates=2_000), GateConfig(alpha=0.05), np.random.default_rng(0))
    found = {x.estimator: x for x in result.estimates if x.policy == "candidate"}
    assert set(found) == {"direct", "is", "wis", "dr", "wdr", "switch_dr", "dros", "magic"}
    for name in ("is", "wis", "dr", "wdr", "switch_dr", "dros", "magic"):
        interval = found[name].interval
        assert found[name].value == pytest.approx(truth, abs=0.06), name
        assert interval is not None, name
        assert interval.low < truth < interval.high, name
        assert found[name].binding is (name == "dr")
    assert "IPS" in found["is"].note
    assert "SNIPS" in found["wis"].note
    assert result.agreement.checking == "wis"


def test_episodes_of_several_steps_have_no_forms_of_one_step() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 500, np.random.default_rng(0))
    trial = make_trial(world, log, UNIFORM, greedy(world, 0.5))
    result = assess(trial, AssessmentConfig(n_replicates=2_000), GateConfig(alpha=0.05), np.random.default_rng(0))
    assert not {"switch_dr", "dros"} & {x.estimator for x in result.estimates}
    assert "magic" in {x.estimator for x in result.estimates}
