"""The staging database of a batch: rows read from files, repeats taken out, Parquet parts written for the lake."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.canonical import canonical_sql, unmapped_columns
from datasets.contract import Contract
from datasets.duck import literal, quoted
from datasets.lake import Lake, StagedFile, table_columns
from datasets.logfiles import LINE, PROBLEM, RAW, LogFile, LogFileError, Unread, read_chunks

_LINES_PER_FILE = 1 << 40
"""Ordinals order rows by file, then by line: file number times this, plus the line."""

_SAMPLED_LINES = 1000


@dataclass(frozen=True)
class ReadFile:
    """What reading one file brought.

    Attributes:
        n_rows: rows read, good and bad.
        last_line: number of the last line that held a row.
        dropped: columns of the log that the contract does not name.
    """

    n_rows: int
    last_line: int
    dropped: tuple[str, ...]


def create_stage(connection: duckdb.DuckDBPyConnection, contract: Contract) -> None:
    """Makes the empty tables `rows` (steps that fit the contract) and `bad` (rows that do not, with their reason)."""
    columns = {**_row_columns(contract), "identity": "VARCHAR", "ordinal": "BIGINT"}
    listed = ", ".join(f"{quoted(name)} {type_}" for name, type_ in columns.items())
    connection.execute(f"CREATE TABLE rows ({listed})")
    connection.execute(
        "CREATE TABLE bad (raw VARCHAR, source VARCHAR, source_line BIGINT, reason VARCHAR, episode_id VARCHAR)"
    )


def stage_file(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    log: LogFile,
    unread: Unread,
    *,
    source: str,
    number: int,
    on_rows: Callable[[int], None],
) -> ReadFile:
    """Reads the unread part of a file into `rows` and `bad`.

    Args:
        source: how the file is named in the lake.
        number: place of the file in the batch.
        on_rows: told how many rows were read, chunk by chunk.

    Raises:
        LogFileError: the file is damaged; what was staged of it is taken back.
    """
    n_rows, last_line, dropped = 0, unread.n_lines_before, set[str]()
    try:
        for chunk in read_chunks(log, unread):
            own = None if log.format == "jsonl" else [c for c in chunk.column_names if c not in {LINE, RAW, PROBLEM}]
            keys = _json_keys(connection, chunk) if own is None and not n_rows else own or []
            dropped.update(unmapped_columns(contract, keys))
            connection.register("chunk", chunk)
            try:
                judged = canonical_sql(contract, own, textual=log.format == "csv")
                parameters = {"file_digest": unread.digest[:16]} if "$file_digest" in judged else None
                connection.execute(f"CREATE OR REPLACE TEMP TABLE judged AS {judged}", parameters)
            finally:
                connection.unregister("chunk")
            _insert_judged(connection, contract, source, number)
            n_rows += len(chunk)
            last_line = chunk[LINE][-1].as_py()
            on_rows(len(chunk))
    except (duckdb.IOException, duckdb.OutOfMemoryException):
        raise  # the disk's fault or the memory's, not the file's
    except Exception as error:
        connection.execute("DELETE FROM rows WHERE source = ?", [source])
        connection.execute("DELETE FROM bad WHERE source = ?", [source])
        if isinstance(error, duckdb.Error):
            raise LogFileError(f"{log.path} cannot be read: {error} Nothing of it was taken.") from error
        raise
    return ReadFile(n_rows, last_line, tuple(sorted(dropped)))


def _json_keys(connection: duckdb.DuckDBPyConnection, chunk: pa.Table) -> list[str]:
    """Top-level keys of the first lines."""
    sample = chunk.slice(0, _SAMPLED_LINES)
    connection.register("sample", sample)
    try:
        found = connection.execute(
            f"SELECT DISTINCT unnest(json_keys({RAW})) FROM sample "
            f"WHERE {PROBLEM} IS NULL AND json_valid({RAW}) AND json_type({RAW}) = 'OBJECT'"
        ).fetchall()
    finally:
        connection.unregister("sample")
    return [key for (key,) in found]


def _insert_judged(connection: duckdb.DuckDBPyConnection, contract: Contract, source: str, number: int) -> None:
    named = ", ".join(quoted(c) for c in _row_columns(contract) if c not in {"source", "source_line"})
    connection.execute(
        f"INSERT INTO rows BY NAME SELECT {named}, {literal(source)} AS source, source_line, "
        f"{identity_sql()} AS identity, {number * _LINES_PER_FILE} + source_line AS ordinal "
        "FROM judged WHERE reason IS NULL"
    )
    connection.execute(
        f"INSERT INTO bad SELECT raw, {literal(source)}, source_line, reason, episode_id FROM judged "
        "WHERE reason IS NOT NULL"
    )


def _row_columns(contract: Contract) -> dict[str, str]:
    """Columns of a step that are known before the batch has settled."""
    columns = table_columns(contract)["steps"]
    return {name: type_ for name, type_ in columns.items() if name not in {"batch_id", "log_date"}}


def identity_sql() -> str:
    """What makes a row the same row: its decision, else its place in its episode. One-step rows without an identity
    of their own carry their place in the file as their episode, so that equal content is never taken for a repeat."""
    return (
        "CASE WHEN decision_id IS NOT NULL THEN 'd' || decision_id "
        "ELSE 'e' || coalesce(step::VARCHAR, 't' || epoch_us(timestamp)::VARCHAR) || ':' || episode_id END"
    )


def take_out_repeats(connection: duckdb.DuckDBPyConnection, lake: Lake) -> int:
    """Removes from `rows` what the lake or an earlier row already holds; returns how many duplicates there were.

    A row with the same identity and the same content is a duplicate: counted, not stored. One with the same identity
    and other content is a conflict: it goes to `bad`, and the row that came first stays.
    """
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE repeated AS
        SELECT identity FROM rows GROUP BY identity HAVING count(*) > 1
        UNION
        SELECT identity FROM (SELECT {identity_sql()} AS identity FROM {lake.scan("steps")})
        SEMI JOIN rows USING (identity)
        """
    )
    content = _content_sql(lake.contract)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE repeats AS
        SELECT ordinal, content, episode_id, source, source_line,
            content = first_value(content) OVER same AS is_duplicate,
            first_value(source || ' line ' || source_line) OVER same AS original
        FROM (
            SELECT identity, ordinal, {content} AS content, episode_id, source, source_line
            FROM rows SEMI JOIN repeated USING (identity)
            UNION ALL
            SELECT identity, -1, {content}, episode_id, source, source_line
            FROM (SELECT *, {identity_sql()} AS identity FROM {lake.scan("steps")}) SEMI JOIN repeated USING (identity)
        )
        WINDOW same AS (PARTITION BY identity ORDER BY ordinal)
        QUALIFY row_number() OVER same > 1
        """
    )
    connection.execute(
        """INSERT INTO bad SELECT content, source, source_line,
            'repeats the step in ' || original || ' with other content', episode_id
        FROM repeats WHERE NOT is_duplicate"""
    )
    connection.execute("DELETE FROM rows WHERE ordinal IN (SELECT ordinal FROM repeats)")
    row = connection.execute("SELECT count(*) FROM repeats WHERE is_duplicate").fetchone()
    return int(row[0]) if row else 0


def _content_sql(contract: Contract) -> str:
    placed = {"source", "source_line", "batch_id", "log_date"}
    listed = ", ".join(f"{quoted(c)} := {quoted(c)}" for c in table_columns(contract)["steps"] if c not in placed)
    return f"to_json(struct_pack({listed}))::VARCHAR"


def write_parts(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    folder: Path,
    *,
    batch_id: str,
    default_date: str,
    at: str,
) -> dict[str, list[StagedFile]]:
    """Writes `rows` and `bad` as sorted Parquet files under `folder`, ready to be committed.

    Args:
        default_date: log_date (ISO) of rows that carry no timestamp.
        at: ISO instant of the quarantine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = [c for c in table_columns(contract)["steps"] if c not in {"batch_id", "log_date"}]
    date = f"coalesce(CAST(timestamp AS DATE), DATE {literal(default_date)})"
    dates = connection.execute(f"SELECT {date} AS log_date, count(*) FROM rows GROUP BY 1 ORDER BY 1").fetchall()
    steps = []
    for log_date, n_rows in dates:
        name = f"log_date={log_date}/{batch_id}.parquet"
        path = folder / "steps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        connection.execute(
            f"""COPY (
                SELECT {", ".join(quoted(c) for c in columns)}, {literal(batch_id)} AS batch_id FROM rows
                WHERE {date} = DATE '{log_date}' ORDER BY episode_id, step, timestamp
            ) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)"""
        )
        steps.append(StagedFile(path, name, {"log_date": str(log_date)}, n_rows))
    quarantine = _copy_if_any(
        connection,
        f"SELECT *, {literal(batch_id)} AS batch_id, TIMESTAMPTZ {literal(at)} AS quarantined_at FROM bad "
        "ORDER BY source, source_line",
        folder / "quarantine.parquet",
        f"{batch_id}.parquet",
    )
    return {"steps": steps, "quarantine": quarantine}


def _copy_if_any(connection: duckdb.DuckDBPyConnection, query: str, path: Path, name: str) -> list[StagedFile]:
    row = connection.execute(f"SELECT count(*) FROM ({query})").fetchone()
    if not row or not row[0]:
        return []
    connection.execute(f"COPY ({query}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)")
    return [StagedFile(path, name, {}, int(row[0]))]


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


def source_name(path: Path, base: Path) -> str:
    """How a file is named in the lake: relative to the workspace where it lies inside, so that it can be moved."""
    return os.path.relpath(path, base) if path.is_relative_to(base) else str(path)
