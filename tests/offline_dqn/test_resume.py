"""Training that is cut off anywhere and repeated ends in the bits of one that nothing disturbed."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.replay import TRAIN, Replay
from offline_dqn.checkpoint import CheckpointError
from offline_dqn.learner import fit
from offline_dqn.stopping import TrainingStoppedError
from offline_dqn.streaming import StreamedSource, training_source
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import TrainedQ
from tests.offline_dqn.logs import numbered_replay

FORKED = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import torch
N_KILLS = 4
QUICK = TrainConfig(
    n_updates=120, batch_size=32, hidden=(16, 16), log_every=10, checkpoint_every=7, target_sync_every=13,
    penalty_weights=(0.0, 1.0), candidates_at=(0.3, 0.7, 1.0), device="cpu",
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "uniform": {"n_step": 3},
    "older nights": {"older_share": 0.25, "polyak": 0.05, "dueling": True},
    "prioritized": {"priority_exponent": 0.6, "settled_share": 0.01},
    "ensemble": {"n_members": 3, "target_gaps": (0.5,), "n_quantiles": 5, "cvar_share": 0.4},
    "streamed": {"largest_in_memory_mb": 1, "n_step": 2},
    "streamed, older nights": {"largest_in_memory_mb": 1, "older_share": 0.25},
}


def config_of(name: str) -> TrainConfig:
    return TrainConfig.model_validate(QUICK.model_dump() | CONFIGS[name])


@pytest.fixture(scope="module")
def replay() -> Replay:
    return numbered_replay(1_500)


def train(replay: Replay, config: TrainConfig, folder: Path | None = None, **options: Any) -> TrainedQ:
    source = training_source(replay, replay.split == TRAIN, config, older=replay.nights < replay.nights[200])
    assert isinstance(source, StreamedSource) == (config.largest_in_memory_mb == 1)
    return fit(source, config, checkpoint_dir=folder, **options)


def assert_same_bits(found: TrainedQ, wanted: TrainedQ, said: str = "") -> None:
    assert [(n.name, n.step) for n in found.networks] == [(n.name, n.step) for n in wanted.networks], said
    for one, other in zip(found.networks, wanted.networks, strict=True):
        for name, weights in other.weights.items():
            assert one.weights[name].tobytes() == weights.tobytes(), (said, one.name, one.step, name)
        assert (one.q_greedy_mean, one.q_greedy_max) == (other.q_greedy_mean, other.q_greedy_max), said
    timeless = [[{k: v for k, v in m.items() if k != "updates_per_s"} for m in t.history] for t in (found, wanted)]
    assert timeless[0] == timeless[1], said


def in_child(work: Callable[[], object]) -> Any:
    """A started process that is a copy of this one."""

    def run() -> None:
        torch.set_num_threads(1)
        work()

    process = FORKED.Process(target=run)
    process.start()
    return process


@pytest.mark.parametrize("name", CONFIGS)
def test_training_killed_at_random_moments_ends_in_the_same_bits(name: str, replay: Replay, tmp_path: Path) -> None:
    config, checkpoint = config_of(name), tmp_path / "training.safetensors"
    seed = int(np.random.default_rng().integers(2**32))  # other moments at every run
    rng = np.random.default_rng(seed)
    killed = 0
    for _ in range(N_KILLS):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = in_child(lambda: train(replay, config, tmp_path))
        while process.is_alive() and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0.0, 0.05)))  # in an update, in the next checkpoint, or behind it
        process.kill()
        process.join()
        killed += process.exitcode == -9
    assert killed, f"every training ended before it was killed (seed {seed})"
    assert_same_bits(train(replay, config, tmp_path), train(replay, config), f"seed {seed}")


def test_what_was_done_is_not_done_again(replay: Replay, tmp_path: Path) -> None:
    config = config_of("streamed")

    def stop(step: int, _: dict[str, float]) -> None:
        if step == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replay, config, tmp_path, on_metrics=stop)
    seen: list[int] = []
    train(replay, config, tmp_path, on_metrics=lambda step, _: seen.append(step))
    assert seen == [60, 70, 80, 90, 100, 110, 120]  # the last checkpoint was at 56
    train(replay, config, tmp_path, on_metrics=lambda *_: pytest.fail("trained"))


def test_full_disk_leaves_the_last_good_checkpoint_and_says_what_to_do(replay: Replay, tmp_path: Path) -> None:
    config = config_of("uniform")

    def stop(step: int, _: dict[str, float]) -> None:
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replay, config, tmp_path / "kept", on_metrics=stop)
    good = (tmp_path / "kept" / "training.safetensors").read_bytes()

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, len(good) // 2))
        try:
            train(replay, config, tmp_path / "kept")
        except CheckpointError as error:
            (tmp_path / "said").write_text(str(error))

    process = in_child(on_a_full_disk)
    process.join()
    said = (tmp_path / "said").read_text()
    assert "of update 35 (" in said
    assert "the one before it is still there. Make room, then repeat the command" in said
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["training.safetensors"]
    assert (tmp_path / "kept" / "training.safetensors").read_bytes() == good
    assert_same_bits(train(replay, config, tmp_path / "kept"), train(replay, config))


def test_first_checkpoint_on_a_full_disk_says_that_there_is_none_before(replay: Replay, tmp_path: Path) -> None:
    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
        try:
            train(replay, config_of("uniform"), tmp_path / "kept")
        except CheckpointError as error:
            (tmp_path / "said").write_text(str(error))

    process = in_child(on_a_full_disk)
    process.join()
    assert "there is none before it" in (tmp_path / "said").read_text()
    assert not list((tmp_path / "kept").iterdir())


def test_a_larger_pool_or_another_share_starts_anew(
    replay: Replay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("streamed, older nights")
    train(replay, config, tmp_path)
    other = config.model_copy(update={"older_share": 0.5})
    assert_same_bits(train(replay, other, tmp_path), train(replay, other))
    assert "belongs to other data or settings" in caplog.text


def test_a_training_that_is_told_to_stop_leaves_a_checkpoint_of_just_there(replay: Replay, tmp_path: Path) -> None:
    config = config_of("uniform")  # checkpoints at 49 and 56, and none at 53

    def stop(step: int) -> None:
        if step == 53:
            raise TrainingStoppedError("the money is spent")

    with pytest.raises(TrainingStoppedError, match="the money is spent"):
        train(replay, config, tmp_path, may_update=stop)

    begun: list[int] = []
    found = train(replay, config, tmp_path, may_update=begun.append)
    assert begun[0] == 53
    assert len(begun) == config.n_updates - 53
    assert_same_bits(found, train(replay, config))
