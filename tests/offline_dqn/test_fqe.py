from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from datasets.contract import Contract
from datasets.encoding import Encoder, fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.fqe import FittedQ, FqeConfig, FqeError, QEvaluation
from tests.offline_dqn.worlds import TabularWorld, make_replay, states_of

CONFIG = FqeConfig()


def fit_q_evaluation(replay: Replay, probs: np.ndarray, config: FqeConfig, *, encoder: Encoder, seed: int) -> FittedQ:
    return QEvaluation(replay, config, encoder=encoder, seed=seed).fit(probs)


def policies(n_states: int, n_actions: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.dirichlet(np.full(n_actions, 2.0), size=n_states), rng.dirichlet(np.ones(n_actions), size=n_states)


@pytest.mark.parametrize(("gamma", "end_prob", "horizon"), [(0.9, 0.05, 40), (1.0, 0.0, 20), (0.99, 0.02, 60)])
def test_values_match_dynamic_programming_up_to_the_cut(gamma: float, end_prob: float, horizon: int) -> None:
    world = TabularWorld.random(n_states=8, n_actions=3, gamma=gamma, end_prob=end_prob, seed=0)
    behavior, evaluation = policies(8, 3)
    replay = world.roll(behavior, 400, horizon, seed=0, noise=0.3)
    fresh = world.roll(behavior, 100, horizon, seed=1)
    fitted = fit_q_evaluation(
        replay,
        evaluation[states_of(replay)],
        CONFIG,
        encoder=fit_encoder(replay.contract, replay.observations),
        seed=0,
    )
    # What is earned from step t on, when the log is cut after `horizon` steps.
    by_time = np.stack([world.values(evaluation, horizon - t) for t in range(horizon)])
    truth = by_time[fresh.step_in_episode, states_of(fresh)]
    error = fitted.q_values(fresh) - truth
    assert (error**2).mean() < 0.05 * truth.var()


def test_values_without_a_cut_solve_the_linear_system() -> None:
    world = TabularWorld.random(n_states=5, n_actions=2, gamma=0.95, end_prob=0.2, seed=2)
    behavior, evaluation = policies(5, 2)
    replay = world.roll(behavior, 1_500, horizon=200, seed=0)
    assert replay.terminated[replay.offsets[1:] - 1].all()
    fitted = fit_q_evaluation(
        replay,
        evaluation[states_of(replay)],
        CONFIG,
        encoder=fit_encoder(replay.contract, replay.observations),
        seed=0,
    )
    truth = world.values(evaluation)
    early = replay.step_in_episode < 5
    found = fitted.q_values(replay)[early]
    assert np.abs(found - truth[states_of(replay)[early]]).mean() < 0.1 * truth.std()


def test_last_logged_step_never_bootstraps_whatever_its_flag() -> None:
    world = TabularWorld.random(n_states=5, n_actions=2, gamma=0.99, end_prob=0.0, seed=2)
    behavior, evaluation = policies(5, 2)
    replay = world.roll(behavior, 200, horizon=10, seed=0)
    encoder = fit_encoder(replay.contract, replay.observations)
    last = np.zeros(replay.n_steps, dtype=bool)
    last[replay.offsets[1:] - 1] = True
    flagged = replace(replay, terminated=last, truncated=~last, next_row=np.where(last, -1, replay.next_row))
    probs = evaluation[states_of(replay)]
    truncated = fit_q_evaluation(replay, probs, CONFIG, encoder=encoder, seed=0)
    terminated = fit_q_evaluation(flagged, probs, CONFIG, encoder=encoder, seed=0)
    np.testing.assert_array_equal(truncated.q_values(replay), terminated.q_values(replay))
    rows = states_of(replay)[last]
    assert np.abs(truncated.q_values(replay)[last] - world.reward[rows]).mean() < 0.3


def one_step_clicks(rates: np.ndarray, n_rows: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    n_actions = len(rates)
    contract = Contract.model_validate(
        {
            "name": "clicks",
            "gamma": 1.0,
            "features": {"x": {"type": "vector", "length": 10}},
            "actions": {"names": [f"i{a}" for a in range(n_actions)]},
            "episodes": {"kind": "one_step"},
        }
    )
    actions = rng.integers(0, n_actions, n_rows)
    clicks = rng.random(n_rows) < rates[actions]
    observations = Observations({"x": rng.normal(size=(n_rows, 10))}, {})
    return make_replay(contract, observations, actions, clicks, np.ones(n_rows, dtype=int))


def test_rare_clicks_shrink_towards_the_mean() -> None:
    replay = one_step_clicks(np.full(34, 0.005), 10_000, seed=0)
    fitted = fit_q_evaluation(
        replay,
        np.full((10_000, 34), 1 / 34),
        FqeConfig(),
        encoder=fit_encoder(replay.contract, replay.observations),
        seed=0,
    )
    q_values = fitted.q_values(one_step_clicks(np.full(34, 0.005), 2_000, seed=1))
    assert fitted.ridge >= 3e4
    assert q_values.mean() == pytest.approx(replay.rewards.mean(), abs=1e-3)
    assert q_values.std() < 0.001  # a table of action means alone would have .0041, a free fit far more
    assert q_values.min() >= 0.0


def test_frequent_clicks_are_told_apart() -> None:
    rates = np.linspace(0.1, 0.9, 5)
    replay = one_step_clicks(rates, 5_000, seed=0)
    fitted = fit_q_evaluation(
        replay, np.full((5_000, 5), 0.2), CONFIG, encoder=fit_encoder(replay.contract, replay.observations), seed=0
    )
    np.testing.assert_allclose(fitted.q_values(replay).mean(axis=0), rates, atol=0.06)


def test_same_seed_gives_the_same_values() -> None:
    replay = one_step_clicks(np.array([0.2, 0.4]), 500, seed=0)
    encoder, probs = fit_encoder(replay.contract, replay.observations), np.full((500, 2), 0.5)
    one = fit_q_evaluation(replay, probs, CONFIG, encoder=encoder, seed=3).q_values(replay)
    np.testing.assert_array_equal(
        one, fit_q_evaluation(replay, probs, CONFIG, encoder=encoder, seed=3).q_values(replay)
    )


def test_long_logs_are_fitted_on_whole_random_episodes() -> None:
    world = TabularWorld.random(n_states=5, n_actions=2, gamma=0.9, end_prob=0.1, seed=2)
    behavior, evaluation = policies(5, 2)
    replay = world.roll(behavior, 800, horizon=30, seed=0)
    config = FqeConfig(n_random_features=20, max_steps=2_000)
    fitted = fit_q_evaluation(
        replay, evaluation[states_of(replay)], config, encoder=fit_encoder(replay.contract, replay.observations), seed=0
    )
    truth = world.values(evaluation)[states_of(replay)]
    assert np.abs(fitted.q_values(replay) - truth).mean() < 0.35 * truth.std()


def test_unstable_fit_stays_within_what_can_be_earned() -> None:
    # The evaluation policy takes an action that the log hardly ever took; the model must extrapolate at gamma = 1.
    rng = np.random.default_rng(0)
    contract = Contract.model_validate(
        {
            "name": "walk",
            "gamma": 1.0,
            "features": {"x": {"type": "numeric"}},
            "actions": {"names": ["left", "right"]},
        }
    )
    n_episodes, length = 100, 80
    actions = (rng.random(n_episodes * length) < 0.01).astype(np.int64)
    x = np.cumsum(rng.normal(size=(n_episodes, length)), axis=1).ravel()
    replay = make_replay(contract, Observations({"x": x}, {}), actions, np.sin(x), np.full(n_episodes, length))
    probs = np.tile([0.0, 1.0], (replay.n_steps, 1))
    fitted = fit_q_evaluation(replay, probs, CONFIG, encoder=fit_encoder(contract, replay.observations), seed=0)
    q_values = fitted.q_values(replay)
    assert np.isfinite(q_values).all()
    assert np.abs(q_values).max() <= length
    assert np.abs(q_values).mean() < 25  # the walk earns about 0 on average


def test_bad_input_is_refused() -> None:
    replay = one_step_clicks(np.array([0.2, 0.4]), 50, seed=0)
    encoder = fit_encoder(replay.contract, replay.observations)
    with pytest.raises(ValueError, match=r"\(50, 2\), found \(50, 3\)"):
        fit_q_evaluation(replay, np.full((50, 3), 1 / 3), CONFIG, encoder=encoder, seed=0)
    with pytest.raises(ValueError, match="do not sum to 1"):
        fit_q_evaluation(replay, np.full((50, 2), 0.4), CONFIG, encoder=encoder, seed=0)
    broken = replace(replay, rewards=np.where(np.arange(50) == 7, np.nan, replay.rewards))
    with pytest.raises(FqeError, match="reward is not finite in 1 of 50 steps"):
        fit_q_evaluation(broken, np.full((50, 2), 0.5), CONFIG, encoder=encoder, seed=0)


def test_one_preparation_serves_every_policy() -> None:
    world = TabularWorld.random(n_states=5, n_actions=2, gamma=0.9, end_prob=0.2, seed=2)
    behavior, evaluation = policies(5, 2)
    replay = world.roll(behavior, 300, horizon=50, seed=0)
    encoder = fit_encoder(replay.contract, replay.observations)
    prepared = QEvaluation(replay, CONFIG, encoder=encoder, seed=3)
    for policy in (behavior, evaluation):
        probs = policy[states_of(replay)]
        alone = fit_q_evaluation(replay, probs, CONFIG, encoder=encoder, seed=3)
        np.testing.assert_array_equal(prepared.fit(probs).q_values(replay), alone.q_values(replay))


def test_value_and_its_standard_error_match_the_truth_over_many_logs() -> None:
    world = TabularWorld.random(n_states=5, n_actions=2, gamma=0.9, end_prob=0.2, seed=2)
    behavior, evaluation = policies(5, 2)
    truth = float((world.values(evaluation) * evaluation).sum(axis=1).mean())
    values, errors = [], []
    for seed in range(30):
        replay = world.roll(behavior, 200, horizon=100, seed=seed, noise=0.5)
        encoder = fit_encoder(replay.contract, replay.observations)
        prepared = QEvaluation(replay, FqeConfig(n_random_features=20, n_time_knots=4), encoder=encoder, seed=0)
        _, found = prepared.value(evaluation[states_of(replay)])
        values.append(found.value)
        errors.append(float(np.sqrt((found.influence**2).sum())))
    spread = np.std(values, ddof=1)
    assert np.mean(values) == pytest.approx(truth, abs=4 * spread / np.sqrt(30) + 0.05)
    assert 0.7 < np.mean(errors) / spread < 1.4


def test_episodes_count_as_their_weights_say() -> None:
    rates = np.array([0.5, 0.5])
    replay = one_step_clicks(rates, 400, seed=0)
    high = replace(replay, rewards=np.where(np.arange(400) < 200, 1.0, 0.0))
    probs = np.full((400, 2), 0.5)
    weights = np.where(np.arange(400) < 200, 3.0, 1.0)
    encoder = fit_encoder(replay.contract, replay.observations)
    prepared = QEvaluation(high, CONFIG, encoder=encoder, seed=0, episode_weights=weights)
    assert prepared.value(probs)[1].value == pytest.approx(0.75, abs=0.02)


def test_a_picture_is_seen_coarsely() -> None:
    """What stands in its upper half is worth a reward; single pixels would be too many inputs."""
    rng = np.random.default_rng(0)
    contract = Contract.model_validate(
        {
            "name": "dots",
            "gamma": 0.9,
            "features": {"frame": {"type": "image", "shape": [40, 50, 1]}},
            "actions": {"names": ["a", "b"]},
            "episodes": {"kind": "one_step"},
        }
    )
    n = 400
    upper = rng.random(n) < 0.5
    pictures = np.zeros((n, 40 * 50 + 1), dtype=np.uint8)
    for row, is_upper in zip(pictures, upper, strict=True):
        start = rng.integers(0, 700) if is_upper else rng.integers(1000, 1700)
        row[start : start + 200] = 255
    actions = rng.integers(2, size=n)
    rewards = np.where(upper, 1.0, 0.0) * (actions == 1)
    replay = make_replay(contract, Observations({"frame": pictures}, {}), actions, rewards, np.ones(n, dtype=int))
    encoder = fit_encoder(contract, replay.observations)
    fitted = fit_q_evaluation(replay, np.full((n, 2), 0.5), CONFIG, encoder=encoder, seed=0)
    q_values = fitted.q_values(replay)
    assert len(fitted.coefficients) < 600
    assert q_values[upper, 1].mean() > 0.9
    assert np.abs(q_values[~upper]).mean() < 0.1
