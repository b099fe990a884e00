from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.encoding import fit_encoder
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from offline_dqn.training_data import n_step_targets, prepare_training_data, usable_steps
from tests.offline_dqn.worlds import TabularWorld

CONFIG = TrainConfig(batch_size=500)


def source(config: TrainConfig, n_older: int | None = None) -> InMemorySource:
    world = TabularWorld.random(n_states=4, n_actions=2, gamma=0.9, end_prob=0.1, seed=1)
    replay = world.roll(np.full((4, 2), 0.5), 100, horizon=12, seed=0)
    older = None if n_older is None else np.arange(replay.n_episodes) < n_older
    return InMemorySource(replay, config, encoder=fit_encoder(replay.contract, replay.observations), older=older)


def test_uniform_draws_visit_every_step_alike() -> None:
    drawn = source(CONFIG)
    counts = sum(torch.bincount(drawn.draw(0.0).steps, minlength=drawn.n_steps) for _ in range(200))
    expected = 200 * 500 / drawn.n_steps
    assert float(((counts - expected) ** 2 / expected).sum()) < drawn.n_steps + 4 * np.sqrt(2 * drawn.n_steps)


def test_priorities_decide_how_often_a_step_is_drawn_and_the_weights_undo_it() -> None:
    drawn = source(CONFIG.model_copy(update={"priority_exponent": 1.0, "importance_exponent": 1.0}))
    everything = drawn.data.batch(torch.arange(drawn.n_steps))
    errors = torch.ones(drawn.n_steps)
    errors[:10] = 9.0
    drawn.learn(everything, errors)
    of_large, mean = [], []
    for _ in range(200):
        batch = drawn.draw(0.0)
        assert batch.weights is not None
        is_large = batch.steps < 10
        of_large.append(float(is_large.double().mean()))
        mean.append(float((batch.weights * is_large).sum() / batch.weights.sum()))
    share = 10 * 9.0 / (10 * 9.0 + drawn.n_steps - 10)
    assert np.mean(of_large) == pytest.approx(share, rel=0.05)
    assert np.mean(mean) == pytest.approx(10 / drawn.n_steps, rel=0.1)  # what a uniform draw would have


def test_bias_correction_grows_with_progress() -> None:
    drawn = source(CONFIG.model_copy(update={"priority_exponent": 1.0}))
    errors = torch.linspace(0.1, 3.0, drawn.n_steps)
    drawn.learn(drawn.data.batch(torch.arange(drawn.n_steps)), errors)
    spreads = []
    for progress in (0.0, 1.0):
        weights = drawn.draw(progress).weights
        assert weights is not None
        assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
        spreads.append(float(weights.min() / weights.max()))
    assert spreads[1] < spreads[0] < 1.0


def test_no_step_beyond_the_last_is_drawn() -> None:
    drawn = source(CONFIG.model_copy(update={"priority_exponent": 0.7}))
    assert drawn.n_steps % 512  # the last block is not full
    assert max(int(drawn.draw(0.0).steps.max()) for _ in range(50)) < drawn.n_steps


@pytest.mark.parametrize("exponent", [0.0, 0.7])
def test_a_restored_source_draws_the_same(exponent: float) -> None:
    config = CONFIG.model_copy(update={"priority_exponent": exponent})
    first, second = source(config), source(config)
    for _ in range(3):
        batch = first.draw(0.1)
        first.learn(batch, torch.rand(500))
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    for _ in range(3):
        assert torch.equal(first.draw(0.2).steps, second.draw(0.2).steps)


def test_older_steps_take_their_share_of_every_batch() -> None:
    drawn = source(CONFIG.model_copy(update={"older_share": 0.2}), n_older=50)
    is_older = drawn.data.rows < _first_row_of_episode(50)
    n_older = int(is_older.sum())
    assert 0.3 < n_older / drawn.n_steps < 0.7  # many more than their share
    assert {int(is_older[drawn.draw(0.0).steps].sum()) for _ in range(5)} == {100}


def test_without_older_nights_all_steps_are_drawn_alike() -> None:
    drawn = source(CONFIG.model_copy(update={"older_share": 0.9}), n_older=0)
    assert len(torch.unique(drawn.draw(0.0).steps)) > 100


def _first_row_of_episode(episode: int) -> int:
    world = TabularWorld.random(n_states=4, n_actions=2, gamma=0.9, end_prob=0.1, seed=1)
    return int(world.roll(np.full((4, 2), 0.5), 100, horizon=12, seed=0).offsets[episode])


def test_n_step_targets_are_those_of_a_loop_over_each_episode() -> None:
    world = TabularWorld.random(n_states=4, n_actions=2, gamma=0.9, end_prob=0.2, seed=1)
    replay = world.roll(np.full((4, 2), 0.5), 60, horizon=7, seed=0, noise=1.0)
    cut = replay.offsets[1:] - 1
    half = cut[(~replay.terminated[cut]) & (np.arange(len(cut)) % 2 == 0)]
    replay.next_row[half] = -1  # half of the cut episodes have no final observation
    steps = usable_steps(replay)
    rewards, discounts, next_rows = n_step_targets(replay, steps, 3)
    seen = set()
    for i, step in enumerate(steps):
        total, power, at = 0.0, 1.0, int(step)
        end = replay.offsets[replay.episode_of_step[step] + 1]
        while True:
            total, power = total + power * replay.rewards[at], power * 0.9
            span = at - int(step) + 1
            if replay.terminated[at] or span == 3 or at + 1 == end or (at + 1 in half):
                break
            at += 1
        ended = bool(replay.terminated[at])
        seen.add((span, ended))
        assert rewards[i] == pytest.approx(total)
        assert discounts[i] == pytest.approx(0.0 if ended else power)
        assert next_rows[i] == (0 if ended else replay.next_row[at])
    assert seen == {(1, True), (2, True), (3, True), (1, False), (2, False), (3, False)}


def test_a_potential_telescopes_and_is_zero_behind_the_end() -> None:
    world = TabularWorld.random(n_states=4, n_actions=2, gamma=0.9, end_prob=0.2, seed=1)
    replay = world.roll(np.full((4, 2), 0.5), 40, horizon=7, seed=0)
    encoder = fit_encoder(replay.contract, replay.observations)
    potentials = np.random.default_rng(0).normal(size=len(replay.observations))
    plain = prepare_training_data(replay, encoder, 2.0, n_step=2)
    shaped = prepare_training_data(replay, encoder, 2.0, n_step=2, potentials=potentials)
    behind = plain.discounts.numpy() * potentials[plain.next_rows.numpy()]
    moved = (behind - potentials[plain.rows.numpy()]) / 2.0
    np.testing.assert_allclose(shaped.rewards.numpy(), plain.rewards.numpy() + moved, atol=1e-5)
