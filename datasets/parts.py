"""Parts: the rows of a stage as sorted Parquet files, ready to be committed to the lake's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.duck import literal, quoted
from datasets.journal import StagedFile
from datasets.lake import Lake
from datasets.staging import Stage

_WRITERS = 2
"""Partitions written at the same time: one by itself keeps no more than a core busy."""


def write_parts(
    stage: Stage, folder: Path, *, batch_id: str, default_date: str, at: str
) -> dict[str, list[StagedFile]]:
    """Writes the kept and the bad rows as sorted Parquet files under `folder`, ready to be committed. Rows that the
    order of their table leaves open stand as in their logs: the bytes of a file hang on its rows alone.

    Args:
        default_date: log_date (ISO) of steps that carry no timestamp.
        at: ISO instant of the quarantine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _whatever_is_known(stage.connection):
        return _written(stage, folder, batch_id, default_date, at)


@contextmanager
def _whatever_is_known(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Writes the same bytes whatever DuckDB knows of a column: where its statistics say that there is no null, it packs
    the column otherwise, and a table has other statistics than the files that the same rows may lie in."""
    connection.execute("SET disabled_optimizers = 'statistics_propagation'")
    try:
        yield
    finally:
        connection.execute("RESET disabled_optimizers")


def _written(stage: Stage, folder: Path, batch_id: str, default_date: str, at: str) -> dict[str, list[StagedFile]]:
    quarantine = _copy_if_any(
        stage,
        f"SELECT *, {literal(stage.kind)} AS kind, {literal(batch_id)} AS batch_id, "
        f"TIMESTAMPTZ {literal(at)} AS quarantined_at FROM bad ORDER BY source, source_line",
        folder / "quarantine.parquet",
        f"{batch_id}.parquet",
    )
    if stage.kind == "outcomes":
        outcomes = _copy_if_any(
            stage,
            f"SELECT {', '.join(map(quoted, stage.columns))}, {literal(batch_id)} AS batch_id FROM {stage.kept_sql} "
            "ORDER BY decision_id, timestamp, ordinal",
            folder / "outcomes.parquet",
            f"{batch_id}.parquet",
        )
        return {"outcomes": outcomes, "quarantine": quarantine}
    return {"steps": _write_steps(stage, folder / "steps", batch_id, default_date), "quarantine": quarantine}


def _write_steps(stage: Stage, folder: Path, batch_id: str, default_date: str) -> list[StagedFile]:
    kept, today = stage.kept_sql, literal(default_date)
    counted = stage.connection.execute(
        f"SELECT coalesce(log_date, DATE {today}) AS day, count(*) FROM {kept} GROUP BY 1 ORDER BY 1"
    ).fetchall()
    columns = ", ".join(quoted(name) for name in stage.columns if name != "log_date")
    group = f", ROW_GROUP_SIZE {stage.rows_per_group}" if stage.rows_per_group else ""

    def write(day: Any, n_rows: int) -> StagedFile:
        name = f"log_date={day}/{batch_id}.parquet"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        undated = " OR log_date IS NULL" if str(day) == default_date else ""
        with stage.connection.cursor() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(
                f"""COPY (
                    SELECT {columns}, {literal(batch_id)} AS batch_id FROM {kept}
                    WHERE log_date = DATE '{day}'{undated} ORDER BY episode_id, step, timestamp, ordinal
                ) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd{group})"""
            )
        return StagedFile(path, name, {"log_date": str(day)}, n_rows)

    with ThreadPoolExecutor(_WRITERS) as writers:
        return list(writers.map(lambda counts: write(*counts), counted))


def _copy_if_any(stage: Stage, query: str, path: Path, name: str) -> list[StagedFile]:
    n_rows = stage.count(f"({query})")
    if not n_rows:
        return []
    stage.connection.execute(f"COPY ({query}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)")
    return [StagedFile(path, name, {}, n_rows)]


def stage_records(
    lake: Lake, table: str, records: Iterable[dict[str, object]], folder: Path, *, batch_id: str
) -> list[StagedFile]:
    """Writes a few records of a small table as a Parquet file, ready to be committed."""
    rows = list(records)
    if not rows:
        return []
    schema = pq.read_schema(lake.files(table)[0])
    path = folder / f"{table}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
    # One batch may write a table several times over its life (held, then released): the number keeps names apart.
    return [StagedFile(path, f"{batch_id}-{lake.commit_number() + 1}.parquet", {}, len(rows))]
