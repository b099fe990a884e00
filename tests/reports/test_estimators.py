from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import estimators as e
from tests.reports.worlds import GAMMA, greedy, simulate, small_world

# Two ragged episodes of 4 and 3 steps, gamma 1, worked out by hand from the formulas.
BEHAVIOR = np.array([0.9, 0.7, 0.66, 0.7, 0.54, 0.9, 0.5])
EVALUATION = np.array([1.0, 0.07, 0.89, 1.0, 0.75, 0.9, 0.2])
REWARDS = np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
VALUES = np.array([0.8, -1.0, 0.5, 0.4, -2.0, -1.0, -0.5])
Q_TAKEN = np.array([0.7, -3.0, 0.5, 0.6, -3.0, -2.0, -0.8])
OFFSETS = np.array([0, 4, 7])


@pytest.fixture(scope="module")
def steps() -> e.Floats:
    return e.cumulative_log_weights(EVALUATION, BEHAVIOR, OFFSETS)


@pytest.fixture(scope="module")
def whole(steps: e.Floats) -> e.Floats:
    return e.episode_log_weights(steps, OFFSETS)


def test_weights_of_whole_episodes(whole: e.Floats) -> None:
    # 1/.9 * .07/.7 * .89/.66 * 1/.7 and .75/.54 * 1 * .2/.5
    np.testing.assert_allclose(np.exp(whole), [0.21404521, 0.55555556], atol=1e-8)


def test_on_policy_return() -> None:
    np.testing.assert_array_equal(e.on_policy_returns(REWARDS, OFFSETS, 1.0), [2.0, -3.0])  # mean -.5


def test_importance_sampling(whole: e.Floats) -> None:
    # (.21404521 * 2 - .55555556 * 3) / 2
    assert e.importance_sampling(np.array([2.0, -3.0]), whole).value == pytest.approx(-0.6192881193, abs=1e-10)


def test_weighted_importance_sampling(whole: e.Floats) -> None:
    # (.21404521 * 2 - .55555556 * 3) / (.21404521 + .55555556)
    assert e.weighted_importance_sampling(np.array([2.0, -3.0]), whole).value == pytest.approx(-1.609375, abs=1e-10)


def test_per_decision(steps: e.Floats) -> None:
    # cumulative weights 1.1111, .11111, .14983, .21405 and 1.38889, 1.38889, .55556
    assert e.per_decision(REWARDS, steps, OFFSETS, 1.0).value == pytest.approx(-0.9847282347, abs=1e-10)


@pytest.mark.parametrize(("ended", "value"), [("hold", -1.4081651087), ("zero", -0.6862901087)])
def test_weighted_per_decision(steps: e.Floats, ended: e.EndedWeight, value: float) -> None:
    # At step 4 only episode 1 goes on: it weighs .214 / (.214 + .556) where episode 2 holds its weight, 1 where not.
    found = e.weighted_per_decision(REWARDS, steps, OFFSETS, 1.0, ended=ended)
    assert found.value == pytest.approx(value, abs=1e-10)


def test_doubly_robust(steps: e.Floats) -> None:
    found = e.doubly_robust(REWARDS, Q_TAKEN, VALUES, steps, OFFSETS, 1.0)
    # sum_t w_t (r_t - Q_t) + w_{t-1} V_t, w_{-1} = 1, averaged over the two
    weights = [np.exp(steps[:4]), np.exp(steps[4:])]
    by_hand = [
        w @ (REWARDS[s] - Q_TAKEN[s]) + np.append(1.0, w[:-1]) @ VALUES[s]
        for w, s in zip(weights, (slice(0, 4), slice(4, 7)), strict=True)
    ]
    np.testing.assert_allclose(found.terms, by_hand)
    assert found.value == pytest.approx(0.2463443964, abs=1e-10)


def test_weighted_doubly_robust(steps: e.Floats) -> None:
    found = e.weighted_doubly_robust(REWARDS, Q_TAKEN, VALUES, steps, OFFSETS, 1.0)
    assert found.value == pytest.approx(0.4374941439, abs=1e-10)


def test_effective_sample_size(whole: e.Floats) -> None:
    # (.214 + .556)^2 / (.214^2 + .556^2)
    assert e.effective_sample_size(whole) == pytest.approx(1.6709637414, abs=1e-10)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    gamma=st.floats(0.1, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_same_policy_gives_the_mean_return(lengths: list[int], gamma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    probs, rewards = rng.uniform(0.01, 1, offsets[-1]), rng.normal(size=offsets[-1])
    steps = e.cumulative_log_weights(probs, probs, offsets)
    whole = e.episode_log_weights(steps, offsets)
    returns = e.on_policy_returns(rewards, offsets, gamma)
    assert np.all(steps == 0.0)
    assert e.importance_sampling(returns, whole).value == returns.mean()
    assert e.weighted_importance_sampling(returns, whole).value == pytest.approx(returns.mean(), abs=1e-12)
    assert e.per_decision(rewards, steps, offsets, gamma).value == pytest.approx(returns.mean(), abs=1e-12)
    assert e.weighted_per_decision(rewards, steps, offsets, gamma).value == pytest.approx(returns.mean(), abs=1e-12)


def all_estimates(
    evaluation: e.Floats, behavior: e.Floats, rewards: e.Floats, q: e.Floats, v: e.Floats, offsets: e.Ints, gamma: float
) -> dict[str, float]:
    steps = e.cumulative_log_weights(evaluation, behavior, offsets)
    whole = e.episode_log_weights(steps, offsets)
    returns = e.on_policy_returns(rewards, offsets, gamma)
    model = rewards, q, v, steps, offsets, gamma
    return {
        "on_policy": float(returns.mean()),
        "is": e.importance_sampling(returns, whole).value,
        "wis": e.weighted_importance_sampling(returns, whole).value,
        "pdis": e.per_decision(rewards, steps, offsets, gamma).value,
        "wpdis": e.weighted_per_decision(rewards, steps, offsets, gamma).value,
        "wpdis, zero": e.weighted_per_decision(rewards, steps, offsets, gamma, ended="zero").value,
        "dr": e.doubly_robust(*model).value,
        "wdr": e.weighted_doubly_robust(*model).value,
    }


LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**32 - 1)


@given(lengths=LENGTHS, gamma=st.floats(0.1, 1.0), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_order_of_episodes_does_not_matter(lengths: list[int], gamma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    steps = [rng.uniform(0.05, 1, (2, n)) for n in lengths], [rng.normal(size=(3, n)) for n in lengths]
    order = rng.permutation(len(lengths))
    turned = np.concatenate([[0], np.cumsum(np.array(lengths)[order])])
    one = all_estimates(*np.hstack(steps[0]), *np.hstack(steps[1]), offsets, gamma)
    other = all_estimates(
        *np.hstack([steps[0][i] for i in order]), *np.hstack([steps[1][i] for i in order]), turned, gamma
    )
    assert other == pytest.approx(one, rel=1e-9, abs=1e-9)


@given(lengths=LENGTHS, gamma=st.floats(0.1, 1.0), scale=st.floats(-5.0, 5.0), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_every_estimate_stretches_with_rewards_and_model(
    lengths: list[int], gamma: float, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    probs, values = rng.uniform(0.05, 1, (2, offsets[-1])), rng.normal(size=(3, offsets[-1]))
    plain = all_estimates(*probs, *values, offsets, gamma)
    stretched = all_estimates(*probs, *(scale * values), offsets, gamma)
    assert stretched == pytest.approx({name: scale * x for name, x in plain.items()}, rel=1e-9, abs=1e-7)


@given(n=st.integers(1, 8), length=st.integers(1, 6), gamma=st.floats(0.1, 1.0), shift=st.floats(-5, 5), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_normalized_estimates_move_with_a_bonus_on_each_step_of_equally_long_episodes(
    n: int, length: int, gamma: float, shift: float, seed: int
) -> None:
    # A bonus on each step adds the same to every return; IS and PDIS, whose weights do not sum to 1, do not follow. A
    # model that knows the bonus lets DR and WDR follow.
    rng = np.random.default_rng(seed)
    offsets = np.arange(n + 1) * length
    probs, (rewards, q, v) = rng.uniform(0.05, 1, (2, n * length)), rng.normal(size=(3, n * length))
    left = length - np.tile(np.arange(length), n)  # steps to go, this one included
    to_come = shift * np.array([(gamma ** np.arange(k)).sum() for k in left])
    plain = all_estimates(*probs, rewards, q, v, offsets, gamma)
    moved = all_estimates(*probs, rewards + shift, q + to_come, v + to_come, offsets, gamma)
    for name in ("on_policy", "wis", "wpdis", "wpdis, zero", "dr", "wdr"):
        assert moved[name] == pytest.approx(plain[name] + to_come[0], rel=1e-9, abs=1e-7), name


@given(lengths=LENGTHS, gamma=st.floats(0.1, 1.0), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_model_without_error_is_left_as_it_is(lengths: list[int], gamma: float, seed: int) -> None:
    # Rewards that the model explains step by step: r = Q - gamma V', so DR and WDR say the model's first value.
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    probs, (q, v) = rng.uniform(0.05, 1, (2, offsets[-1])), rng.normal(size=(2, offsets[-1]))
    following = np.append(v[1:], 0.0)
    following[offsets[1:] - 1] = 0.0
    found = all_estimates(*probs, q - gamma * following, q, v, offsets, gamma)
    for name in ("dr", "wdr"):
        assert found[name] == pytest.approx(v[offsets[:-1]].mean(), abs=1e-9), name


def test_equal_rewards_and_one_episode() -> None:
    one = all_estimates(
        *np.array([[0.5, 0.2], [0.5, 0.4]]), np.ones(2), np.zeros(2), np.zeros(2), np.array([0, 2]), 1.0
    )
    # weights 1 and .5; the return is 2, PDIS 1 + .5
    assert one == pytest.approx(
        {"on_policy": 2, "is": 1, "wis": 2, "pdis": 1.5, "wpdis": 2, "wpdis, zero": 2, "dr": 1.5, "wdr": 2}
    )


def test_a_policy_that_never_does_what_the_log_did_has_no_normalized_estimate() -> None:
    found = all_estimates(np.zeros(7), BEHAVIOR, REWARDS, Q_TAKEN, VALUES, OFFSETS, 1.0)
    assert found["is"] == found["pdis"] == 0.0  # no weight, no reward: the overlap checks refuse it
    assert found["dr"] == pytest.approx(-0.6)
    assert np.isnan([found["wis"], found["wpdis"], found["wdr"]]).all()


def test_action_the_policy_never_takes_ends_the_weight_of_its_episode_only() -> None:
    steps = e.cumulative_log_weights(np.array([0.5, 0.0, 0.5, 0.5]), np.full(4, 0.5), np.array([0, 3, 4]))
    np.testing.assert_array_equal(steps, [0.0, -np.inf, -np.inf, 0.0])


def test_huge_weights_do_not_overflow_where_they_are_normalized() -> None:
    log_weights = np.array([2000.0, 1999.0])
    found = e.weighted_importance_sampling(np.array([1.0, 0.0]), log_weights).value
    assert found == pytest.approx(1 / (1 + np.exp(-1)))
    assert not np.isfinite(e.importance_sampling(np.array([1.0, 0.0]), log_weights).value)


def test_no_weight_at_all_is_not_a_number() -> None:
    nothing = np.array([-np.inf, -np.inf])
    assert np.isnan(e.weighted_importance_sampling(np.array([1.0, 2.0]), nothing).value)
    assert e.effective_sample_size(nothing) == 0.0


def test_refuses_impossible_probabilities() -> None:
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        e.cumulative_log_weights(np.ones(1), np.zeros(1), np.array([0, 1]))
    with pytest.raises(ValueError, match="2 evaluation and 1 behavior"):
        e.cumulative_log_weights(np.ones(2), np.ones(1), np.array([0, 1]))
    with pytest.raises(ValueError, match="at least one episode"):
        e.on_policy_returns(np.ones(0), np.array([0]), 1.0)


def test_estimators_land_near_the_true_value_of_a_tabular_world() -> None:
    world = small_world()
    behavior, evaluation = np.full((4, 2), 0.5), greedy(world, 0.5)
    log = simulate(world, behavior, 40_000, np.random.default_rng(1))
    taken = log.states, log.actions
    steps = e.cumulative_log_weights(evaluation[taken], behavior[taken], log.offsets)
    whole = e.episode_log_weights(steps, log.offsets)
    returns = e.on_policy_returns(log.rewards, log.offsets, GAMMA)
    q = world.q(evaluation)
    model = log.rewards, q[taken], (q * evaluation).sum(axis=1)[log.states], steps, log.offsets, GAMMA
    truth = world.value(evaluation)
    assert returns.mean() == pytest.approx(world.value(behavior), abs=0.03)
    assert e.importance_sampling(returns, whole).value == pytest.approx(truth, abs=0.2)
    assert e.weighted_importance_sampling(returns, whole).value == pytest.approx(truth, abs=0.2)
    assert e.per_decision(log.rewards, steps, log.offsets, GAMMA).value == pytest.approx(truth, abs=0.1)
    assert e.weighted_per_decision(log.rewards, steps, log.offsets, GAMMA).value == pytest.approx(truth, abs=0.1)
    assert e.doubly_robust(*model).value == pytest.approx(truth, abs=0.05)
    assert e.weighted_doubly_robust(*model).value == pytest.approx(truth, abs=0.05)
