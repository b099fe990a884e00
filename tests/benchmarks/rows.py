"""The row of a benchmark, the table that is printed and the file that is written."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WORKS = ("ingest", "suite", "query", "snapshot", "updates", "streaming", "estimators", "drift", "decision", "idle")
"""The words that a row's `work` may begin with."""


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One piece of work, done by the project and by a peer in the same run on the same machine."""

    work: str
    """Begins with one of `WORKS`, then says what was done."""
    ours: float
    """In `unit`; less is better in every row."""
    peer: float | None
    """The same by the peer; None where a goal stands alone."""
    peer_version: str
    """Who the peer is, with its version; "" without one."""
    unit: str
    ratio: float | None
    """ours / peer: below 1 the project needs less."""
    goal: str | None
    """In words; None where the project states no goal against this peer."""
    met: bool | None
    """None without a goal."""
    machine: str

    def __post_init__(self) -> None:
        if self.work.split()[0].rstrip(",:") not in WORKS:
            raise ValueError(f"work begins with one of {', '.join(WORKS)}; found '{self.work}'.")


def bench_row(
    work: str,
    ours: float,
    peer: float | None,
    peer_version: str,
    unit: str,
    *,
    largest_ratio: float | None = None,
    largest: float | None = None,
) -> BenchRow:
    """A row whose goal is a largest ratio to the peer, a largest value of our own, or none."""
    ratio = None if peer is None else ours / peer
    goal, met = None, None
    if largest_ratio is not None and ratio is not None:
        goal, met = f"at most {largest_ratio:g} times the peer's", ratio <= largest_ratio
    elif largest is not None:
        goal, met = f"at most {largest:g} {unit}", ours <= largest
    return BenchRow(
        work=work,
        ours=_rounded(ours),
        peer=None if peer is None else _rounded(peer),
        peer_version=peer_version,
        unit=unit,
        ratio=None if ratio is None else _rounded(ratio),
        goal=goal,
        met=met,
        machine=machine(),
    )


def machine() -> str:
    """Cores, processor, system and Python of this run, and how many processes wanted the cores over the last minute."""
    model = platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        named = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{cores} cores of {model}, {platform.system()}, Python {platform.python_version()}{load}"


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def side_by_side(ours: Callable[[], float], peer: Callable[[], float], *, rounds: int) -> tuple[float, float]:
    """Medians of both, measured in turns: whatever slows the machine for a while slows both."""
    found = [(ours(), peer()) for _ in range(rounds)]
    return statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def write_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes beside the target, then renames; one row a line, so that a change of one reads as such."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    lines = ",\n ".join(json.dumps(row) for row in rows)
    beside.write_text(f"[{lines}]\n")
    beside.replace(path)


def write_benchmarks(path: Path, rows: Sequence[BenchRow]) -> None:
    """Replaces the rows of the groups that were measured, and keeps those of the others."""
    groups = {_group(row.work) for row in rows}
    kept: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    found = [row for row in kept if _group(row["work"]) not in groups] + [asdict(row) for row in rows]
    write_json(path, sorted(found, key=lambda row: WORKS.index(_group(row["work"]))))


def table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    """Plain text, columns aligned, the first to the left and the rest to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def benchmark_table(rows: Sequence[BenchRow]) -> str:
    """The table of `make bench`."""
    cells = [
        [
            row.work,
            f"{row.ours:g} {row.unit}",
            "" if row.peer is None else f"{row.peer:g} {row.unit}",
            "" if row.ratio is None else f"{row.ratio:g}",
            row.goal or "none stated",
            {True: "yes", False: "NO", None: ""}[row.met],
            row.peer_version,
        ]
        for row in rows
    ]
    return table(cells, ["work", "ours", "peer", "ours / peer", "goal", "met", "who the peer is"])


def _group(work: str) -> str:
    return work.split()[0].rstrip(",:")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
