from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import estimators as e
from reports import magic as m
from tests.reports.worlds import GAMMA, Log, greedy, simulate, small_world

# The two ragged episodes of test_estimators, gamma 1.
BEHAVIOR = np.array([0.9, 0.7, 0.66, 0.7, 0.54, 0.9, 0.5])
EVALUATION = np.array([1.0, 0.07, 0.89, 1.0, 0.75, 0.9, 0.2])
REWARDS = np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
VALUES = np.array([0.8, -1.0, 0.5, 0.4, -2.0, -1.0, -0.5])
Q_TAKEN = np.array([0.7, -3.0, 0.5, 0.6, -3.0, -2.0, -0.8])
OFFSETS = np.array([0, 4, 7])
UNIFORM = np.full((4, 2), 0.5)


def of_two_episodes(*j_steps: int) -> m.Magic:
    steps = e.cumulative_log_weights(EVALUATION, BEHAVIOR, OFFSETS)
    return m.magic(
        REWARDS, Q_TAKEN, VALUES, steps, OFFSETS, 1.0,
        clusters=np.arange(2), level=0.9, rng=np.random.default_rng(0), j_steps=j_steps or None,
    )  # fmt: skip


def of_log(log: Log, q: e.Floats, policy: e.Floats, seed: int = 0, **options: Any) -> m.Magic:
    taken = log.states, log.actions
    steps = e.cumulative_log_weights(policy[taken], UNIFORM[taken], log.offsets)
    defaults: dict[str, Any] = {
        "clusters": np.arange(len(log.offsets) - 1),
        "level": 0.9,
        "rng": np.random.default_rng(seed),
    }
    return m.magic(
        log.rewards, q[taken], (q * policy).sum(axis=1)[log.states], steps, log.offsets, GAMMA, **(defaults | options)
    )


def best_blend(covariance: e.Floats, bias: e.Floats) -> e.Floats:
    return m._blend(m._root(covariance), bias)


def test_bias_enters_as_its_outer_product() -> None:
    # (.5, .2) gives ((.25, .10), (.10, .04)), so of ((1.25, .1), (.1, 1.04)) the best share is
    # (1.04 - .1) / (2.29 - .2). The elementwise product would leave .10 out and give 1.04 / 2.29.
    blend = best_blend(np.eye(2), np.array([0.5, 0.2]))
    np.testing.assert_allclose(blend, [0.94 / 2.09, 1.15 / 2.09], atol=1e-12)


def test_opposite_biases_cancel_in_the_blend() -> None:
    # .5 x - .2 (1 - x) = 0 at x = 2/7; an elementwise product would give .04 / (.25 + .04) = .138 instead.
    np.testing.assert_allclose(best_blend(np.zeros((2, 2)), np.array([0.5, -0.2])), [2 / 7, 5 / 7], atol=1e-12)


def test_blend_of_independent_unbiased_estimates_weighs_them_by_precision() -> None:
    np.testing.assert_allclose(best_blend(np.diag([1.0, 4.0]), np.zeros(2)), [0.8, 0.2], atol=1e-12)


def test_blend_without_any_error_takes_the_estimate_that_leans_least_on_the_model() -> None:
    np.testing.assert_array_equal(best_blend(np.zeros((3, 3)), np.zeros(3)), [0.0, 0.0, 1.0])


@given(size=st.integers(1, 7), scale=st.sampled_from([1e-9, 1.0, 1e9]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_no_blend_has_less_expected_error(size: int, scale: float, seed: int) -> None:
    # Convex over the simplex: x is best if no vertex has a gradient below x's own.
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, rng.integers(1, size + 1)))
    covariance, bias = scale * root @ root.T, np.sqrt(scale) * rng.normal(size=size)
    blend = best_blend(covariance, bias)
    gradient = covariance @ blend + bias * (bias @ blend)
    assert np.all(blend >= 0)
    assert blend.sum() == pytest.approx(1.0)
    assert gradient.min() >= blend @ gradient - 1e-9 * scale * size


def test_bias_is_the_distance_to_the_interval_with_its_sign() -> None:
    np.testing.assert_allclose(m.bias_beyond(np.array([-2.0, 0.5, 4.0]), 0.0, 1.0), [-2.0, 0.0, 3.0])


def test_j_step_estimates_of_two_episodes() -> None:
    found = of_two_episodes()
    assert found.j_steps == (-1, 0, 1, 2, 3)
    # Step 0: weights 1.1111 and 1.38889 make .44444 and .55556; corrections 1 - .7 - 1 = -.7 and -1 + 3 - 1 = 1.
    first = -0.6 + 0.44444444 * -0.7 + 0.55555556 * 1.0
    np.testing.assert_allclose(found.j_step_values[:2], [-0.6, first], atol=1e-8)
    assert found.j_step_values[-1] == pytest.approx(0.4374941439, abs=1e-10)


def test_minus_one_alone_is_the_direct_method_and_the_last_step_alone_is_wdr() -> None:
    assert of_two_episodes(-1).value == pytest.approx((0.8 - 2.0) / 2)
    steps = e.cumulative_log_weights(EVALUATION, BEHAVIOR, OFFSETS)
    wdr = e.weighted_doubly_robust(REWARDS, Q_TAKEN, VALUES, steps, OFFSETS, 1.0).value
    assert of_two_episodes(3).value == pytest.approx(wdr, abs=1e-12)
    assert of_two_episodes(1_000).value == pytest.approx(wdr, abs=1e-12)


def test_steps_in_blocks_are_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    log, world = simulate(small_world(), UNIFORM, 60, np.random.default_rng(0)), small_world()
    policy = greedy(world, 0.5)
    whole = of_log(log, world.q(policy) + 0.3, policy)
    monkeypatch.setattr(m, "_BLOCK", 60 * 3)  # three steps at a time
    blocks = of_log(log, world.q(policy) + 0.3, policy)
    np.testing.assert_allclose(blocks.j_step_values, whole.j_step_values, rtol=1e-12)
    assert blocks.value == pytest.approx(whole.value, rel=1e-9)


def test_grid_of_steps_keeps_both_ends_and_stays_small() -> None:
    assert m.j_step_grid(1) == (-1, 0)
    assert m.j_step_grid(15) == tuple(range(-1, 15))
    long = m.j_step_grid(2_880)
    assert long[:3] == (-1, 0, 1)
    assert long[-1] == 2_879
    assert len(long) <= 17


def test_bootstrap_inside_draws_whole_clusters() -> None:
    # Twins in one cluster say no more than one of them: same interval, not one narrower by the root of 2.
    world = small_world()
    policy = greedy(world, 0.5)
    log = simulate(world, UNIFORM, 300, np.random.default_rng(0))
    steps = np.tile(np.arange(len(log.actions)), 2)
    twins = Log(
        log.states[steps], log.actions[steps], log.rewards[steps],
        np.concatenate([log.offsets, log.offsets[1:] + log.offsets[-1]]),
    )  # fmt: skip
    one = of_log(log, world.q(policy), policy)
    two = of_log(twins, world.q(policy), policy, clusters=np.tile(np.arange(300), 2))
    assert one.interval is not None
    assert two.interval is not None
    assert two.value == pytest.approx(one.value)
    assert two.interval.low == pytest.approx(one.interval.low)
    assert two.interval.high == pytest.approx(one.interval.high)


def test_order_of_episodes_does_not_matter_to_the_j_step_estimates() -> None:
    turned, offsets = np.r_[4:7, 0:4], np.array([0, 3, 7])
    steps = e.cumulative_log_weights(EVALUATION[turned], BEHAVIOR[turned], offsets)
    found = m.magic(
        REWARDS[turned], Q_TAKEN[turned], VALUES[turned], steps, offsets, 1.0,
        clusters=np.arange(2), level=0.9, rng=np.random.default_rng(0),
    )  # fmt: skip
    np.testing.assert_allclose(found.j_step_values, of_two_episodes().j_step_values)


def test_a_right_model_is_believed_and_a_wrong_one_is_not() -> None:
    world = small_world()
    policy = greedy(world, 0.3)
    truth, log = world.value(policy), simulate(world, UNIFORM, 2_000, np.random.default_rng(0))
    right, wrong = of_log(log, world.q(policy), policy), of_log(log, world.q(policy) + 3.0, policy)
    assert right.blend[:3].sum() > 0.5
    assert wrong.blend[0] < 0.05
    assert right.value == pytest.approx(truth, abs=0.05)
    assert wrong.value == pytest.approx(truth, abs=0.4)
    assert wrong.j_step_values[0] == pytest.approx(truth + 3.0, abs=0.1)


@pytest.mark.parametrize("model_error", [0.0, 0.2])
def test_interval_covers_the_truth_as_often_as_it_claims_whatever_the_model(model_error: float) -> None:
    world = small_world()
    policy = greedy(world, 0.6)
    truth, n_logs = world.value(policy), 60
    q = world.q(policy) + model_error * np.cos(np.arange(8)).reshape(4, 2)
    hits = 0
    for seed in range(n_logs):
        found = of_log(simulate(world, UNIFORM, 300, np.random.default_rng(seed)), q, policy, seed)
        assert found.interval is not None
        hits += found.interval.low <= truth <= found.interval.high
    assert hits >= 47  # of a nominal 90 %: 46 or fewer would be 1 in 1,000


def test_a_step_without_any_weight_is_refused() -> None:
    evaluation = np.where(np.arange(7) == 0, 0.0, EVALUATION)  # the first episode weighs nothing
    steps = e.cumulative_log_weights(evaluation, BEHAVIOR, OFFSETS)
    found = m.magic(
        REWARDS, Q_TAKEN, VALUES, steps, OFFSETS, 1.0,
        clusters=np.arange(2), level=0.9, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.value is None
    assert found.interval is None
    assert "no episode has any weight" in (found.refused or "")


def test_weights_that_would_overflow_are_normalized_first() -> None:
    steps = e.cumulative_log_weights(EVALUATION, np.full(7, 1e-300), OFFSETS)
    found = m.magic(
        REWARDS, Q_TAKEN, VALUES, steps, OFFSETS, 1.0,
        clusters=np.arange(2), level=0.9, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.value is not None
    assert np.isfinite(found.value)


def test_one_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cluster: MAGIC bootstraps clusters and needs at least two"):
        m.magic(
            np.ones(1), np.ones(1), np.ones(1), np.zeros(1), np.array([0, 1]), 1.0,
            clusters=np.zeros(1), level=0.9, rng=np.random.default_rng(0),
        )  # fmt: skip
