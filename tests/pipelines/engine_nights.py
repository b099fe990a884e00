"""The same night on every engine, bit by bit: `make engines` (python -m tests.pipelines.engine_nights [FOLDER]).

One small workspace is copied for each engine and goes through a whole night of its own, through Prefect. What the
nights have made is compared by digests; what they took is printed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from datasets import reading
from pipelines import stages
from pipelines.cli import quiet_libraries
from pipelines.metrics.usage import UsageLog, together
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import write_small_workspace

ENGINES: dict[str, str] = {
    "one after the other": "",
    "2 threads": 'kind = "threads"\nworkers = 2',
    "Dask, 2 processes": 'kind = "dask"\nworkers = 2',
    "Ray, 2 processes": 'kind = "ray"\nworkers = 2',
}


@dataclass(frozen=True)
class Night:
    """What a night has made, as digests by name, and what it took."""

    made: dict[str, str]
    wall_s: float
    cpu_s: float


def prepared(root: Path) -> Workspace:
    """A small workspace with one night of logs in several files, packed: plain ones are read without an engine."""
    workspace = write_small_workspace(root)
    stages.simulate(workspace)
    (log,) = workspace.logs_path.iterdir()
    lines = log.read_text().splitlines(keepends=True)
    for part in range(4):
        packed = workspace.logs_path / f"{log.stem}-{part}.jsonl.gz"
        packed.write_bytes(gzip.compress("".join(lines[part::4]).encode()))
    log.unlink()
    return workspace


def night_with(workspace: Workspace, engine: str, copy: Path) -> Night:
    """A copy of the workspace goes through a night with this `[engine]`."""
    shutil.copytree(workspace.root, copy)
    settings = copy / "offline_dqn.toml"
    settings.write_text(f"{settings.read_text()}\n[engine]\n{engine}\n")
    began = time.perf_counter()
    # In a process of its own, as a user's: Prefect's client waits for the server of an earlier night in this one.
    nightly = [sys.executable, "-c", "from pipelines.cli import main; main()", "nightly", "--workspace", str(copy)]
    subprocess.run(nightly, check=True, stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - began
    done = open_workspace(copy)
    return Night(digests(done), wall_s, together(UsageLog(done.metrics_path).of_night(done.night())).cpu_s)


def digests(workspace: Workspace) -> dict[str, str]:
    """Of everything that a night has found; instants of the clock, places and durations are left out."""
    rows = workspace.query("SELECT * EXCLUDE (batch_id) FROM steps ORDER BY source, source_line").rows
    (snapshot,) = workspace.snapshots_path.glob("[!.]*/snapshot.json")
    release = workspace.release_path(1)
    training = json.loads((release / "training.json").read_text())
    selection = {name: training[name] for name in ("selection", "chosen", "history", "diverged")}
    for metrics in selection["history"]:
        metrics.pop("updates_per_s", None)
    found = {
        "rows of the lake": repr(rows).encode(),
        "snapshot": snapshot.parent.name.encode() + (snapshot.parent / "rewards.npy").read_bytes(),
        "candidates": json.dumps(selection, sort_keys=True).encode(),
        "policy": (release / "policy.safetensors").read_bytes() + (release / "policy.onnx").read_bytes(),
        "evaluation": (release / "evaluation.json").read_bytes(),
        "episodes of the evaluation": (release / "evaluation_episodes.parquet").read_bytes(),
    }
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in found.items()}


def main() -> int:
    """Runs them all; 1 where one differs."""
    quiet_libraries()
    reading.GROUP_BYTES = 1  # so that small logs are spread, too: each file is a group
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    workspace = prepared(folder / "logs")
    nights: dict[str, Night] = {}
    for number, (name, engine) in enumerate(ENGINES.items()):
        nights[name] = night_with(workspace, engine, folder / f"night-{number}")
        print(f"{name:22} {nights[name].wall_s:7.1f} s wall {nights[name].cpu_s:7.1f} s CPU", flush=True)
    first = next(iter(nights.values()))
    apart = {name: [k for k, v in night.made.items() if v != first.made[k]] for name, night in nights.items()}
    for what, digest in first.made.items():
        same = [name for name, night in nights.items() if night.made[what] == digest]
        print(f"{what:28} {digest}  {'the same on all' if len(same) == len(nights) else f'only on {same}'}")
    return int(any(apart.values()))


if __name__ == "__main__":
    raise SystemExit(main())
