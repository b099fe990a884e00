"""DuckDB connections that behave the same everywhere: UTC, bounded memory, temporary files where there is room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

NO_ROOM = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException)
"""What DuckDB raises where the disk or the memory does not suffice; the last one when it commits to a full disk."""

FEATURE_TYPES = {
    "numeric": "DOUBLE",
    "categorical": "VARCHAR",
    "boolean": "BOOLEAN",
    "vector": "DOUBLE[]",
    "image": "SMALLINT[]",  # Delta has no unsigned types: its readers would take bytes above 127 for negative
}
"""DuckDB type in which a feature of each contract type is stored."""


def quoted(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A SQL string."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def duck(
    database: Path | None = None, *, memory: str = "2GB", spill: Path | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that is closed at the end.

    Args:
        database: file of the database; in memory by default.
        memory: limit of DuckDB's own memory.
        spill: folder for what does not fit into it.
    """
    connection = duckdb.connect(str(database) if database else ":memory:")
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET memory_limit = '{memory}'")
        connection.execute("SET enable_progress_bar = false")
        if spill is not None:
            connection.execute("SET temp_directory = ?", [str(spill)])
        yield connection
    finally:
        connection.close()
