"""Several processes train one release: the one that `train` alone would have made, to rounding."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import stages
from pipelines.training import train
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import edit

ROOT = Path(__file__).parents[2]


def by_two(workspace: Workspace, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "pipelines.train_distributed", "--workspace", str(workspace.root), *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def training_of(workspace: Workspace, release: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.release_path(release) / "training.json").read_text())
    return found


def test_two_processes_end_in_the_release_that_one_makes(fresh: Workspace, tmp_path: Path) -> None:
    for old, new in (("n_episodes = 2000", "n_episodes = 100"), ("n_updates = 800", "n_updates = 40\nlog_every = 20")):
        edit(fresh.root / "offline_dqn.toml", old, new)
    fresh = open_workspace(fresh.root)
    stages.simulate(fresh)
    stages.ingest(fresh)
    stages.snapshot(fresh)
    shutil.copytree(fresh.root, tmp_path / "alone")
    alone = open_workspace(tmp_path / "alone")
    wanted = train(alone)

    done = by_two(fresh, "--json")
    assert done.returncode == 0, done.stderr[-3_000:]
    found = json.loads(done.stdout)  # one process alone speaks
    assert found["release"] == wanted.release == 1
    assert found["n_steps"] == wanted.n_steps
    names = ({c["name"] for c in selection["candidates"]} for selection in (found["selection"], wanted.selection))
    assert next(names) == next(names)
    ours, theirs = training_of(fresh, 1), training_of(alone, 1)
    assert len(ours["history"]) == len(theirs["history"]) == 2
    for one, other in zip(ours["history"], theirs["history"], strict=True):
        for name in one.keys() - {"updates_per_s"}:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    assert not (fresh.root / "checkpoints" / ours["snapshot"]).exists()

    again = by_two(fresh)
    assert again.returncode == 0, again.stderr[-3_000:]
    assert "Release 1 was trained from this before" in again.stdout + again.stderr
