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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import reading
from pipelines import cli, engines, stages
from pipelines.metrics.usage import UsageLog, together
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import write_small_workspace

ENGINES: dict[str, str] = {
    "one after the other": "",
    "2 threads": 'kind = "threads"\nworkers = 2',
    "Dask, 2 processes": 'kind = "dask"\nworkers = 2',
    "Ray, 2 processes": 'kind = "ray"\nworkers = 2',
}

_N_LOGS = 4


@dataclass(frozen=True)
class Night:
    """What a night has made, as digests by name, what it took, and how many pieces of each kind its workers did."""

    made: dict[str, str]
    wall_s: float
    cpu_s: float
    pieces: dict[str, int]


def prepared(root: Path) -> Workspace:
    """A small workspace with one night of logs in several files, packed: plain ones are read without an engine."""
    workspace = write_small_workspace(root)
    stages.simulate(workspace)
    (log,) = workspace.logs_path.iterdir()
    lines = log.read_text().splitlines(keepends=True)
    for part in range(_N_LOGS):
        packed = workspace.logs_path / f"{log.stem}-{part}.jsonl.gz"
        packed.write_bytes(gzip.compress("".join(lines[part::_N_LOGS]).encode()))
    log.unlink()
    return workspace


def night_with(workspace: Workspace, engine: str, copy: Path) -> Night:
    """A copy of the workspace goes through a night with this `[engine]`."""
    shutil.copytree(workspace.root, copy)
    settings = copy / "offline_dqn.toml"
    settings.write_text(f"{settings.read_text()}\n[engine]\n{engine}\n")
    began = time.perf_counter()
    # In a process of its own, as a user's: Prefect's client waits for the server of an earlier night in this one.
    pieces = copy.with_suffix(".pieces")
    of_small_groups = f"from tests.pipelines.engine_nights import main_of_night; main_of_night({str(pieces)!r})"
    nightly = [sys.executable, "-c", of_small_groups, "nightly", "--workspace", str(copy)]
    subprocess.run(nightly, check=True, stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - began
    done = open_workspace(copy)
    cpu_s = together(UsageLog(done.metrics_path).of_night(done.night())).cpu_s
    worked_out = Counter(pieces.read_text().split()) if pieces.exists() else Counter[str]()
    return Night(digests(done), wall_s, cpu_s, dict(worked_out))


def main_of_night(pieces: str) -> None:
    """`offline-dqn` in the process of a night: small logs are spread, too, since each file is a group.

    Args:
        pieces: file that a word is written to for each piece that workers have worked out: what it is called.
    """
    reading.GROUP_BYTES = 1
    work_out = engines._Engine.__call__

    def counted(engine: Any, what: str, function: Any, items: Sequence[Any]) -> list[Any]:
        found = work_out(engine, what, function, items)
        if engine._workers is not None and len(items) > 1:  # else it is done here
            with Path(pieces).open("a") as file:
                file.write(f"{what} " * len(found))
        return found

    engines._Engine.__call__ = counted  # type: ignore[assignment,method-assign]
    cli.main()


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
    """Runs them all; 1 where one differs, or did not spread what it is to show."""
    cli.quiet_libraries()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    workspace = prepared(folder / "logs")
    nights: dict[str, Night] = {}
    for number, (name, engine) in enumerate(ENGINES.items()):
        nights[name] = night_with(workspace, engine, folder / f"night-{number}")
        night = nights[name]
        spread = ", ".join(f"{n} {what}" for what, n in night.pieces.items()) or "nothing"
        print(f"{name:22} {night.wall_s:7.1f} s wall {night.cpu_s:7.1f} s CPU   spread: {spread}", flush=True)
    first = next(iter(nights.values()))
    apart = {name: [k for k, v in night.made.items() if v != first.made[k]] for name, night in nights.items()}
    for what, digest in first.made.items():
        same = [name for name, night in nights.items() if night.made[what] == digest]
        print(f"{what:28} {digest}  {'the same on all' if len(same) == len(nights) else f'only on {same}'}")
    unspread = [name for name, engine in ENGINES.items() if engine and nights[name].pieces.get("group", 0) < _N_LOGS]
    if unspread:
        print(f"The logs were not read by groups, so that nothing is shown of it: {', '.join(unspread)}")
    return int(any(apart.values()) or bool(unspread))


if __name__ == "__main__":
    raise SystemExit(main())
