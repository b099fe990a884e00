from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.replay import Replay
from offline_dqn.state_weights import Visits, fit_state_weights, state_weights
from offline_dqn.tabular_evaluation import Table, TabularEvaluation, tabulated
from tests.offline_dqn.worlds import TabularWorld, states_of

WORLD = TabularWorld.random(n_states=6, n_actions=2, gamma=0.9, end_prob=0.15, seed=1)
LOGGER = np.full((6, 2), 0.5)
POLICY = np.tile([0.8, 0.2], (6, 1))


def evaluation_of(n_episodes: int, *, shrinkage: float, seed: int = 0) -> tuple[TabularEvaluation, np.ndarray]:
    replay = WORLD.roll(LOGGER, n_episodes, horizon=200, seed=seed)
    table = tabulated(replay, largest=100, smallest_visits=3, most_cut=0.01)
    assert table is not None
    states = states_of(replay)
    evaluation = TabularEvaluation(
        table=table,
        actions=replay.actions,
        rewards=replay.rewards,
        times=replay.step_in_episode,
        n_actions=2,
        gamma=WORLD.gamma,
        horizon=int(replay.lengths.max()),
        shrinkage=shrinkage,
    )
    return evaluation, states


def by_hand(shrinkage: float) -> TabularEvaluation:
    """Two episodes, gamma 1/2: entries 0 then 1 with actions 0, 1 and rewards 0, 4; entry 1 with action 1, reward 2."""
    return TabularEvaluation(
        table=Table(np.array([0, 1, 1]), np.array([1, -1, -1]), n_states=2),
        actions=np.array([0, 1, 1]),
        rewards=np.array([0.0, 4.0, 2.0]),
        times=np.array([0, 1, 0]),
        n_actions=2,
        gamma=0.5,
        horizon=2,
        shrinkage=shrinkage,
    )


def test_values_without_shrinkage_are_the_averages_by_hand() -> None:
    q = by_hand(1e-9).q_table(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))[0]
    # Q(1, 1) = (4 + 2) / 2 = 3, and Q(0, 0) = 0 + 1/2 * 3.
    assert q[1, 1] == pytest.approx(3.0)
    assert q[0, 0] == pytest.approx(1.5)


def test_an_unseen_pair_is_worth_what_its_observation_and_its_action_say() -> None:
    q = by_hand(1e-9).q_table(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))[0]
    # Q(0, 0) = 1.5 and Q(1, 1) = 3 were seen, mean 2.5 over the steps. Three rounds of halving towards it give entry 1
    # 2.75, 2.6875, 2.671875 and action 0 -.25, -.3125, -.328125: what is bad elsewhere counts against it here.
    assert q[1, 0] == pytest.approx(2.671875 - 0.328125)


def test_what_each_step_moved_by_hand() -> None:
    # From entry 0 the policy makes (0, 0) once and (1, 1) half a time; logged once and twice: weights 1 and 1/4.
    # Residuals 0 + 1/2 * 3 - 1.5, 4 - 3 and 2 - 3.
    evaluation, probs = by_hand(1e-9), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    moved = evaluation.fit_errors(probs, evaluation.q_table(probs), np.array([1.0, 0.0]))
    np.testing.assert_allclose(moved, [0.0, 0.25, -0.25], atol=1e-7)


def test_weights_by_hand() -> None:
    # The policy always acts like the logged action, which the log took with probability 1/2: ratios are 2.
    # Entry 0: one start per 2 episodes, and the log's visits are that start: w = 1.
    # Entry 1: the policy visits it in 1 start and 1/2 * 2 = 1 arrival; the log in 1 start and 1/2 arrival: w = 2 / 1.5.
    weights = by_hand(1e-9).state_weights(np.array([2.0, 2.0, 2.0]))[0]
    np.testing.assert_allclose(weights, [1.0, 2.0 / 1.5])


def test_the_log_itself_has_weight_one_everywhere() -> None:
    evaluation, states = evaluation_of(50, shrinkage=1.0)
    np.testing.assert_allclose(evaluation.state_weights(np.ones(len(states))), 1.0)


def test_values_and_weights_come_near_the_truth() -> None:
    evaluation, states = evaluation_of(4_000, shrinkage=1.0)
    code_of = dict(zip(states, evaluation.table.codes, strict=True))
    order = [code_of[s] for s in range(6)]
    q = evaluation.q_table(POLICY[states])[0, order]
    np.testing.assert_allclose(q, WORLD.values(POLICY), atol=0.2)

    def visits(policy: np.ndarray) -> np.ndarray:
        step = np.einsum("sa,sat->st", policy, WORLD.transition)
        return np.linalg.solve((np.eye(6) - WORLD.gamma * step).T, np.full(6, 1 / 6))

    ratios = POLICY[states, evaluation.actions] / 0.5
    found = evaluation.state_weights(ratios)[0, order]
    np.testing.assert_allclose(found, visits(POLICY) / visits(LOGGER), atol=0.08)


def test_linear_weights_in_indicators_are_the_tables() -> None:
    evaluation, states = evaluation_of(300, shrinkage=1e-6)
    codes = evaluation.table.codes
    ratios = POLICY[states, evaluation.actions] / 0.5
    visits = Visits(
        features=np.eye(6, dtype=np.float32)[codes],
        inner=np.flatnonzero(evaluation.table.following >= 0),
        first=np.flatnonzero(evaluation.times == 0),
        reach=WORLD.gamma ** evaluation.times.astype(float),
        gamma=WORLD.gamma,
        ratios=ratios,
    )
    coefficients, _ = fit_state_weights(visits, np.zeros(len(codes), dtype=bool), ridges=(1e-6,))
    np.testing.assert_allclose(
        state_weights(visits.features, coefficients), evaluation.state_weights(ratios)[0, codes], rtol=1e-3
    )


def test_many_distinct_observations_or_cut_episodes_are_no_table() -> None:
    replay = WORLD.roll(LOGGER, 60, horizon=200, seed=3)
    limits = {"largest": 100, "smallest_visits": 3.0, "most_cut": 0.01}
    assert tabulated(replay, **limits) is not None
    assert tabulated(replay, **limits | {"largest": 5}) is None
    assert tabulated(replay, **limits | {"smallest_visits": 1e3}) is None
    assert tabulated(cut_at_odd_times(), **limits) is None


def cut_at_odd_times() -> Replay:
    replay = WORLD.roll(LOGGER, 60, horizon=200, seed=3)
    last = replay.offsets[1:] - 1
    truncated = np.array(replay.truncated)
    truncated[last[::2]] = True
    return replace(replay, truncated=truncated, terminated=replay.terminated & ~truncated)


def test_values_and_visits_of_episodes_cut_by_the_clock_depend_on_time() -> None:
    horizon, n = 4, 6_000
    replay = WORLD.roll(LOGGER, n, horizon=horizon, seed=5)
    table = tabulated(replay, largest=100, smallest_visits=3, most_cut=0.01)
    assert table is not None
    assert table.clock == horizon
    states = states_of(replay)
    times = replay.step_in_episode
    evaluation = TabularEvaluation(table, replay.actions, replay.rewards, times, 2, WORLD.gamma, horizon, 1.0)
    code_of = dict(zip(states, table.codes, strict=True))
    order = [code_of[s] for s in range(6)]
    q = evaluation.q_table(POLICY[states])
    weights = evaluation.state_weights(POLICY[states, replay.actions] / 0.5)

    def visits(policy: np.ndarray) -> np.ndarray:
        step = np.einsum("sa,sat->st", policy, WORLD.transition)
        return np.full(6, 1 / 6) @ np.linalg.matrix_power(step, at)

    for at in range(horizon):
        np.testing.assert_allclose(q[at, order], WORLD.values(POLICY, horizon - at), atol=0.15)
        np.testing.assert_allclose(weights[at, order], visits(POLICY) / visits(LOGGER), rtol=0.12)
    np.testing.assert_array_equal(weights[0], 1.0)  # nothing was decided before the first step


def test_the_log_itself_has_weight_one_at_every_step() -> None:
    replay = WORLD.roll(LOGGER, 80, horizon=5, seed=6)
    table = tabulated(replay, largest=100, smallest_visits=3, most_cut=0.01)
    assert table is not None
    evaluation = TabularEvaluation(
        table, replay.actions, replay.rewards, replay.step_in_episode, 2, WORLD.gamma, 5, shrinkage=1.0
    )
    np.testing.assert_allclose(evaluation.state_weights(np.ones(replay.n_steps)), 1.0)


def test_what_is_available_tells_entries_apart() -> None:
    replay = WORLD.roll(LOGGER, 60, horizon=200, seed=3)
    masks = np.array(replay.available)
    masks[::2, 1] = False
    table = tabulated(replace(replay, available=masks), largest=100, smallest_visits=1, most_cut=0.01)
    assert table is not None
    assert table.n_states == 12
