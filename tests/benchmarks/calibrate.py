"""How often the gate and the drift check err where the truth is known.

`python -m tests.benchmarks.calibrate [--logs N] [--family F] [--cell TEXT]` prints a table and, where nothing was left
out, writes docs/calibration.json; with `--add` a part is written too, and the rows of all other cells stay. Every log
that was judged is kept in .calibration/, under its cell, its seed and a digest of settings and code: what was cut off
goes on where it stopped, and more logs cost only the new ones. The cells grow alike: where a run was cut off half way,
half as many logs are there for each.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets.settings import build_settings
from pipelines.engine_config import EngineConfig
from pipelines.engines import spreading
from tests.benchmarks.calibrated_code import ROOT, code_behind
from tests.benchmarks.calibration_files import write_calibration
from tests.benchmarks.calibration_rows import (
    CalibrationRow,
    calibration_table,
    canary_rows,
    drift_rows,
    gate_rows,
    guard_rows,
    promises_in_words,
)

DEFAULT_LOGS = 250
"""Under two hours on two cores. A method that errs exactly as often as it states (.05) is found to hold its level in
about half of all runs of 300 logs, and nearly always with 1,000: `--logs 1000` adds the missing ones."""

_SAY_EVERY_S = 20.0

_ON_ENGINE = 64
"""Logs that an engine is given at once."""

_FAMILIES: dict[str, tuple[str, str, Callable[[Any, Sequence[dict[str, Any]]], list[CalibrationRow]]]] = {
    # Where the cells are, the module whose code they run, and how outcomes become rows.
    "gate": ("gate_cells", "gate_release", gate_rows),
    "learned": ("learned_cells", "learned_cells", gate_rows),
    "autoscaler": ("autoscaler_cells", "autoscaler_cells", gate_rows),
    "drift": ("drift_cells", "drift_cells", drift_rows),
    "joint": ("joint_cells", "joint_cells", drift_rows),
    "guard": ("guard_cells", "guard_cells", guard_rows),
    "promotion": ("promotion_cells", "promotion_cells", drift_rows),
    "canary": ("canary_cells", "canary_cells", canary_rows),
}


@dataclass(frozen=True)
class Cell:
    """One world of one family; `judge` turns a seed into an outcome."""

    family: str
    index: int
    judge: Any

    @property
    def title(self) -> str:
        return f"{self.family} {self.index}: {self.judge.world}; {getattr(self.judge, 'candidate', '')}"

    def key(self) -> str:
        """Digest of the cell's settings and of the code behind it."""
        unseen = {"logs": 0, "limit": False, "power": None}  # what the judge does not look at
        digest = hashlib.sha256(json.dumps(asdict(self.judge) | unseen, sort_keys=True).encode())
        for path in code_behind(f"tests.benchmarks.{_FAMILIES[self.family][1]}"):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()[:16]

    def n_logs(self, asked: int) -> int:
        return max(1, round(asked * float(self.judge.logs)))


def cells(family: str = "", named: str = "") -> list[Cell]:
    """The cells of one family, or of all; those whose title holds `named`, in whatever case."""
    every = [
        Cell(name, index, judge)
        for name, (module, _, _) in _FAMILIES.items()
        if family in ("", name)
        for index, judge in enumerate(importlib.import_module(f"tests.benchmarks.{module}").CELLS)
    ]
    return [cell for cell in every if named.lower() in cell.title.lower()]


def rows_of(cell: Cell, outcomes: Sequence[dict[str, Any]]) -> list[CalibrationRow]:
    """What a cell's outcomes come to."""
    return _FAMILIES[cell.family][2](cell.judge, outcomes)


class Outcomes:
    """The outcomes of a cell by seed, kept as JSON lines."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        self.path = folder / f"{cell.family}-{cell.key()}.jsonl"
        self.by_seed: dict[int, dict[str, Any]] = dict(self._read())

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        text = self.path.read_text() if self.path.exists() else ""
        whole, _, cut_off = text.rpartition("\n")
        if cut_off:  # killed while it was written
            self.path.write_text(whole + "\n" if whole else "")
        for line in whole.splitlines():
            found = json.loads(line)
            yield found.pop("seed"), found

    def add(self, seed: int, outcome: dict[str, Any]) -> None:
        """Keeps one, at once."""
        self.by_seed[seed] = outcome
        with self.path.open("a") as file:
            file.write(json.dumps({"seed": seed, **outcome}) + "\n")

    def first(self, n: int) -> list[dict[str, Any]]:
        """Of seeds 0 to n - 1, those that are there."""
        return [self.by_seed[seed] for seed in range(n) if seed in self.by_seed]


def calibrate(
    wanted: Sequence[Cell], n_logs: int, folder: Path, *, n_workers: int = 2, engine: EngineConfig | None = None
) -> list[CalibrationRow]:
    """Judges the logs that are missing, by so many processes or on an engine, and returns every row."""
    kept = [Outcomes(folder, cell) for cell in wanted]
    missing = sorted(
        (
            (place, seed)
            for place, cell in enumerate(wanted)
            for seed in range(cell.n_logs(n_logs))
            if seed not in kept[place].by_seed
        ),
        # Every cell grows alike, so that what was cut off holds whole rows for fewer logs, and the time left is known.
        key=lambda one: (one[1] / wanted[one[0]].n_logs(n_logs), one[0]),
    )
    _say(f"{len(missing)} logs to judge, {sum(c.n_logs(n_logs) for c in wanted)} in all")
    progress = _Progress(len(missing))
    judged = _judged(wanted, missing, n_workers) if engine is None else _judged_on(engine, wanted, missing, folder)
    for place, seed, outcome in judged:
        kept[place].add(seed, outcome)
        progress.tell(wanted[place].title)
    return [
        row
        for cell, outcomes in zip(wanted, kept, strict=True)
        for row in rows_of(cell, outcomes.first(cell.n_logs(n_logs)))
    ]


def _judged(
    wanted: Sequence[Cell], missing: Sequence[tuple[int, int]], n_workers: int
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    if n_workers < 2:
        _one_thread()
        yield from ((place, seed, wanted[place].judge(seed)) for place, seed in missing)
        return
    waiting: _Waiting = {}
    with ProcessPoolExecutor(n_workers, initializer=_one_thread) as pool:
        for place, seed in missing:
            if len(waiting) >= 4 * n_workers:  # few at a time: interrupted, it loses little
                yield from _finished(waiting)
            waiting[pool.submit(wanted[place].judge, seed)] = (place, seed)
        while waiting:
            yield from _finished(waiting)


def _judged_on(
    engine: EngineConfig, wanted: Sequence[Cell], missing: Sequence[tuple[int, int]], folder: Path
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The same on Dask or Ray, some logs at a time: interrupted, it loses no more than these."""
    with spreading(engine, folder) as spread:
        for start in range(0, len(missing), _ON_ENGINE):
            some = missing[start : start + _ON_ENGINE]
            outcomes = spread("log", _judge, [(wanted[place].judge, seed) for place, seed in some])
            yield from ((place, seed, outcome) for (place, seed), outcome in zip(some, outcomes, strict=True))


def _judge(one: tuple[Any, int]) -> dict[str, Any]:
    judge, seed = one
    outcome: dict[str, Any] = judge(seed)
    return outcome


_Waiting = dict[Future[dict[str, Any]], tuple[int, int]]


def _finished(waiting: _Waiting) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield (*waiting.pop(future), future.result())


def _one_thread() -> None:
    """In each worker: two processes with two threads each would only stand in each other's way."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


class _Progress:
    """Says now and then how far it is, and how long the rest will take at the pace of the cells so far."""

    def __init__(self, n: int) -> None:
        self.n, self.n_done, self.began, self.said = n, 0, time.monotonic(), 0.0

    def tell(self, title: str) -> None:
        self.n_done += 1
        now = time.monotonic()
        if now - self.said < _SAY_EVERY_S and self.n_done < self.n:
            return
        self.said = now
        left = (now - self.began) / self.n_done * (self.n - self.n_done)
        _say(f"{self.n_done} of {self.n}, {(now - self.began) / 60:.1f} min, about {left / 60:.0f} left: {title}")


def with_others(rows: Sequence[CalibrationRow], root: Path, worlds: Sequence[str]) -> list[CalibrationRow]:
    """The rows among those that docs/calibration.json has of other cells, which stay as they are and where they are.

    Args:
        worlds: of all cells in their order; a new one comes behind the one before it.
    """
    found = [CalibrationRow(**row) for row in json.loads((root / "docs" / "calibration.json").read_text())]
    for row in rows:
        same = [i for i, old in enumerate(found) if _identity(old) == _identity(row)]
        if same:
            found[same[0]] = row
            continue
        before = worlds[: worlds.index(row.world) + 1]
        behind = max((i for i, old in enumerate(found) if old.world in before), default=len(found) - 1)
        found.insert(behind + 1, row)
    return found


def _identity(row: CalibrationRow) -> tuple[str, ...]:
    return row.world, row.candidate or "", row.work, row.method


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Judges, prints, writes; 0 whatever was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.calibrate", description=__doc__)
    parser.add_argument("--logs", type=int, default=DEFAULT_LOGS, help="logs per cell; some take a share of it")
    parser.add_argument("--family", default="", choices=["", *_FAMILIES], help="one family; all of them by default")
    parser.add_argument("--cell", default="", help="cells whose title holds this text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--engine", choices=["dask", "ray"], help="instead of processes of its own; see docs/scaling.md"
    )
    parser.add_argument("--address", help="of the engine's cluster; without it --workers processes are started here")
    parser.add_argument("--output", type=Path, default=ROOT, help="root of the repository to write into")
    parser.add_argument("--cache", type=Path, default=ROOT / ".calibration")
    parser.add_argument("--add", action="store_true", help="write a part, beside the rows of other cells as they are")
    asked = parser.parse_args(arguments)
    wanted = cells(asked.family, asked.cell)
    if not wanted:
        parser.error(f"no cell's title holds '{asked.cell}'; titles are:\n" + "\n".join(c.title for c in cells()))
    engine = None
    if asked.engine is not None:
        workers = None if asked.address else asked.workers
        values = {"kind": asked.engine, "address": asked.address, "workers": workers}
        engine = build_settings(EngineConfig, values, "--engine")
    elif asked.address is not None:
        parser.error("--address wants --engine dask or ray")
    rows = calibrate(wanted, asked.logs, asked.cache, n_workers=asked.workers, engine=engine)
    print(calibration_table(rows))
    print(f"\n{promises_in_words(rows)}")
    if asked.add:
        write_calibration(asked.output, with_others(rows, asked.output, [cell.judge.world for cell in cells()]))
    elif not (asked.family or asked.cell):  # a part would replace the whole
        write_calibration(asked.output, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
