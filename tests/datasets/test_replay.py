"""Subsets of a replay dataset are replay datasets that say the same of the same episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from datasets.observations import Observations
from datasets.replay import GATE, SELECT, TRAIN, Replay
from tests.datasets.builders import tiny


@st.composite
def replays(draw: st.DrawFn) -> Replay:
    """Replays whose every value names its step, so that a row out of place shows."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    ends = draw(st.lists(st.sampled_from(["terminated", "final", "cut"]), min_size=len(lengths), max_size=len(lengths)))
    n_steps, n_episodes = sum(lengths), len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    last = offsets[1:] - 1
    next_row = np.arange(1, n_steps + 1)
    next_row[last] = -1
    finals = [row for row, end in zip(last, ends, strict=True) if end == "final"]
    next_row[finals] = n_steps + np.arange(len(finals))
    terminated, truncated = np.zeros(n_steps, bool), np.zeros(n_steps, bool)
    terminated[last] = [end == "terminated" for end in ends]
    truncated[last] = [end != "terminated" for end in ends]
    m = n_steps + len(finals)
    return Replay(
        contract=tiny(),
        digest="d",
        observations=Observations({"cpu": np.arange(m, dtype=float), "load": np.arange(2.0 * m).reshape(m, 2)}, {}),
        available=np.arange(m * 3).reshape(m, 3) % 2 == 0,
        actions=np.arange(n_steps) % 3,
        rewards=-np.arange(n_steps, dtype=float),
        terminated=terminated,
        truncated=truncated,
        next_row=next_row,
        behavior_prob=1 / (1 + np.arange(n_steps)),
        offsets=offsets,
        episode_ids=np.array([f"e{i}" for i in range(n_episodes)], dtype=object),
        clusters=np.arange(n_episodes),
        nights=np.datetime64("2024-05-01") + np.arange(n_episodes),
        policy_versions=np.array([f"v{i}" for i in range(n_episodes)], dtype=object),
        split=np.array([draw(st.sampled_from([TRAIN, SELECT, GATE])) for _ in lengths], dtype=np.int8),
    )


def told(replay: Replay) -> list[Any]:
    """Everything that a replay says, episode by episode and step by step, without row numbers."""
    story = []
    for n in range(replay.n_episodes):
        for t in range(replay.offsets[n], replay.offsets[n + 1]):
            following = replay.next_row[t]
            story.append(
                (
                    replay.episode_ids[n],
                    replay.policy_versions[n],
                    str(replay.nights[n]),
                    int(replay.clusters[n]),
                    int(replay.split[n]),
                    int(replay.step_in_episode[t]),
                    int(replay.episode_of_step[t]) == n,
                    float(replay.rewards[t]),
                    int(replay.actions[t]),
                    float(replay.behavior_prob[t]),
                    bool(replay.terminated[t]),
                    bool(replay.truncated[t]),
                    _row(replay, t),
                    None if following < 0 else _row(replay, following),
                )
            )
    return story


def _row(replay: Replay, row: int) -> tuple[Any, ...]:
    columns = replay.observations.columns
    return float(columns["cpu"][row]), tuple(columns["load"][row]), tuple(replay.available[row])


@given(replays(), st.data())
def test_a_subset_tells_the_same_story_of_the_kept_episodes(replay: Replay, data: st.DataObject) -> None:
    kept: NDArray[np.bool_] = np.array(
        data.draw(st.lists(st.booleans(), min_size=replay.n_episodes, max_size=replay.n_episodes))
    )
    subset = replay.subset(kept)

    names = set(replay.episode_ids[kept])
    assert told(subset) == [line for line in told(replay) if line[0] in names]
    assert subset.digest == replay.digest
    assert (
        len(subset.observations)
        == len(subset.available)
        == subset.n_steps + int((subset.next_row >= subset.n_steps).sum())
    )
    assert subset.lengths.tolist() == replay.lengths[kept].tolist()


@given(replays())
def test_keeping_all_keeps_all_and_keeping_none_is_empty(replay: Replay) -> None:
    assert told(replay.subset(np.ones(replay.n_episodes, dtype=bool))) == told(replay)
    empty = replay.subset(np.zeros(replay.n_episodes, dtype=bool))
    assert (empty.n_steps, empty.n_episodes, len(empty.observations)) == (0, 0, 0)


@given(replays())
def test_splits_part_the_episodes(replay: Replay) -> None:
    parts = [replay.of_split(code) for code in (TRAIN, SELECT, GATE)]

    assert sum(part.n_episodes for part in parts) == replay.n_episodes
    assert replay.of_split(TRAIN, SELECT, GATE).n_steps == sum(part.n_steps for part in parts) == replay.n_steps


@given(replays())
def test_subsets_of_subsets_are_subsets(replay: Replay) -> None:
    first = np.arange(replay.n_episodes) % 2 == 0
    once = replay.subset(first)
    twice = once.subset(np.arange(once.n_episodes) > 0)
    direct = replay.subset(first & (np.arange(replay.n_episodes) > 0))

    assert told(twice) == told(direct)


def test_a_subset_is_a_copy() -> None:
    replay = _simple()
    subset = replay.subset(np.array([True]))
    subset.rewards[0] = 5.0

    assert replay.rewards[0] == 0.0


def _simple() -> Replay:
    one = np.zeros(1)
    return Replay(
        contract=tiny(),
        digest="",
        observations=Observations({"cpu": one}, {}),
        available=np.ones((1, 3), dtype=bool),
        actions=np.zeros(1, dtype=np.int64),
        rewards=one.copy(),
        terminated=np.ones(1, dtype=bool),
        truncated=np.zeros(1, dtype=bool),
        next_row=np.full(1, -1),
        behavior_prob=one + 0.5,
        offsets=np.array([0, 1]),
        episode_ids=np.array(["e"], dtype=object),
        clusters=np.zeros(1, dtype=np.int64),
        nights=np.array(["2024-05-01"], dtype="datetime64[D]"),
        policy_versions=np.array([""], dtype=object),
        split=np.zeros(1, dtype=np.int8),
    )


@pytest.mark.parametrize("codes", [(TRAIN,), (SELECT, GATE)])
def test_of_split_without_episodes_is_empty_or_whole(codes: tuple[int, ...]) -> None:
    assert _simple().of_split(*codes).n_episodes == int(TRAIN in codes)
