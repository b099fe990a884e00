"""A night with nothing to do, through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.rows import BenchRow, bench_row, seconds

_GENEROUS = """
[gate]
alpha = 0.4
margin = 50.0
version_zero_margin = 50.0
min_episodes = 2

[gate.overlap]
largest_tail_index = 0.99
largest_share = 0.9
smallest_sample_size = 2.0

[evaluate]
n_replicates = 2000

[evaluate.fqe]
n_random_features = 20
"""
_HASTY = {"n_updates = 6000": "n_updates = 200", "exploration = 0.7   ": "exploration = 1.0   "}
"""A quickly trained policy that explores always becomes the champion: what it is worth does not matter here."""


def idle_rows(folder: Path) -> list[BenchRow]:
    """`offline-dqn nightly` with a champion and no new log."""
    workspace = folder / "idle"
    run("init", str(workspace), "--scenario", "autoscaler")
    settings = workspace / "offline_dqn.toml"
    text = settings.read_text()
    for written, hasty in _HASTY.items():
        assert written in text, f"the scenario's settings no longer say '{written}'"
        text = text.replace(written, hasty, 1)
    settings.write_text(text + _GENEROUS)
    run("simulate", "--episodes", "1500", "--workspace", str(workspace))
    run("nightly", "--workspace", str(workspace))
    run("promote", "1", "--reviewer", "benchmark", "--workspace", str(workspace))
    took = min(seconds(lambda: run("nightly", "--workspace", str(workspace))) for _ in range(2))
    return [bench_row("idle night: nothing new, a champion that stays", took, None, "", "s", largest=20)]


def run(*arguments: str) -> str:
    """One command, as a user starts it."""
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        # On a busy machine a night is slow; it should not fail because Prefect's server took its 20 s to start.
        env=os.environ | {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"offline-dqn {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout
