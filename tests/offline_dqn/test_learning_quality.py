"""What is learned is right: against exact solutions of what the log says, in seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.learner import fit
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import TrainedQ
from tests.offline_dqn.worlds import TabularWorld, states_of

FloatArray = NDArray[np.float64]

SMALL: dict[str, Any] = {
    "batch_size": 128, "hidden": (32, 32), "learning_rate": 2e-3, "polyak": 0.03, "clone": False,
    "bcq_thresholds": (), "penalty_weights": (0.0,), "exploration": 0.0, "candidates_at": (1.0,), "n_threads": 1,
    "device": "cpu",
}  # fmt: skip


def trained_on(replay: Replay, **settings: Any) -> TrainedQ:
    config = TrainConfig(**(SMALL | settings))
    encoder = fit_encoder(replay.contract, replay.observations)
    return fit(InMemorySource(replay, config, encoder=encoder), config)


def every_state(replay: Replay) -> Observations:
    labels = replay.observations.vocabularies["state"]
    return Observations({"state": np.arange(len(labels), dtype=np.int32)}, {"state": labels})


def learned_values(trained: TrainedQ, replay: Replay, name: str = "dqn") -> FloatArray:
    q_values = trained.policy(trained.network(name)).q_values(every_state(replay))
    assert q_values is not None
    return q_values


def counted(replay: Replay, world: TabularWorld) -> TabularWorld:
    """The world as the log has it: frequencies of the transitions and mean rewards."""
    n_states, n_actions = world.reward.shape
    states, actions = states_of(replay), replay.actions
    visits, earned = np.zeros((n_states, n_actions)), np.zeros((n_states, n_actions))
    np.add.at(visits, (states, actions), 1.0)
    np.add.at(earned, (states, actions), replay.rewards)
    moves = np.zeros((n_states, n_actions, n_states))
    goes_on = ~replay.terminated
    following = replay.observations.columns["state"][replay.next_row[goes_on]]
    np.add.at(moves, (states[goes_on], actions[goes_on], following), 1.0)
    assert visits.min() >= 50, "every pair is well covered"
    return TabularWorld(moves / visits[..., None], earned / visits, world.gamma)


def masked_optimum(world: TabularWorld, available: NDArray[np.bool_]) -> FloatArray:
    q_values = np.zeros_like(world.reward)
    for _ in range(500):
        best = np.where(available, q_values, -np.inf).max(axis=1)
        q_values = world.reward + world.gamma * world.transition @ best
    return q_values


def test_without_penalty_the_values_reach_the_certainty_equivalence_optimum():
    world = TabularWorld.random(n_states=8, n_actions=3, gamma=0.8, end_prob=0.05, seed=11)
    replay = world.roll(np.full((8, 3), 1 / 3), 300, horizon=20, seed=0, noise=0.2)
    optimum = counted(replay, world).optimal_values()
    found = learned_values(trained_on(replay, n_updates=1_500), replay)
    errors = np.abs(found - optimum) / replay.rewards.std()
    assert errors.mean() < 0.1
    assert errors.max() < 0.35, "in units of the rewards' spread; the values themselves spread over almost four of it"
    best = counted(replay, world).values(np.eye(3)[found.argmax(axis=1)]).max(axis=1)
    assert (optimum.max(axis=1) - best).max() < 0.01 * np.ptp(optimum)


def masked_log() -> tuple[TabularWorld, NDArray[np.bool_], Replay]:
    """Eight actions, of which other three are available in every state; the log draws uniformly among those."""
    world = TabularWorld.random(n_states=8, n_actions=8, gamma=0.9, end_prob=0.02, seed=2)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(8), (8, 1)), axis=1)
    available = order < 3
    replay = world.roll(available / 3, 400, horizon=20, seed=1)
    return world, available, replace(replay, available=available[replay.observations.columns["state"]])


def test_masks_keep_values_of_unavailable_actions_out_of_the_targets():
    world, available, replay = masked_log()
    optimum = masked_optimum(world, available)
    with_masks = learned_values(trained_on(replay, n_updates=1_500), replay)
    blind = replace(replay, available=np.ones_like(replay.available))
    without = learned_values(trained_on(blind, n_updates=1_500), replay)
    scale = replay.rewards.std()
    error, blind_error = (np.abs(q - optimum)[available].mean() / scale for q in (with_masks, without))
    assert error < 0.15
    assert blind_error > 3 * error


def delayed_chain(length: int = 12) -> TabularWorld:
    """Going on earns nothing until the end of the chain, which earns 10; leaving earns 2 at once.

    Discounted by .8 the end is worth waiting for from seven steps away, not from further.
    """
    transition = np.zeros((length, 2, length))
    transition[np.arange(length - 1), 0, np.arange(1, length)] = 1.0
    reward = np.zeros((length, 2))
    reward[-1, 0], reward[:, 1] = 10.0, 2.0
    return TabularWorld(transition, reward, gamma=0.8)


def test_several_steps_carry_a_delayed_reward_back_in_fewer_updates():
    world = delayed_chain()
    replay = world.roll(np.tile([0.9, 0.1], (12, 1)), 400, horizon=20, seed=0)
    short: dict[str, Any] = {
        "n_updates": 300,
        "target_sync_every": 75,
        "polyak": None,
    }  # four syncs: one step back each, or four

    def share_of_optimum(n_step: int) -> float:
        q_values = learned_values(trained_on(replay, n_step=n_step, **short), replay)
        policy = np.eye(2)[q_values.argmax(axis=1)]
        values = (policy * world.values(policy)).sum(axis=1)
        return float(values.mean() / world.optimal_values().max(axis=1).mean())

    assert share_of_optimum(4) > 0.98
    assert share_of_optimum(1) < 0.95


def test_behavior_cloning_recovers_the_logger():
    world = TabularWorld.random(n_states=6, n_actions=4, gamma=0.9, end_prob=0.05, seed=4)
    logger = np.random.default_rng(5).dirichlet(np.ones(4), size=6)
    replay = world.roll(logger, 600, horizon=20, seed=2)
    trained = trained_on(replay, n_updates=1_000, clone=True, penalty_weights=())
    clone = trained.network("bc")
    policy = trained.policy(clone)
    scores, _ = policy.scores(every_state(replay))
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    visits = np.bincount(states_of(replay), minlength=6)
    assert np.abs(probs - logger).max() < 0.03 + 2 / np.sqrt(visits.min())
