"""Logs of every kind, taken in over two nights by a clock that stands still: the same lake each time."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import ingest, privacy
from datasets.contract import Contract
from datasets.ingest import IngestReport
from datasets.lake import Lake
from datasets.spreading import Spread, one_by_one
from tests.datasets.builders import ask, episode, lake_at, step_row, take_in, text_of, write_rows

_NOW = datetime(2024, 5, 3, tzinfo=UTC)


class _Standing(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:  # type: ignore[override]  # of the class that it stands for
        return _NOW.astimezone(tz)


def write_mixed_logs(folder: Path) -> None:
    """Every kind of file, good and bad rows, repeats and conflicts over files, copies and prefixes of one another."""
    folder.mkdir()
    first = [
        *episode("a", note="x"),
        "garbage",
        "",
        step_row("b", 0, reward=5),
        *episode("b"),
        step_row("tied", decision_id="2"),
    ]
    write_rows(folder / "a.jsonl", first)
    write_rows(folder / "a-copy.jsonl", first)
    write_rows(folder / "a-grown.jsonl", [*first, *episode("c", later=1)])
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(text_of([*episode("d"), *episode("a")]).encode(), mtime=0))
    (folder / "d-again.jsonl.gz").write_bytes((folder / "d.jsonl.gz").read_bytes())
    cut = gzip.compress(text_of(episode("cut", 60)).encode(), mtime=0)
    (folder / "cut.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    (folder / "cut-again.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    write_rows(folder / "e-misnamed.jsonl.gz", episode("e"))  # damaged: it is no gzip
    write_rows(folder / "e.jsonl", episode("e"))  # the same bytes, and well
    write_rows(
        folder / "f.jsonl",
        [step_row("a", 1, reward=-9.0), step_row("d", 2, action="fly"), "[1]", step_row("tied", decision_id="1")],
    )
    write_rows(folder / "g-empty.jsonl", [])
    write_rows(folder / "g-blank.jsonl", ["", ""])
    write_rows(folder / "g-blank-grown.jsonl", ["", "", *episode("g")])
    (folder / "h-pending.jsonl").write_text(json.dumps(step_row("h")))
    (folder / "h-pending-copy.jsonl").write_text(json.dumps(step_row("h")))
    rows = [step_row("i", step, observation={"cpu": 0.5 + step}, user="u1") for step in range(2)]
    flat = [{"cpu": row.pop("observation")["cpu"], **row} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    (folder / "i.csv").write_text(text.getvalue() + "too,few\n")
    pq.write_table(pa.Table.from_pylist(episode("j", other=1)), folder / "j.parquet")
    (folder / "j-broken.parquet").write_bytes(b"PAR1 and no more")
    for number in range(4):
        write_rows(folder / f"z-{number}.jsonl", [*episode(f"z{number}"), {**step_row("z"), f"column_{number}": 1}])


def grow(folder: Path) -> None:
    """What the next night finds."""
    with (folder / "a.jsonl").open("a") as log:
        log.write(text_of([*episode("k"), "more garbage", step_row("d", 1, reward=-8.0)]))
    with (folder / "h-pending.jsonl").open("a") as log:
        log.write("\n" + text_of([step_row("h", 1)]))
    write_rows(folder / "z-5.jsonl", episode("z5"))


def everything(lake: Lake) -> dict[str, bytes]:
    """The bytes of every Parquet file of a lake, by name."""
    return {str(path.relative_to(lake.root)): path.read_bytes() for path in lake.root.rglob("*.parquet")}


@dataclass(frozen=True)
class Nights:
    """What two ingests made.

    Attributes:
        reports: of them.
        told: the same as text, without the folder's own name.
        files: the bytes of every Parquet file of the lake, by name.
        tables: the rows of its small tables, as text.
        n_groups: that were given to be read apart, by ingest.
    """

    reports: tuple[IngestReport, ...]
    told: tuple[str, ...]
    files: dict[str, bytes]
    tables: str
    n_groups: tuple[int, ...]


class Counted:
    """A spread that counts the pieces that it is given, call by call."""

    def __init__(self, spread: Spread) -> None:
        self._spread = spread
        self.given: list[int] = []

    def __call__(self, what: str, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        self.given.append(len(items))
        return self._spread(what, function, items)


def two_nights(folder: Path, contract: Contract, spread: Spread = one_by_one) -> Nights:
    """Mixed logs in a new folder, taken in, grown and taken in again."""
    counted = Counted(spread)
    spread = spread if spread is one_by_one else counted  # that one stands for not to spread at all
    folder.mkdir()
    lake = lake_at(folder, contract)
    write_mixed_logs(folder / "logs")
    ids = (f"b-{number}" for number in count())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "datetime", _Standing)
        patch.setattr(ingest, "new_batch_id", lambda _: next(ids))
        patch.setattr(privacy, "secrets", SimpleNamespace(token_bytes=bytes))  # sealed text is another each time
        reports = [take_in(lake, folder / "logs", spread=spread)]
        grow(folder / "logs")
        reports.append(take_in(lake, folder / "logs", spread=spread))
    rows = [ask(lake, f"SELECT * FROM {{{table}}} ORDER BY ALL") for table in ("batches", "files", "quarantine")]
    told = [json.dumps(report.to_json()).replace(str(folder), "") for report in reports]
    tables = json.dumps(rows, default=str).replace(str(folder), "")
    return Nights(tuple(reports), tuple(told), everything(lake), tables, tuple(counted.given))
