"""A tiny contract, log rows that fit it, and one-line ways to take them in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from datasets import ingest, reading, reading_apart
from datasets.addresses import parse_address
from datasets.contract import Contract, contract_from_json
from datasets.duck import duck
from datasets.ingest import IngestConfig, IngestReport, ingest_logs
from datasets.lake import Lake, open_lake
from datasets.spreading import Spread, one_by_one
from datasets.tables import TABLES
from datasets.validation import ExpectationRecord, ValidateConfig, ValidationResult

CONTRACT: dict[str, Any] = {
    "name": "tiny",
    "gamma": 0.9,
    "features": {
        "cpu": {"type": "numeric", "min": 0.0, "max": 1.0},
        "zone": {"type": "categorical", "values": ["a", "b"], "nullable": True},
        "busy": {"type": "boolean", "nullable": True},
        "load": {"type": "vector", "length": 2, "nullable": True},
    },
    "actions": {"names": ["down", "hold", "up"], "safe": "hold"},
    "reward": {"min": -10.0, "max": 0.0},
    "episodes": {"timeout": "1h"},
}

ALL_IN_BUCKET = ""
"""Where every lake lies that tests open by `lake_at` alone; empty for folders. `make bucket` sets it."""

NOON = datetime(2024, 5, 2, 12, tzinfo=UTC)
"""Half a day behind the rows of `step_row`: every episode has been idle for longer than the timeout."""


def tiny(changes: Mapping[str, Any] | None = None, **tables: Any) -> Contract:
    """The tiny contract; a table given by keyword is merged into it, a None takes its key out."""
    return contract_from_json(merged(CONTRACT, {**(changes or {}), **tables}), "test")


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` merged in, table by table."""
    result = dict(values)
    for key, change in changes.items():
        if change is None:
            result.pop(key, None)
        elif isinstance(change, Mapping):
            before = result.get(key)
            result[key] = merged(before if isinstance(before, Mapping) else {}, change)
        else:
            result[key] = change
    return result


def step_row(episode: str = "e", step: int = 0, /, **changes: Any) -> dict[str, Any]:
    """A row that fits the tiny contract: one step a minute, the third and last terminates. None takes a key out."""
    row = {
        "episode_id": episode,
        "step": step,
        "timestamp": f"2024-05-01T10:{step:02d}:00Z",
        "observation": {"cpu": 0.5, "zone": "a", "busy": True, "load": [0.0, 1.0]},
        "action": "hold",
        "reward": -1.0,
        "terminated": step == 2,
        "truncated": False,
        "behavior_prob": 0.5,
    }
    return merged(row, changes)


def episode(name: str, n_steps: int = 3, /, **changes: Any) -> list[dict[str, Any]]:
    """The rows of an episode."""
    return [step_row(name, step, **changes) for step in range(n_steps)]


def text_of(rows: Iterable[Mapping[str, Any] | str]) -> str:
    """JSON Lines; a row that is text already is kept as it is."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(rows), encoding="utf-8")
    return path


def lake_at(folder: Path, contract: Contract | None = None, address: str | None = None) -> Lake:
    """The lake of a workspace: in its folder, or in a bucket of which the folder has a copy."""
    place = address or (f"{ALL_IN_BUCKET}{folder.as_posix().replace(' ', '-')}" if ALL_IN_BUCKET else None)
    return open_lake(folder / "lake", contract or tiny(), parse_address(place) if place else None)


def take_in(
    lake: Lake,
    *paths: Path,
    kind: Literal["steps", "outcomes"] = "steps",
    spread: Spread = one_by_one,
    **config: Any,
) -> IngestReport:
    """Ingests; every report's account is checked."""
    report = ingest_logs(
        lake,
        paths,
        IngestConfig(**config),
        ValidateConfig(),
        kind=kind,
        as_of=None if config else NOON,
        base=lake.root.parent,
        spread=spread,
        elsewhere=True,
    )
    if report.batch is not None:
        report.batch.counts.check()
    return report


def counts_of(report: IngestReport) -> dict[str, int]:
    """The account without its zeros and the prefix of its names."""
    assert report.batch is not None
    return {name[2:]: n for name, n in vars(report.batch.counts).items() if n}


def ask(lake: Lake, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a query in which names of tables in braces stand for the tables."""
    tables = {table: lake.scan(table) for table in TABLES}
    with duck() as connection:
        return connection.execute(sql.format(**tables)).fetchall()


def step_keys(lake: Lake) -> list[tuple[str, int]]:
    """Episode and step of every row of the lake, sorted."""
    return ask(lake, "SELECT episode_id, step FROM {steps} ORDER BY ALL")


def change_bytes(lake: Lake, table: str = "steps", *, values: str = "source_line + 1 AS source_line") -> Path:
    """Gives a file of a table other values under its name, as a disk may that changes a byte that no reader checks."""
    file = next(Path(file) for file in sorted(lake.files(table)) if not Path(file).name.startswith("columns-"))
    beside = file.with_name("changed")
    read = f"read_parquet('{file}', hive_partitioning = false)"
    with duck() as connection:
        connection.execute(f"COPY (SELECT * REPLACE ({values}) FROM {read}) TO '{beside}' (FORMAT parquet)")
    beside.replace(file)
    return file


def reasons_of(lake: Lake) -> list[str]:
    """Reasons in quarantine, by place in the log."""
    return [reason for (reason,) in ask(lake, "SELECT reason FROM {quarantine} ORDER BY source, source_line")]


def suite_says(monkeypatch: pytest.MonkeyPatch, success: bool) -> None:
    """Puts a suite in place that needs no process of its own and always says the same."""
    failure = ExpectationRecord("Expect", "observation.cpu", "is well", False, 0.5, 3, (), "The cpu is not well.")
    result = ValidationResult(success, () if success else (failure,), 3, 0.0)
    for validate in ("validate_steps", "validate_outcomes"):
        monkeypatch.setattr(ingest, validate, lambda *_, **__: result)
    for module in (reading, reading_apart):
        monkeypatch.setattr(module, "warm_up", lambda: None)
