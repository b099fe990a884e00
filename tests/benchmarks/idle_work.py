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
"""
"""So that a quickly trained policy becomes the champion: what it is worth does not matter here."""


def idle_rows(folder: Path) -> list[BenchRow]:
    """`offline-dqn nightly` with a champion and no new log."""
    workspace = folder / "idle"
    run("init", str(workspace), "--scenario", "autoscaler")
    settings = workspace / "offline_dqn.toml"
    text = settings.read_text().replace("n_updates = 6000", "n_updates = 200")
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
        env=os.environ | {"COLUMNS": "200"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"offline-dqn {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout
