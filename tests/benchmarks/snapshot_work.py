"""Freezing and opening a snapshot, run as `python -m tests.benchmarks.snapshot_work WORK FOLDER`.

Each measurement has a process of its own, because peak memory is a process's. The peak includes pages of files that
are mapped into it; the system takes those back when it needs room.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from datasets.freezing import freeze_snapshot
from datasets.lake import open_lake
from datasets.snapshot import open_snapshot
from datasets.snapshot_config import SnapshotConfig
from tests.benchmarks.rows import BenchRow, bench_row
from tests.benchmarks.step_logs import benchmark_contract, write_step_lake

_GROWTH = 4
"""How many times larger the second lake is: memory that grew with steps would show."""

_LARGEST_MB = {"freeze": 1300, "open": 600}
"""Goals at any size: DuckDB's limit, the process itself, and the table of episodes."""


def snapshot_rows(folder: Path, n_steps: int) -> list[BenchRow]:
    """Freezing a lake and opening the snapshot at two sizes: peak memory has a limit whatever the size."""
    sizes = {"small": n_steps, "large": n_steps * _GROWTH}
    found: dict[str, dict[str, dict[str, float]]] = {"freeze": {}, "open": {}}
    for name, steps in sizes.items():
        write_step_lake(folder / f"snapshot-{name}" / "lake", steps)
        for work, by_size in found.items():
            by_size[name] = _in_process(work, folder / f"snapshot-{name}")
        shutil.rmtree(folder / f"snapshot-{name}")
    small, large = sizes.values()
    who = f"the same at {small:,} steps"
    rows = []
    for work, by_size in found.items():
        said = f"snapshot, {work} of {large:,} steps with 12 features"
        peaks = by_size["large"]["peak_mb"], by_size["small"]["peak_mb"]
        rows += [
            bench_row(f"{said}, peak memory", *peaks, who, "MB", largest=_LARGEST_MB[work]),
            bench_row(f"{said}, time", by_size["large"]["seconds"], by_size["small"]["seconds"], who, "s"),
        ]
    return rows


def _in_process(work: str, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.snapshot_work", work, str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _freeze(folder: Path) -> None:
    lake = open_lake(folder / "lake", benchmark_contract())
    freeze_snapshot(lake, SnapshotConfig(), folder / "snapshots", as_of=datetime(2030, 1, 1, tzinfo=UTC))


def _open(folder: Path) -> None:
    replay, summary = open_snapshot(next(folder.glob("snapshots/*/snapshot.json")).parent)
    rows = replay.n_steps // 2 + np.arange(1000)
    assert np.isfinite(replay.observations.take(rows).columns["x0"]).all()
    assert summary.n_steps == replay.n_steps


if __name__ == "__main__":
    began = time.perf_counter()
    {"freeze": _freeze, "open": _open}[sys.argv[1]](Path(sys.argv[2]))
    seconds = time.perf_counter() - began
    # Not getrusage: its peak outlives exec, so that of the process which started this one would count.
    status = Path("/proc/self/status").read_text()
    peak_mb = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb}))
