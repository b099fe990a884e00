"""Compaction: many small files become one sorted file, and every row stays as it is.

Each batch leaves a file in every night that it has rows of, and one in each small table. A query opens all of them, so
many small nights get slow although there are few rows. Files of one night are merged into one, sorted like any other;
the old ones stay on the disk for readers that have them open, until they are vacuumed.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from pydantic import Field

from datasets.duck import duck, literal, quoted
from datasets.identities import Identities
from datasets.journal import LakeError, Retired, StagedFile, refuse_altered
from datasets.lake import Lake, changing, lake_lock, until_committed
from datasets.settings import Settings
from datasets.tables import COLUMNS_FILE, SORTED_BY, TABLES, file_schema, partition_columns, scan_files

_LARGE = 128 << 20
"""Bytes from which a file is left alone: it is read as fast alone as merged, and merging it again and again costs."""


class LakeConfig(Settings):
    """How the lake's files are kept."""

    compact_above: int = Field(16, ge=1)
    """After an ingest, the files of a night (or of a table that is not kept by night) are merged when there are more
    than this."""
    memory: str = "1500MB"
    """Limit of the memory that DuckDB may use while it merges files; the rest goes to the lake's staging folder."""


@dataclass(frozen=True)
class Compaction:
    """What a compaction did.

    Attributes:
        n_before, n_after: files of the whole lake.
        n_rows: rows in the files that were written.
        tables: those that changed.
    """

    n_before: int
    n_after: int
    n_rows: int
    tables: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "tables": list(self.tables)}


def compact(lake: Lake, config: LakeConfig, *, above: int | None = None) -> Compaction:
    """Merges the small files of every night, and of every other table, that has more than `above` of them.

    One commit: all of it, or nothing. Rows, with their source and batch, are the same before and after.

    Args:
        above: in place of the configured number; 1 merges whatever can be merged.

    Raises:
        LakeError: the disk is full or the memory too small; nothing has changed then.
        AlteredFilesError: bytes of a file that was to be merged are not those that were written. Nothing has changed.
    """
    most = config.compact_above if above is None else above
    return until_committed(lambda: _compact_once(lake, config, most))


def _compact_once(lake: Lake, config: LakeConfig, most: int) -> Compaction:
    with lake_lock(lake), changing(lake, "the compaction"):
        lake.finish_commit()
        files = {table: lake.files(table) for table in TABLES}
        groups = [
            (table, group, forms)
            for table in TABLES
            for group, forms in [_apart(files[table])]
            for group in _to_merge(group, most)
        ]
        if not groups:
            n_files = sum(map(len, files.values()))
            return Compaction(n_files, n_files, 0, ())
        # Merged, changed values would get a name that vouches for them.
        refuse_altered([file for _, group, _ in groups for file in group])
        Identities(lake).catch_up()  # it finds a batch's rows by the names of files that are about to go
        return _merge_all(lake, groups, config.memory)


def _apart(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files with rows, and the empty ones that give a table its columns."""
    forms = [file for file in files if Path(file).name.startswith(COLUMNS_FILE)]
    return [file for file in files if file not in forms], forms


def _to_merge(files: Sequence[str], most: int) -> list[list[str]]:
    """The small files of each folder that has more than `most` of them."""
    by_folder = defaultdict[str, list[str]](list)
    for file in files:
        if Path(file).stat().st_size < _LARGE:
            by_folder[str(Path(file).parent)].append(file)
    return [group for group in by_folder.values() if len(group) > most]


def _merge_all(lake: Lake, groups: list[tuple[str, list[str], list[str]]], memory: str) -> Compaction:
    shutil.rmtree(lake.staging_path, ignore_errors=True)  # left by a process that died: the lock was free
    folder = lake.staging_path / "compaction"
    folder.mkdir(parents=True)
    n_before = sum(len(lake.files(table)) for table in TABLES)
    staged, retired = defaultdict[str, list[StagedFile]](list), defaultdict[str, list[Retired]](list)
    number = lake.commit_number() + 1
    try:
        with duck(memory=memory, spill=folder / "spill") as connection:
            for place, (table, group, forms) in enumerate(groups):
                old = [Retired.at(table, file) for file in group]
                path = folder / f"{place}.parquet"
                n_rows = _merge(lake, connection, table, [*group, *forms], path)
                name = "/".join([*Path(old[0].name).parts[:-1], f"merged-{number}.parquet"])
                staged[table].append(StagedFile(path, name, old[0].partition, n_rows))
                retired[table] += old
        for table in list(staged):
            retired[table] += _outgrown(lake, table, retired[table])
        lake.commit(staged, retired, same_rows=True)
    finally:
        if not lake.journal_path.exists():  # an unfinished commit still needs its files
            shutil.rmtree(lake.staging_path, ignore_errors=True)
    written = [file for of_table in staged.values() for file in of_table]
    return Compaction(
        n_before,
        sum(len(lake.files(table)) for table in TABLES),
        sum(file.n_rows for file in written),
        tuple(table for table in TABLES if staged[table]),
    )


def _merge(lake: Lake, connection: duckdb.DuckDBPyConnection, table: str, files: Sequence[str], path: Path) -> int:
    """Writes the rows of some files as one sorted file and returns their number."""
    columns = ", ".join(quoted(name) for name in file_schema(lake.contract, table).names)
    connection.execute(
        f"COPY (SELECT {columns} FROM {scan_files(files, by_date=bool(partition_columns(table)))} "
        f"ORDER BY {SORTED_BY[table]}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)"
    )
    n_before = sum(int(pq.read_metadata(file).num_rows) for file in files)
    n_after = int(pq.read_metadata(path).num_rows)
    if n_before != n_after:
        raise LakeError(
            f"The files of table '{table}' that were to be merged hold {n_before} rows, and the merged one {n_after}: "
            "one of them is damaged. Nothing was changed; `offline-dqn validate` reads all of them."
        )
    return n_after


def _outgrown(lake: Lake, table: str, retired: Sequence[Retired]) -> list[Retired]:
    """The empty files of earlier columns, once no file has those any more: then none need be matched by name."""
    wanted = file_schema(lake.contract, table)
    gone = {file.name for file in retired}
    files, forms = _apart(lake.files(table))
    kept = [file for file in files if Retired.at(table, file).name not in gone]
    if len(forms) < 2 or any(list(pq.read_schema(file)) != list(wanted) for file in kept):
        return []
    return [Retired.at(table, file) for file in forms if list(pq.read_schema(file)) != list(wanted)]
