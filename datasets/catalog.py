"""`lake.duckdb`: views over the lake that any DuckDB opens, and read-only questions to them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from datasets.coverage import coverage_of
from datasets.duck import MEMORY, NO_ROOM, duck, literal
from datasets.episodes import episodes_sql, transitions_sql
from datasets.errors import OfflineDqnError
from datasets.exclusions import read_exclusions
from datasets.lake import Lake
from datasets.locking import ReadOnlyError, exclusive_lock
from datasets.outcomes import outcomes_status_sql

_STORAGE_VERSION = "v1.0.0"
"""So that DuckDB 1.x opens the file too."""


class CatalogError(OfflineDqnError):
    """The views could not be brought up to the lake's last commit."""


class QueryError(OfflineDqnError):
    """A question that is not one read-only SELECT, or that DuckDB cannot answer."""


@dataclass(frozen=True)
class QueryResult:
    """Rows of an answer."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Added:
    """Tables and views of what lies outside the lake.

    Attributes:
        made_from: plain JSON values that change whenever a table would; the tables are made only then.
        tables: by name, what makes the rows.
        views: by name, a SELECT over files.
    """

    made_from: Any
    tables: Mapping[str, Callable[[], pa.Table]]
    views: Mapping[str, str]


def refresh_catalog(
    lake: Lake,
    path: Path,
    *,
    as_of: datetime,
    releases: Sequence[Mapping[str, Any]],
    snapshots: Sequence[Path] = (),
    added: Added | None = None,
) -> None:
    """Rebuilds the views if the lake, its place, the releases or the snapshots have changed since they were built.

    Built beside and renamed: a reader that has the old file open keeps it.

    Args:
        as_of: when the `episodes` view judges idleness.
        releases: rows of the `releases` view.
        snapshots: folders of the snapshots whose coverage is in the `coverage` view.
        added: tables and views of what lies outside the lake.

    Raises:
        CatalogError: the disk is full.
        ReadOnlyError: nothing can be written there.
    """
    state = json.dumps(
        {
            "root": str(lake.root.resolve()),
            "versions": lake.versions(),
            "contract": lake.contract.digest,
            "as_of": as_of.isoformat(),
            "releases": list(releases),
            "snapshots": [str(folder) for folder in snapshots],
            "added": added.made_from if added else None,
        },
        sort_keys=True,
        default=str,
    )
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with exclusive_lock(path.with_name(path.name + ".lock"), str(path), wait_s=60.0):
            if not path.exists() or _built_from(path) != state:
                _build(lake, beside, as_of, releases, snapshots, added, state)
                beside.replace(path)
    except (*NO_ROOM, OSError) as error:
        beside.unlink(missing_ok=True)
        raise CatalogError(
            f"{path} could not be rebuilt: {error}. The lake itself is complete; only its views are those of an "
            "earlier commit, until a command finds room to rebuild them."
        ) from error


@contextmanager
def current_catalog(
    lake: Lake,
    path: Path,
    *,
    as_of: datetime,
    releases: Sequence[Mapping[str, Any]],
    snapshots: Sequence[Path] = (),
    added: Added | None = None,
) -> Iterator[Path]:
    """The views at the lake's last commit: in `path`, or in a file for the moment where `path` cannot be written."""
    with tempfile.TemporaryDirectory(prefix="offline-dqn-") as folder:
        try:
            refresh_catalog(lake, path, as_of=as_of, releases=releases, snapshots=snapshots, added=added)
        except ReadOnlyError:
            path = Path(folder) / path.name
            _build(lake, path, as_of, releases, snapshots, added, "")
        yield path


def _build(
    lake: Lake,
    path: Path,
    as_of: datetime,
    releases: Sequence[Mapping[str, Any]],
    snapshots: Sequence[Path],
    added: Added | None,
    state: str,
) -> None:
    path.unlink(missing_ok=True)
    with duck(memory=MEMORY) as connection:  # alone in its DuckDB, where nobody else attaches the file
        connection.execute(f"ATTACH {literal(str(path))} AS built (STORAGE_VERSION '{_STORAGE_VERSION}')")
        connection.execute("USE built")
        for name, query in _views(lake, as_of).items():
            connection.execute(f"CREATE VIEW {name} AS {query}")
        _store_releases(connection, releases)
        connection.register("coverage_rows", coverage_of(snapshots))
        connection.execute("CREATE TABLE coverage AS SELECT * FROM coverage_rows")
        connection.unregister("coverage_rows")
        if added is not None:
            _store_added(connection, added)
        connection.execute("CREATE TABLE _built_from AS SELECT ? AS state", [state])
        connection.execute("USE memory")
        connection.execute("DETACH built")


def _views(lake: Lake, as_of: datetime) -> dict[str, str]:
    awaited = (
        {"outcomes_status": outcomes_status_sql("steps", "outcomes", lake.contract)} if lake.contract.outcomes else {}
    )
    tables = lake.scans()
    return {
        **{
            table: f"SELECT * FROM {tables[table]}"
            for table in ("steps", "outcomes", "quarantine", "files", "removals", "exclusions")
        },
        "batches": _batches_sql(tables["batches"]),
        "episodes": episodes_sql("steps", "outcomes", "quarantine", lake.contract, as_of, read_exclusions(lake)),
        "transitions": transitions_sql("steps", "outcomes", "episodes", lake.contract),
        **awaited,
    }


def _batches_sql(batches: str) -> str:
    """Batches as they stand now. `n_lake` was counted when they came in; `n_removed` of these rows are gone since."""
    return f"""
SELECT b.*, coalesce(r.n_removed, 0) AS n_removed
FROM (
    SELECT * FROM {batches}
    QUALIFY row_number() OVER (PARTITION BY batch_id ORDER BY commit_number DESC) = 1
) b LEFT JOIN (
    SELECT batch_id, sum(n_rows)::BIGINT AS n_removed FROM removals
    WHERE "table" IN ('steps', 'outcomes') GROUP BY batch_id
) r USING (batch_id)"""


def _store_releases(connection: duckdb.DuckDBPyConnection, releases: Sequence[Mapping[str, Any]]) -> None:
    schema = pa.schema(
        [
            ("release", pa.int64()),
            ("created_at", pa.string()),
            ("gate", pa.string()),
            ("is_champion", pa.bool_()),
            ("value", pa.float64()),
            ("difference", pa.float64()),
        ]
    )
    known = [{field.name: row.get(field.name) for field in schema} for row in releases]
    connection.register("release_rows", pa.Table.from_pylist(known, schema=schema))
    connection.execute("CREATE TABLE releases AS SELECT * FROM release_rows")
    connection.unregister("release_rows")


def _store_added(connection: duckdb.DuckDBPyConnection, added: Added) -> None:
    for name, make in added.tables.items():
        connection.register("added_rows", make())
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM added_rows")
        connection.unregister("added_rows")
    for name, query in added.views.items():
        connection.execute(f"CREATE VIEW {name} AS {query}")


def _built_from(path: Path) -> str | None:
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            row = connection.execute("SELECT state FROM _built_from").fetchone()
    except duckdb.Error:
        return None  # of another version or damaged: it is derived, so it is built anew
    return str(row[0]) if row else None


def query_catalog(path: Path, sql: str, *, folders: Sequence[Path]) -> QueryResult:
    """Answers one SELECT, read-only in every way.

    A read-only connection alone would still run COPY ... TO and read any file, so the statement must be exactly one
    SELECT, files outside `folders` are out of reach, and none of this can be set back from SQL.

    Raises:
        QueryError: it is not one SELECT, names what does not exist, or fails.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryError(f"That is not SQL that DuckDB understands: {error}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(s.type.name for s in statements) or "nothing"
        raise QueryError(
            f"`query` answers exactly one SELECT and changes nothing; this is {kinds}. The views are steps, "
            "transitions, episodes, outcomes, quarantine, batches, files, removals, exclusions, releases, evaluations, "
            "evaluation_episodes, drift_history, metrics and coverage."
        )
    if not path.exists():
        raise QueryError(f"{path} does not exist. `offline-dqn ingest` builds it.")
    allowed = "[" + ", ".join(literal(str(folder.resolve()) + "/") for folder in folders) + "]"
    # Attached to a database of its own: connections to one file share their settings, and these lock themselves.
    connection = duckdb.connect(":memory:")
    try:
        connection.execute(
            f"SET TimeZone = 'UTC'; ATTACH {literal(str(path))} AS lake (READ_ONLY); USE lake; "
            f"SET allowed_directories = {allowed}; SET enable_external_access = false; SET lock_configuration = true"
        )
        answer = connection.execute(statements[0])
        columns = tuple(column[0] for column in answer.description or ())
        return QueryResult(columns, tuple(answer.fetchall()))
    except duckdb.Error as error:
        raise QueryError(f"DuckDB cannot answer that: {error}") from error
    finally:
        connection.close()
