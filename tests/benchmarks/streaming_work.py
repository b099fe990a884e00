"""Training on a snapshot larger than memory: updates beside those from memory, and the peak of a process of its own."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.observations import Observations
from datasets.replay import TRAIN
from datasets.snapshot import SnapshotSummary, open_snapshot
from datasets.snapshot_writer import SnapshotWriter, StepBlock, count_splits, new_snapshot
from offline_dqn.learner import fit
from offline_dqn.sampling import BatchSource, InMemorySource
from offline_dqn.streaming import StreamedSource, training_source
from offline_dqn.train_config import TrainConfig
from tests.benchmarks.rows import BenchRow, bench_row
from tests.benchmarks.step_logs import EPISODE_STEPS, STEPS_PER_DAY, benchmark_contract

_EVERYTHING_MB, _DEFAULT_MB, _LITTLE_MB = 100_000, TrainConfig().largest_in_memory_mb, 250
"""Settings of `largest_in_memory_mb`: everything is in memory, a large snapshot streams, and a smaller one too."""

Found = dict[str, float]


def streaming_rows(folder: Path, n_steps: int, n_updates: int = 400, rounds: int = 5) -> list[BenchRow]:
    """Updates and peak memory on a large snapshot that streams, beside a twentieth of it in memory."""
    small = write_noise_snapshot(folder / "small", n_steps // 20)
    large = write_noise_snapshot(folder / "large", n_steps)
    # A large snapshot streams by itself; one that would not is made to.
    stream_mb = _DEFAULT_MB if n_steps >= 10_000_000 else _LITTLE_MB
    rates = _in_process(large, stream_mb, small, _EVERYTHING_MB, n_updates, rounds)
    ours, peer = _in_process(large, stream_mb, n_updates), _in_process(small, _EVERYTHING_MB, n_updates)
    shutil.rmtree(folder)
    said = f"streaming of {n_steps:,} steps with 12 features"
    who = f"the same with {n_steps // 20:,} steps in memory"
    update = f"{said}, update of 256x256, batch 256, one thread"
    return [
        bench_row(update, rates["streamed_ms"], rates["in_memory_ms"], who, "ms", largest_ratio=1.25),
        bench_row(f"{said}, peak memory of the training", ours["peak_mb"], peer["peak_mb"], who, "MB", largest=2_000),
        bench_row(f"{said}, time before the first update", ours["ready_s"], peer["ready_s"], who, "s"),
    ]


def write_noise_snapshot(folder: Path, n_steps: int) -> Path:
    """A snapshot of noise in episodes of 20 steps, without a lake."""
    rng = np.random.default_rng(0)
    contract = benchmark_contract()
    n_episodes = n_steps // EPISODE_STEPS
    n_steps = n_episodes * EPISODE_STEPS
    nights = np.datetime64("2024-01-01") + np.arange(n_episodes) * EPISODE_STEPS // STEPS_PER_DAY
    episodes = pa.table(
        {
            "episode_id": [f"e{i:08}" for i in range(n_episodes)],
            "cluster_code": np.arange(n_episodes),
            "night": nights,
            "start": nights.astype("datetime64[us]"),
            "policy_version": pa.array(["v1"] * n_episodes),
            "split": rng.choice(3, size=n_episodes, p=[0.7, 0.15, 0.15]).astype(np.int8),
            "n_steps": np.full(n_episodes, EPISODE_STEPS),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    with new_snapshot(folder) as staging:
        writer = SnapshotWriter(staging, contract, episodes)
        for start in range(0, n_steps, 100_000):
            writer.append(_noise(rng, min(100_000, n_steps - start)))
        replay = writer.finish()
        summary = SnapshotSummary(
            digest="", as_of="2030-01-01T00:00:00+00:00", lake_versions={}, judge_since=None, gate_since=None,
            n_steps=n_steps, n_episodes=n_episodes, split_episodes=count_splits(replay), n_open=0, n_damaged=0,
            damage={}, n_unplaced=0, n_before_change=0, n_too_new=0, n_unusable_ends=0, n_erased=0, redacted_from=None,
            config={},
        )  # fmt: skip
        digest = writer.content_digest(replay, summary.left_out)
        path, _ = writer.commit(replay, SnapshotSummary(**{**summary.to_json(), "digest": digest}))
    return path


def _noise(rng: np.random.Generator, n: int) -> StepBlock:
    columns: dict[str, Any] = {f"x{i}": 1_000.0 * rng.random(n) for i in range(10)}
    columns |= {"zone": rng.integers(3, size=n).astype(np.int32), "busy": rng.integers(2, size=n).astype(np.float64)}
    observations = Observations(columns, {"zone": ("a", "b", "c")})
    is_last = np.arange(n) % EPISODE_STEPS == EPISODE_STEPS - 1
    cut = is_last & (rng.random(n) < 0.1)
    return StepBlock(
        observations=observations,
        finals=observations.take(cut),
        available=np.ones((n, 3), dtype=bool),
        actions=rng.integers(3, size=n),
        rewards=-10.0 * rng.random(n),
        terminated=is_last & ~cut,
        truncated=cut,
        behavior_prob=np.full(n, 1 / 3),
        is_last=is_last,
        has_final=cut,
    )


def _in_process(*arguments: object) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.streaming_work", *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _config(largest_in_memory_mb: int, n_updates: int) -> TrainConfig:
    """One network: the less there is to compute, the more the batches matter."""
    return TrainConfig(
        n_updates=n_updates, log_every=max(1, n_updates // 8), penalty_weights=(1.0,), bcq_thresholds=(), clone=False,
        candidates_at=(1.0,), device="cpu", largest_in_memory_mb=largest_in_memory_mb,
    )  # fmt: skip


def _opened(path: Path, config: TrainConfig) -> BatchSource:
    replay, _ = open_snapshot(path)
    source = training_source(replay, replay.split == TRAIN, config)
    source.draw(0.0)
    return source


def _side_by_side(large: Path, stream_mb: int, small: Path, memory_mb: int, n_updates: int, rounds: int) -> Found:
    """Milliseconds per update from both sources in turns: whatever slows the machine for a while slows both."""
    configs = {"streamed_ms": _config(stream_mb, n_updates), "in_memory_ms": _config(memory_mb, n_updates)}
    paths = {"streamed_ms": large, "in_memory_ms": small}
    sources = {name: _opened(paths[name], config) for name, config in configs.items()}
    if not isinstance(sources["streamed_ms"], StreamedSource) or not isinstance(
        sources["in_memory_ms"], InMemorySource
    ):
        raise ValueError("so few steps are not streamed; measure at least 2,000,000")
    found: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(rounds):
        for name, source in sources.items():
            rates: list[float] = []
            on_metrics = partial(_note_rate, rates)
            fit(source, configs[name], on_metrics=on_metrics)
            found[name] += [1e3 / rate for rate in rates[1:]]  # the first warms up
    return {name: statistics.median(values) for name, values in found.items()}


def _note_rate(rates: list[float], _: int, metrics: Mapping[str, float]) -> None:
    rates.append(metrics["updates_per_s"])


def _alone(path: Path, largest_in_memory_mb: int, n_updates: int) -> Found:
    """Time until the first update, and the peak memory of a process that does nothing else."""
    config = _config(largest_in_memory_mb, n_updates)
    began = time.perf_counter()
    source = _opened(path, config)
    ready_s = time.perf_counter() - began
    fit(source, config)
    # Not getrusage: its peak outlives exec, so that of the process which started this one would count.
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    return {"ready_s": ready_s, "peak_mb": int(peak) / 1024}


if __name__ == "__main__":
    given = sys.argv[1:]
    if len(given) == 3:
        measured = _alone(Path(given[0]), int(given[1]), int(given[2]))
    else:
        measured = _side_by_side(Path(given[0]), int(given[1]), Path(given[2]), *map(int, given[3:]))
    print(json.dumps(measured))
