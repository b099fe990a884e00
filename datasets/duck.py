"""DuckDB connections that behave the same everywhere: UTC, bounded memory, temporary files where there is room."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

NO_ROOM = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException)
"""What DuckDB raises where the disk or the memory does not suffice; the last one when it commits to a full disk."""

_SESSION = "SET TimeZone = 'UTC'; SET enable_progress_bar = false"

MEMORY = "2GB"
"""Default limit of DuckDB's own memory."""

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
    database: Path | None = None, *, memory: str | None = None, spill: Path | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that is closed at the end.

    Its tables and views are its own. Without arguments it shares one DuckDB with other connections of this process,
    and that one's memory: a new one takes 15 ms to start, many times what a small query does.

    Args:
        database: file of the database; in memory by default.
        memory: limit of DuckDB's own memory; by default MEMORY.
        spill: folder for what does not fit into it.
    """
    if database is None and memory is None and spill is None:
        with _shared() as connection:
            yield connection
        return
    connection = duckdb.connect(str(database) if database else ":memory:")
    try:
        connection.execute(f"{_SESSION}; SET memory_limit = '{memory or MEMORY}'")
        if spill is not None:
            connection.execute("SET temp_directory = ?", [str(spill)])
        yield connection
    finally:
        connection.close()


@contextmanager
def sealed_duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that is closed at the end and whose SQL can look at nothing but the rows that it is given.

    It shares one DuckDB with the other sealed connections of this process, none of which can change it: what is
    registered or made TEMP is a connection's own, and whoever runs SQL of users runs one SELECT.
    """
    with _cursor("sealed", {"enable_external_access": False}, "SET lock_configuration = true") as connection:
        yield connection


_instances: dict[tuple[int, str], duckdb.DuckDBPyConnection] = {}
"""Those that are shared, by process: a fork has none of the threads of what it inherits."""

_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_numbers = itertools.count()


@atexit.register
def _close() -> None:
    """What is open when the interpreter ends is reported as leaked, a page of it."""
    for (process, _), connection in _instances.items():
        if process == os.getpid():
            connection.close()
    _instances.clear()


def _cursor(name: str, config: dict[str, Any], begin: str) -> duckdb.DuckDBPyConnection:
    key = (os.getpid(), name)
    with _lock:
        if key not in _instances:
            _instances[key] = duckdb.connect(config=config)
            _instances[key].execute(begin)
        return _instances[key].cursor()


@contextmanager
def _shared() -> Iterator[duckdb.DuckDBPyConnection]:
    def cursor() -> duckdb.DuckDBPyConnection:
        # What a file held is not kept: it may have been damaged since within the same instant.
        return _cursor("open", {"enable_external_file_cache": False}, f"SET memory_limit = '{MEMORY}'")

    own = f"own_{next(_numbers)}"
    connection = cursor()
    try:
        connection.execute(f"{_SESSION}; ATTACH ':memory:' AS {own}; USE {own}")
        yield connection
    finally:
        connection.close()
        with cursor() as other:  # one in which no transaction has failed
            other.execute(f"DETACH DATABASE IF EXISTS {own}")
