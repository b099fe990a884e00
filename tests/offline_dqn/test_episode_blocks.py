"""Blocks of whole episodes: every chosen step once, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.replay import TRAIN
from offline_dqn.episode_blocks import EpisodeBlocks
from tests.offline_dqn.logs import mapped, numbered_replay


@given(st.integers(1, 60), st.integers(1, 400), st.integers(0, 5))
def test_blocks_hold_every_chosen_step_once_in_whole_episodes(n_episodes: int, n_steps: int, seed: int) -> None:
    replay = numbered_replay(n_episodes, seed=seed)
    chosen = np.random.default_rng(seed).random(n_episodes) < 0.7
    chosen[seed % n_episodes] = True
    blocks = EpisodeBlocks.cut(replay, chosen, n_steps)
    parts = list(blocks)

    kept = replay.subset(chosen)
    np.testing.assert_array_equal(np.concatenate([part.rewards for part in parts]), kept.rewards)
    assert [i for part in parts for i in part.episode_ids] == list(kept.episode_ids)
    # The reward of step t is t.
    for block, part in enumerate(parts):
        np.testing.assert_array_equal(blocks.positions(block), part.rewards)
    assert blocks.n_steps == kept.n_steps
    assert all(part.n_steps >= min(n_steps, kept.n_steps) - 30 for part in parts)
    assert all(part.n_steps <= 2 * n_steps + 30 for part in parts)
    assert blocks.largest[0] == max(part.n_steps for part in parts)
    assert blocks.largest[1] >= max(len(part.observations) for part in parts)


def test_mapped_episodes_are_read_with_their_final_observations(tmp_path: Path) -> None:
    replay = numbered_replay(200)
    blocks = EpisodeBlocks.cut(mapped(replay, tmp_path), replay.split == TRAIN, 100)
    train = replay.of_split(TRAIN)

    assert len(blocks) > 16  # more than one mapping
    finals = [np.flatnonzero(part.next_row >= part.n_steps) for part in blocks]
    assert sum(len(found) for found in finals) == int((train.next_row >= train.n_steps).sum()) > 0
    for part in blocks:
        assert not isinstance(part.rewards, np.memmap)
        ends = np.flatnonzero(part.next_row >= part.n_steps)
        steps = np.searchsorted(replay.rewards, part.rewards[ends])
        for name, values in part.observations.columns.items():
            np.testing.assert_array_equal(
                values[part.next_row[ends]], replay.observations.columns[name][replay.next_row[steps]]
            )


def test_no_episode_makes_no_blocks() -> None:
    replay = numbered_replay(3)
    with pytest.raises(ValueError, match="blocks of at least 1 step of some episode, found 5 of 0"):
        EpisodeBlocks.cut(replay, np.zeros(3, dtype=bool), 5)
