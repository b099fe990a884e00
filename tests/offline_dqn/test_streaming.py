"""Streaming: chosen by size, the same data as in memory, the same checks, and nothing learned twice as often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import TRAIN, Replay
from offline_dqn.episode_blocks import EpisodeBlocks
from offline_dqn.learner import fit
from offline_dqn.sampling import InMemorySource
from offline_dqn.streaming import StreamedSource, in_memory_mb, training_source
from offline_dqn.train_config import TrainConfig
from offline_dqn.training_data import TrainingDataError
from tests.offline_dqn.logs import mapped, numbered_replay
from tests.offline_dqn.worlds import TabularWorld

STREAMED = TrainConfig(batch_size=64, n_step=2, largest_in_memory_mb=1)
IN_MEMORY = STREAMED.model_copy(update={"largest_in_memory_mb": 1_000})


def streamed(replay: Replay, config: TrainConfig = STREAMED, **options: Any) -> StreamedSource:
    source = training_source(replay, replay.split == TRAIN, config, **options)
    assert isinstance(source, StreamedSource)
    return source


def in_memory(replay: Replay, config: TrainConfig = IN_MEMORY, **options: Any) -> InMemorySource:
    source = training_source(replay, replay.split == TRAIN, config, **options)
    assert isinstance(source, InMemorySource)
    return source


def test_size_decides_and_both_say_the_same_of_the_data(tmp_path: Path) -> None:
    replay = mapped(numbered_replay(1_500), tmp_path)
    ours, wanted = streamed(replay), in_memory(replay)

    assert (ours.n_steps, ours.n_unusable_steps) == (wanted.n_steps, wanted.n_unusable_steps)
    assert ours.n_unusable_steps > 0
    assert ours.reward_scale == pytest.approx(wanted.reward_scale, rel=1e-12)
    assert ours.start_level == pytest.approx(wanted.start_level, rel=1e-6)
    assert ours.encoder.names == wanted.encoder.names
    torch.testing.assert_close(ours.silent_inputs, wanted.silent_inputs)
    assert ours.observations is None
    encoded, available = (torch.cat(parts) for parts in zip(*ours.blocks(), strict=True))
    torch.testing.assert_close(encoded, wanted.data.observations[wanted.data.rows])
    assert torch.equal(available, wanted.data.available[wanted.data.rows])


def test_batches_hold_the_training_split_alone_in_scaled_units(tmp_path: Path) -> None:
    replay = mapped(numbered_replay(1_500), tmp_path)
    source = streamed(replay)
    trains = (replay.split == TRAIN)[replay.episode_of_step]
    ended = replay.terminated
    for _ in range(50):
        batch = source.draw(0.0)
        steps = batch.steps.numpy()
        assert len(steps) == 64
        assert trains[steps].all()
        alone = ended[steps] | (replay.next_row[steps] >= replay.n_steps)
        # The reward of step t is t.
        np.testing.assert_allclose(batch.rewards[alone] * source.reward_scale, steps[alone], rtol=1e-6)
        assert batch.weights is None


def test_potential_and_reward_scale_reach_the_batches(tmp_path: Path) -> None:
    replay = mapped(numbered_replay(1_500), tmp_path)

    def potential(observations: Observations) -> NDArray[np.float64]:
        return np.asarray(np.nan_to_num(observations.columns["x1"]))

    fixed = {"reward_scale": 2.0}
    ours = streamed(replay, STREAMED.model_copy(update=fixed), potential=potential)
    wanted = in_memory(replay, IN_MEMORY.model_copy(update=fixed), potential=potential)
    assert ours.start_level == pytest.approx(wanted.start_level, rel=1e-6)
    row_of = {int(step): row for row, step in enumerate(usable_of(replay))}
    batch = ours.draw(0.0)
    same = wanted.data.batch(torch.tensor([row_of[int(step)] for step in batch.steps]))
    torch.testing.assert_close(batch.rewards, same.rewards)
    torch.testing.assert_close(batch.returns, same.returns)


def usable_of(replay: Replay) -> NDArray[np.int64]:
    trains = (replay.split == TRAIN)[replay.episode_of_step]
    return np.flatnonzero(trains & (replay.terminated | (replay.next_row >= 0)))


def test_older_nights_have_their_share_of_every_batch(tmp_path: Path) -> None:
    replay = mapped(numbered_replay(1_500), tmp_path)
    older = replay.nights < replay.nights[200]
    source = streamed(replay, STREAMED.model_copy(update={"older_share": 0.25}), older=older)
    for _ in range(20):
        assert older[replay.episode_of_step[source.draw(0.0).steps.numpy()]].sum() == 16
    state = source.state()
    wanted = source.draw(0.0)
    source.restore(state)
    assert torch.equal(source.draw(0.0).steps, wanted.steps)


def test_digest_is_that_of_data_and_settings(tmp_path: Path) -> None:
    replay = mapped(numbered_replay(1_500), tmp_path)
    digest = streamed(replay).digest

    assert streamed(replay, STREAMED.model_copy(update={"seed": 7})).digest == digest
    assert streamed(replay, STREAMED.model_copy(update={"n_step": 3})).digest != digest
    fewer = replace(replay, split=np.where(np.arange(1_500) == np.argmin(replay.split), 1, replay.split))
    assert streamed(fewer).digest != digest
    assert streamed(replace(replay, digest="1" * 64)).digest != digest


def test_faults_are_counted_over_all_blocks_and_said_once(tmp_path: Path) -> None:
    replay = numbered_replay(1_500)
    rewards, available = replay.rewards.copy(), replay.available.copy()
    trains = np.flatnonzero((replay.split == TRAIN)[replay.episode_of_step])
    bad, forbidden = trains[[40, len(trains) // 2, -1]], trains[[90, -5]]
    rewards[bad] = [np.nan, np.inf, -np.inf]
    available[forbidden, replay.actions[forbidden]] = False
    replay = mapped(replace(replay, rewards=rewards, available=available), tmp_path)
    with pytest.raises(TrainingDataError) as caught:
        streamed(replay)
    with pytest.raises(TrainingDataError) as wanted:
        in_memory(replay)

    assert str(caught.value) == str(wanted.value)
    assert f"reward is not finite in 3 of {len(trains)} steps" in str(caught.value)
    label = replay.contract.actions.names[replay.actions[forbidden[0]]]
    episode, step = replay.episode_of_step[forbidden[0]], replay.step_in_episode[forbidden[0]]
    assert f"in 2 steps, first '{label}' in episode 'e{episode}' step {step}" in str(caught.value)


def test_nothing_usable_and_endless_sums_are_refused_but_not_by_a_single_block() -> None:
    replay = numbered_replay(1_500)
    nothing: dict[str, Any] = {"terminated": np.zeros(replay.n_steps, bool), "next_row": np.full(replay.n_steps, -1)}
    with pytest.raises(TrainingDataError, match=r"none of the \d+ steps of \d+ episodes can be learned from"):
        streamed(replace(replay, **nothing))
    endless = replay.contract.model_copy(update={"gamma": 1.0})
    with pytest.raises(TrainingDataError, match="gamma = 1 and no episode terminates"):
        streamed(replace(replay, contract=endless, terminated=np.zeros(replay.n_steps, bool)))
    once = np.zeros(replay.n_steps, bool)
    once[usable_of(replay)[-1]] = True
    assert streamed(replace(replay, contract=endless, terminated=once)).n_steps > 0


def test_priorities_are_refused_with_the_size_that_they_need(tmp_path: Path) -> None:
    replay = mapped(numbered_replay(1_500), tmp_path)
    encoder = fit_encoder(replay.contract, replay.of_split(TRAIN).observations)
    size = in_memory_mb(EpisodeBlocks.cut(replay, replay.split == TRAIN, 1_000), encoder)
    assert 1 < size < 20
    with pytest.raises(TrainingDataError, match=rf"about {size:.0f} MB. Set train.largest_in_memory_mb \(now 1\)"):
        streamed(replay, STREAMED.model_copy(update={"priority_exponent": 0.6}))


def test_greedy_policy_of_streamed_training_is_optimal_where_the_log_covers_everything() -> None:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=0.9, end_prob=0.05, seed=3)
    replay = world.roll(np.full((6, 3), 1 / 3), 1_000, horizon=30, seed=0)
    config = TrainConfig(
        n_updates=500, batch_size=128, hidden=(64,), penalty_weights=(0.0,), bcq_thresholds=(), clone=False,
        learning_rate=4e-3, target_sync_every=25, log_every=500, largest_in_memory_mb=1,
    )  # fmt: skip
    source = training_source(replay, np.ones(replay.n_episodes, bool), config)
    assert isinstance(source, StreamedSource)
    trained = fit(source, config)
    states = Observations({"state": np.arange(6, dtype=np.int32)}, replay.observations.vocabularies)
    q_values, optimal = trained.policy(trained.network("dqn")).q_values(states), world.optimal_values()
    assert q_values is not None
    np.testing.assert_allclose(optimal[np.arange(6), q_values.argmax(axis=1)], optimal.max(axis=1), atol=0.02)
    assert np.abs(q_values - optimal).mean() < 0.1 * optimal.mean()
