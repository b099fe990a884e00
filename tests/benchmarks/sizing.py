"""What a night costs by its number of steps: `make sizing` (python -m tests.benchmarks.sizing [--steps N ...]).

For each number a new workspace gets one simulated night of so many steps and goes through the stages of a night at the
scenario's settings, in a process of its own and without Prefect, whose part does not grow with the log. Each stage's
CPU, wall time and highest memory are measured as a night measures them; disk is what lies there afterwards. What was
measured is kept in docs/sizing.json, where a repeat replaces the rows of its sizes; docs/sizing.md gets its tables from
there, and what was not measured by the law that `law_of` states.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import optimize

from pipelines import stages
from pipelines.cli import quiet_libraries
from pipelines.metrics.usage import UsageLog
from pipelines.training import train
from pipelines.workspace import open_workspace, write_workspace

ROOT = Path(__file__).resolve().parents[2]
STEPS = (30_000, 100_000, 300_000, 1_000_000)
WANTED = (1_000_000, 10_000_000, 100_000_000)
STAGES = ("ingest", "drift", "snapshot", "train", "choose", "evaluate")
"""In the order of the night; `train` fits the networks, `choose` judges the candidates."""

_LARGEST = 3
_STEPS_PER_EPISODE = 6
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Measured:
    """One stage of a night of `n_steps`."""

    n_steps: int
    stage: str
    cpu_s: float
    wall_s: float
    peak_mb: float
    disk_mb: float
    """That it has added to the workspace: logs excluded, which are there before."""
    machine: str


def measure(n_steps: int, folder: Path) -> list[Measured]:
    """A whole night of so many simulated steps."""
    simulated = write_workspace(folder, "autoscaler")
    stages.simulate(simulated, n_episodes=n_steps // _STEPS_PER_EPISODE)
    load = os.getloadavg()[0]
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.sizing", "--night", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    opened = open_workspace(folder)
    disk = {
        "ingest": _size_mb(folder / "lake"),
        "snapshot": _size_mb(opened.snapshots_path),
        "choose": _size_mb(opened.releases_path) - _size_mb(opened.release_path(1) / "report.html"),
        "evaluate": _size_mb(opened.release_path(1) / "report.html"),
    }
    machine = f"{os.cpu_count()} cores, Linux, Python {platform.python_version()}, load {load:.0f}"
    return [
        Measured(
            n_steps,
            line.stage,
            round(line.cpu_s, 2),
            round(line.wall_s, 2),
            round((line.peak_bytes or 0) / 1e6, 1),
            round(disk.get(line.stage, 0.0), 2),
            machine,
        )
        for line in UsageLog(opened.metrics_path).of_night(opened.night())
        if line.stage in STAGES
    ]


def run_stages(folder: Path) -> None:
    """The stages of a night that trains, each measured as the night does."""
    workspace = open_workspace(folder)
    log = UsageLog(workspace.metrics_path)
    with log.stage("ingest", workspace.night):
        stages.ingest(workspace)
    with log.stage("drift", workspace.night):
        drift = stages.measure(workspace)
    with log.stage("snapshot", workspace.night):
        snapshot, _ = stages.snapshot(workspace)
    release = train(workspace, snapshot).release  # measures itself, and the choice
    with log.stage("evaluate", workspace.night):
        stages.evaluate(workspace, release, drift)


def _size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


@dataclass(frozen=True)
class Law:
    """fixed + per_million * (steps / 1 M)."""

    fixed: float
    per_million: float

    def at(self, n_steps: int) -> float:
        """What it says of a night of so many steps."""
        return self.fixed + self.per_million * n_steps / 1e6


def law_of(points: Mapping[int, float]) -> Law:
    """The line a + b n through the three largest measured nights, with a and b not negative.

    Each point counts by its relative error: a small night says as much as a large one. Only the largest are asked,
    since stages do no more of some things beyond limits of their own (an evaluation fits on at most so many steps):
    nights below such a limit say nothing of those beyond it, and would make these too dear.
    """
    sizes = sorted(points)[-_LARGEST:]
    n = np.array(sizes, dtype=np.float64) / 1e6
    y = np.array([points[k] for k in sizes])
    weights = 1.0 / np.maximum(y, 1e-3)
    found, _ = optimize.nnls(np.column_stack([np.ones_like(n), n]) * weights[:, None], y * weights)
    return Law(float(found[0]), float(found[1]))


def tables(rows: Sequence[Measured]) -> str:
    """What was measured, and what the law says of larger nights, in Markdown."""
    sizes = sorted({row.n_steps for row in rows})
    lines = []
    beyond = [n for n in WANTED if n > sizes[-1]] if len(sizes) > 2 else []  # two nights make no law
    law_columns = (
        f" law: fixed + per 1 M steps | its error at {_words(sizes[-1])} from smaller nights |" if beyond else ""
    )
    for title, name, unit in (
        ("CPU seconds", "cpu_s", "s"), ("Highest memory", "peak_mb", "MB"), ("Disk that is added", "disk_mb", "MB"),
    ):  # fmt: skip
        points = {
            stage: {row.n_steps: float(getattr(row, name)) for row in rows if row.stage == stage} for stage in STAGES
        }
        shown = [stage for stage in STAGES if any(points[stage].values())]
        laws = {stage: law_of(points[stage]) for stage in shown}
        lines += [
            f"**{title}** ({unit}) by number of steps{'; *slanted*: by the law, not measured' if beyond else ''}",
            "",
            "| stage | " + " | ".join([_words(n) for n in sizes] + [f"*{_words(n)}*" for n in beyond])
            + " |" + law_columns,
            "| --- " * (len(sizes) + len(beyond) + (3 if beyond else 1)) + "|",
        ]  # fmt: skip
        for stage in shown:
            measured, law = points[stage], laws[stage]
            cells = [_number(measured[n]) if n in measured else "" for n in sizes]
            cells += [f"*{_number(law.at(n))}*" for n in beyond]
            if beyond:
                cells += [f"{_number(law.fixed)} + {_number(law.per_million)}", _error(measured)]
            lines.append(f"| {stage} | {' | '.join(cells)} |")
        if name == "peak_mb":
            whole = [_number(max(points[s].get(n, 0.0) for s in shown)) for n in sizes]
            whole += [f"*{_number(max(laws[s].at(n) for s in shown))}*" for n in beyond]
        else:
            whole = [_number(sum(points[s].get(n, 0.0) for s in shown)) for n in sizes]
            whole += [f"*{_number(sum(laws[s].at(n) for s in shown))}*" for n in beyond]
        lines += [f"| **night** | {' | '.join(whole)} |{' | |' if beyond else ''}", ""]
    machines = sorted({row.machine for row in rows})
    walls = {n: sum(row.wall_s for row in rows if row.n_steps == n) for n in sizes}
    lines.append("Wall time of the stages together (beside other work, where the load says so): "
                 + ", ".join(f"{_number(w)} s at {_words(n)}" for n, w in walls.items()) + ".")  # fmt: skip
    return "\n".join([*lines, "", f"Measured on: {'; '.join(machines)}."])


def _error(points: Mapping[int, float]) -> str:
    """Of the law of all but the largest night, at that one: how far to trust a step of that length."""
    largest = max(points)
    smaller = {n: value for n, value in points.items() if n != largest}
    if len(smaller) < 2 or not points[largest]:
        return ""
    return f"{law_of(smaller).at(largest) / points[largest] - 1:+.0%}"


def _words(n_steps: int) -> str:
    return f"{n_steps / 1e6:g} M" if n_steps >= 1_000_000 else f"{n_steps // 1000} k"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    """Measures, keeps, writes the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sizing", description=__doc__)
    parser.add_argument("--steps", type=int, nargs="*", default=list(STEPS), help="none: only write the tables again")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    parser.add_argument("--night", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    quiet_libraries()
    if asked.night is not None:
        run_stages(asked.night)
        return 0
    kept = asked.output / "sizing.json"
    rows = [Measured(**row) for row in json.loads(kept.read_text())] if kept.exists() else []
    for n_steps in asked.steps:
        folder = Path(tempfile.mkdtemp(prefix="sizing-"))
        try:
            found = measure(n_steps, folder / "workspace")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows = sorted([*(r for r in rows if r.n_steps != n_steps), *found], key=lambda r: r.n_steps)
        kept.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        print(f"{n_steps:,}: {sum(row.cpu_s for row in found):,.0f} s CPU", flush=True)
    page = asked.output / "sizing.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    page.write_text(f"{before}{_BEGIN}\n\n{tables(rows)}\n\n{_END}{rest.partition(_END)[2]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
