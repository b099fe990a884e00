"""Rows that have to leave the lake, or to change: their files are written anew without them, in one commit.

What is removed is written down in the table `removals` by the same commit, so that a batch's account still adds up:
rows that it brought = rows that are there + rows that were removed since.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.duck import duck, literal, quoted
from datasets.durable import flush_to_disk
from datasets.journal import Retired, StagedFile, refuse_altered
from datasets.lake import Lake
from datasets.tables import COLUMNS_FILE, SORTED_BY, file_schema, partition_columns, scan_files


@dataclass(frozen=True)
class Rewrite:
    """A change to some rows of a table.

    Attributes:
        where: SQL condition over the table's columns; rows for which it is true are meant. Other tables may stand in
            subqueries, as `lake.scan(table)`.
        values: SQL expressions of the columns that get another value; without any, the rows go.
    """

    where: str
    values: Mapping[str, str] | None = None


def rewrite_rows(
    lake: Lake, rewrites: Mapping[str, Rewrite], *, reason: str, at: datetime, purge: bool = False
) -> dict[str, int]:
    """Removes or changes rows of several tables in one commit: all of it, or nothing.

    The caller holds the lake's lock. Only files that hold such rows are written anew. Killed anywhere, it leaves
    either nothing or a journal from which the next command that opens the lake finishes all of it, the purge included.

    Args:
        rewrites: by table.
        reason: recorded with the removed rows.
        at: recorded with the removed rows.
        purge: whether the rows are taken from the disk before the commit counts as complete, too: old files of all
            tables that are named, changed or not, the log of them, and what lies in the staging folder. Without it
            they go with the next vacuum.

    Returns:
        How many rows were removed or changed, by table.

    Raises:
        LakeError: a file of an unfinished commit is gone.
        AlteredFilesError: bytes of a file with such rows are not those that were written. Nothing has changed.
    """
    lake.finish_commit()
    shutil.rmtree(lake.staging_path, ignore_errors=True)  # left by a process that died: the lock was free
    try:
        changes = stage_rewrites(lake, rewrites, lake.staging_path / "rewriting", reason=reason, at=at)
        if any(changes.n_rows.values()):
            lake.commit(changes.staged, changes.retired, purge=tuple(rewrites) if purge else ())
        return changes.n_rows
    finally:
        if not lake.journal_path.exists():  # an unfinished commit still needs its files
            shutil.rmtree(lake.staging_path, ignore_errors=True)


@dataclass(frozen=True)
class StagedRewrites:
    """Rewrites that wait for their commit, which may bring more than them.

    Attributes:
        staged: new files by table, that of the removals included.
        retired: the files they stand for.
        n_rows: how many rows are removed or changed, by table.
    """

    staged: dict[str, list[StagedFile]]
    retired: dict[str, list[Retired]]
    n_rows: dict[str, int]


def stage_rewrites(
    lake: Lake, rewrites: Mapping[str, Rewrite], folder: Path, *, reason: str, at: datetime
) -> StagedRewrites:
    """Writes the files of `rewrite_rows` into `folder` and commits nothing. The caller holds the lake's lock."""
    folder.mkdir(parents=True)
    number = lake.commit_number() + 1
    staged: dict[str, list[StagedFile]] = {}
    retired: dict[str, list[Retired]] = {}
    n_rows, removed = dict.fromkeys(rewrites, 0), list[dict[str, object]]()
    with duck(spill=folder / "spill") as connection:
        for table, rewrite in rewrites.items():
            staged[table], retired[table], by_batch = _rewritten(lake, connection, table, rewrite, number, folder)
            n_rows[table] = sum(by_batch.values())
            if rewrite.values is None:
                removed += [
                    {"table": table, "batch_id": b, "n_rows": n, "reason": reason, "removed_at": at}
                    for b, n in by_batch.items()
                ]
    if removed:
        staged["removals"] = removal_records(lake, removed, number, folder)
    return StagedRewrites(staged, retired, n_rows)


def _rewritten(
    lake: Lake, connection: duckdb.DuckDBPyConnection, table: str, rewrite: Rewrite, number: int, folder: Path
) -> tuple[list[StagedFile], list[Retired], dict[str, int]]:
    """New files for those that hold such rows, the old ones, and the number of such rows by batch."""
    files = lake.files(table)
    forms = [file for file in files if Path(file).name.startswith(COLUMNS_FILE)]
    found = connection.execute(
        f"""SELECT filename, batch_id, count(*) FROM {scan_files(files, by_date=_by_date(table), named=True)}
        WHERE ({rewrite.where}) IS TRUE GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    by_file, by_batch = dict[str, int](), dict[str, int]()
    for file, batch_id, n in found:
        by_file[file] = by_file.get(file, 0) + n
        by_batch[batch_id] = by_batch.get(batch_id, 0) + n
    refuse_altered(by_file)  # written anew, changed values would get a name that vouches for them
    staged, retired = list[StagedFile](), list[Retired]()
    for place, (file, n_meant) in enumerate(by_file.items()):
        old = Retired.at(table, file)
        retired.append(old)
        n_left = pq.read_metadata(file).num_rows - (n_meant if rewrite.values is None else 0)
        if n_left:
            path = folder / f"{table}-{place}.parquet"
            _write_changed(lake, connection, table, [*forms, file], rewrite, path)
            name = f"{old.name.removesuffix('.parquet')}-{number}.parquet"
            staged.append(StagedFile(path, name, old.partition, n_left))
    return staged, retired, by_batch


def _write_changed(
    lake: Lake, connection: duckdb.DuckDBPyConnection, table: str, files: list[str], rewrite: Rewrite, path: Path
) -> None:
    meant = f"({rewrite.where}) IS TRUE"
    values = rewrite.values or {}
    columns = [
        f"CASE WHEN {meant} THEN {values[name]} ELSE {quoted(name)} END AS {quoted(name)}"
        if name in values
        else quoted(name)
        for name in file_schema(lake.contract, table).names
    ]
    kept = f" WHERE NOT ({meant})" if rewrite.values is None else ""
    connection.execute(
        f"COPY (SELECT {', '.join(columns)} FROM {scan_files(files, by_date=_by_date(table))}{kept} "
        f"ORDER BY {SORTED_BY[table]}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)"
    )


def removal_records(lake: Lake, removed: list[dict[str, object]], number: int, folder: Path) -> list[StagedFile]:
    """The file of the table `removals` for commit `number`, written into `folder`."""
    path = folder / "removals.parquet"
    rows = [{**record, "commit_number": number} for record in removed]
    pq.write_table(pa.Table.from_pylist(rows, schema=file_schema(lake.contract, "removals")), path, compression="zstd")
    return [StagedFile(path, f"removals-{number}.parquet", {}, len(rows))]


def rewrite_held(lake: Lake, rewrites: Mapping[str, Rewrite]) -> dict[str, dict[str, int]]:
    """Removes or changes rows of held batches, which no table holds yet. The caller holds the lake's lock.

    Killed half-way and repeated, it ends the same.

    Args:
        rewrites: by table, as if the batches had been let in; columns that a table only gets then are null.

    Returns:
        How many rows were removed or changed: by batch, by table.
    """
    lake.finish_commit()
    n_rows: dict[str, dict[str, int]] = {}
    for held in sorted(lake.held_path.iterdir()) if lake.held_path.exists() else []:
        for table, rewrite in rewrites.items():
            for path in held_files(held, table):
                n = _rewrite_in_place(lake, table, rewrite, path)
                if n:
                    counted = n_rows.setdefault(held.name, {})
                    counted[table] = counted.get(table, 0) + n
    return n_rows


def held_files(held: Path, table: str) -> list[Path]:
    """The files of a held batch that wait for a table."""
    alone = held / f"{table}.parquet"
    return [alone] if alone.exists() else sorted((held / table).rglob("*.parquet"))


def _rewrite_in_place(lake: Lake, table: str, rewrite: Rewrite, path: Path) -> int:
    with duck() as connection:
        scanned = scan_files([str(path)], by_date=_by_date(table))
        row = connection.execute(f"SELECT count(*) FROM {scanned} WHERE ({rewrite.where}) IS TRUE").fetchone()
        n = int(row[0]) if row else 0
        if not n:
            return 0
        beside = path.with_suffix(".part")
        _write_changed(lake, connection, table, [str(path)], rewrite, beside)
    flush_to_disk(beside)
    beside.replace(path)
    flush_to_disk(path.parent)
    return n


def _by_date(table: str) -> bool:
    return bool(partition_columns(table))
