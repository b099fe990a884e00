"""The shuffling: every step once a pass, pairs of steps together about as often as they should be, exact to resume."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.encoding import fit_encoder
from datasets.replay import Replay
from offline_dqn.episode_blocks import EpisodeBlocks
from offline_dqn.shuffled_stream import ShuffledStream
from offline_dqn.training_data import TrainingData, encode_steps, prepare_training_data, usable_steps
from tests.offline_dqn.logs import numbered_replay


def stream_of(replay: Replay, block_steps: int, n_pooled: int, *, seed: int = 0, slow_s: float = 0.0) -> ShuffledStream:
    encoder = fit_encoder(replay.contract, replay.observations)

    def encode(part: Replay) -> TrainingData:
        time.sleep(slow_s)
        return encode_steps(part, encoder, 1.0, n_step=2)

    blocks = EpisodeBlocks.cut(replay, np.ones(replay.n_episodes, dtype=bool), block_steps)
    return ShuffledStream(blocks, encode, n_pooled=n_pooled, seed=[seed])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 12), st.integers(1, 50), st.integers(0, 3))
def test_every_step_comes_equally_often(
    n_episodes: int, block_steps: int, n_pooled: int, batch_size: int, seed: int
) -> None:
    replay = numbered_replay(n_episodes, seed=seed)
    usable = usable_steps(replay)
    if not len(usable):
        return
    stream = stream_of(replay, block_steps, n_pooled, seed=seed)
    n_batches = -(-4 * len(usable) // batch_size)
    drawn = torch.cat([stream.take(batch_size).steps for _ in range(n_batches)])
    times = np.bincount(drawn.numpy(), minlength=replay.n_steps)

    assert len(drawn) == n_batches * batch_size
    assert (np.delete(times, usable) == 0).all()
    # A step may be at the end of one pass and at the beginning of the next, and passes do not end with the last batch.
    assert times[usable].min() >= 2
    assert times[usable].max() <= len(drawn) // len(usable) + 2


def test_a_pool_that_holds_everything_gives_every_step_once_before_any_twice() -> None:
    replay = numbered_replay(40)
    usable = usable_steps(replay)
    stream = stream_of(replay, 10**6, 1)
    first, second = (stream.take(len(usable)).steps.numpy() for _ in range(2))

    assert sorted(first) == sorted(second) == list(usable)
    assert list(first) != list(second)


def test_a_batch_holds_what_memory_would_give_for_the_same_steps() -> None:
    replay = numbered_replay(120)
    data = prepare_training_data(replay, fit_encoder(replay.contract, replay.observations), 1.0, n_step=2)
    stream = stream_of(replay, 100, 5)
    for size in (1, 700, 33, 256):
        batch = stream.take(size)
        wanted = data.batch(torch.from_numpy(np.searchsorted(usable_steps(replay), batch.steps.numpy())))
        followed = wanted.discounts > 0  # what stands in behind an end is any row
        for name in ("observations", "actions", "rewards", "discounts", "available", "returns"):
            torch.testing.assert_close(getattr(batch, name), getattr(wanted, name), rtol=0, atol=0, msg=name)
        for name in ("next_observations", "next_available"):
            assert torch.equal(getattr(batch, name)[followed], getattr(wanted, name)[followed]), name


def pairs_together(batches: list[np.ndarray], group: np.ndarray) -> float:
    """Mean number of pairs of a batch's steps that are of one group, by 1,000 pairs."""
    shares = []
    for steps in batches:
        _, n = np.unique(group[steps], return_counts=True)
        shares.append((n * (n - 1)).sum() / (len(steps) * (len(steps) - 1)))
    return 1e3 * float(np.mean(shares))


def test_steps_of_an_episode_or_a_night_share_a_batch_about_as_often_as_in_uniform_draws() -> None:
    replay = numbered_replay(4_000, longest=20)  # 30 nights
    usable, rng = usable_steps(replay), np.random.default_rng(0)
    night = (replay.nights - replay.nights[0]).astype(int)[replay.episode_of_step]
    stream = stream_of(replay, 80, 128)  # about a quarter of the data
    blocks = EpisodeBlocks.cut(replay, np.ones(4_000, dtype=bool), 80)
    streamed = [stream.take(256).steps.numpy() for _ in range(600)]
    uniform = [rng.choice(usable, 256) for _ in range(600)]
    pool_share = 128 / len(blocks)

    # Of one night: blocks come in random order, and a night has a dozen of them.
    assert pairs_together(streamed, night) == pytest.approx(pairs_together(uniform, night), rel=0.1)
    # Of one episode: at most as often as if the pool were all there is.
    episode = pairs_together(streamed, replay.episode_of_step)
    assert episode < 1.2 / pool_share * pairs_together(uniform, replay.episode_of_step)
    # In the order of the log nearly every pair would be.
    in_order = [usable[start : start + 256] for start in range(0, len(usable), 256)]
    assert pairs_together(in_order, night) > 10 * pairs_together(streamed, night)


def test_means_of_batches_scatter_as_those_of_uniform_draws() -> None:
    replay = numbered_replay(4_000, longest=20)
    usable, rng = usable_steps(replay), np.random.default_rng(0)
    stream = stream_of(replay, 80, 128)
    # The reward is the step's number: what drifts with time. Blocks that came together would scatter more.
    streamed = [float(stream.take(64).rewards.mean()) for _ in range(800)]
    encoder = fit_encoder(replay.contract, replay.observations)
    data = prepare_training_data(replay, encoder, 1.0, n_step=2)
    uniform = [float(data.rewards[rng.integers(len(usable), size=64)].mean()) for _ in range(800)]

    assert np.std(streamed) == pytest.approx(np.std(uniform), rel=0.15)
    assert np.mean(streamed) == pytest.approx(np.mean(uniform), rel=0.03)


@pytest.mark.parametrize("n_before", [0, 1, 7, 60])
def test_restored_stream_goes_on_with_the_same_bits(n_before: int) -> None:
    replay = numbered_replay(60)
    undisturbed, other = stream_of(replay, 50, 4), stream_of(replay, 50, 4)
    for _ in range(n_before):
        undisturbed.take(37)
    state = undisturbed.state()
    wanted = [undisturbed.take(37) for _ in range(20)]
    for start_over in range(2):  # a fresh stream, and one that is far ahead
        other.restore(state)
        found = [other.take(37) for _ in range(20 + 40 * start_over)]
        for one, two in zip(found, wanted, strict=False):
            assert all(torch.equal(t, getattr(two, name)) for name, t in vars(one).items() if t is not None)


def test_neither_thread_timing_nor_other_draws_matter() -> None:
    replay = numbered_replay(40)
    fast, slow = stream_of(replay, 40, 3), stream_of(replay, 40, 3, slow_s=0.01)
    other_seed = stream_of(replay, 40, 3, seed=1)
    busy = threading.Thread(target=lambda: [stream_of(replay, 30, 2, seed=9).take(50) for _ in range(3)])
    busy.start()
    for _ in range(30):
        wanted = fast.take(29)
        assert torch.equal(slow.take(29).steps, wanted.steps)
        assert not torch.equal(other_seed.take(29).steps, wanted.steps)
    busy.join()


def test_what_goes_wrong_while_reading_ahead_is_raised_by_the_draw() -> None:
    replay = numbered_replay(10)

    def broken(_: Replay) -> TrainingData:
        raise OSError(5, "Input/output error")

    blocks = EpisodeBlocks.cut(replay, np.ones(10, dtype=bool), 50)
    with pytest.raises(OSError, match="Input/output error"):
        ShuffledStream(blocks, broken, n_pooled=2, seed=[0]).take(4)
