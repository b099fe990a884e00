"""DuckDB connections that behave the same everywhere: UTC, bounded memory, temporary files where there is room."""

from __future__ import annotations

import atexit
import ctypes
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

NO_ROOM = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException)
"""What DuckDB raises where the disk or the memory does not suffice; the last one when it commits to a full disk."""


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
    """A connection that is closed at the end, alone in its DuckDB.

    Without arguments it may be one whose DuckDB was used before and kept, whose settings are locked.

    Args:
        database: file of the database; in memory by default.
        memory: limit of DuckDB's own memory; by default MEMORY.
        spill: folder for what does not fit into it.
    """
    if database is None and memory is None and spill is None:
        with _kept("open") as connection:
            yield connection
        return
    connection = duckdb.connect(str(database) if database else ":memory:")
    try:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        connection.execute(f"SET memory_limit = '{memory or MEMORY}'")
        if spill is not None:
            connection.execute("SET temp_directory = ?", [str(spill)])
        yield connection
    finally:
        connection.close()


@contextmanager
def sealed_duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection like `duck()`, whose SQL can look at nothing but the rows that it is given: no file, no setting."""
    with _kept("sealed") as connection:
        yield connection


# --- DuckDBs that are kept: to start one takes 15 ms, many times what a small query does

_SETTINGS: dict[str, dict[str, Any]] = {
    # Files are read anew each time, and nothing is kept of what they held.
    "open": {"enable_external_file_cache": False},
    "sealed": {"enable_external_access": False},
}
_MOST_KEPT = 4
_idle: dict[str, list[duckdb.DuckDBPyConnection]] = {kind: [] for kind in _SETTINGS}
_lock = threading.Lock()


@contextmanager
def _kept(kind: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a DuckDB that nobody else uses meanwhile. One in which anything failed is not used again: an
    altered file can leave it in a state in which every later query fails.
    """
    instance, connection = _begin(kind)
    try:
        yield connection
    except BaseException:
        with suppress(duckdb.Error):
            connection.close()
            instance.close()
        raise
    try:
        connection.close()
        instance.execute("DETACH own")
    except duckdb.Error:
        instance.close()
        return
    with _lock:
        if len(_idle[kind]) < _MOST_KEPT:
            _idle[kind].append(instance)
            return
    instance.close()


def _begin(kind: str) -> tuple[duckdb.DuckDBPyConnection, duckdb.DuckDBPyConnection]:
    """A DuckDB, and a connection to it in an empty database of its own, which ends with the connection."""
    while True:
        with _lock:
            instance = _idle[kind].pop() if _idle[kind] else None
        is_new = instance is None
        if instance is None:
            instance = duckdb.connect(config=_SETTINGS[kind])
            instance.execute(f"SET GLOBAL TimeZone = 'UTC'; SET memory_limit = '{MEMORY}'")
            if kind == "open":  # where it spills does not hang on the current folder, which may change
                instance.execute("SET temp_directory = ?", [f"{tempfile.gettempdir()}/offline-dqn-{uuid.uuid4().hex}"])
            instance.execute("SET lock_configuration = true")
        try:
            connection = instance.cursor()
            connection.execute("ATTACH ':memory:' AS own; USE own")
        except duckdb.Error:
            instance.close()
            if is_new:
                raise
        else:
            return instance, connection


def _let_go() -> list[duckdb.DuckDBPyConnection]:
    with _lock:
        found = [instance for kept in _idle.values() for instance in kept]
        for kept in _idle.values():
            kept.clear()
    return found


@atexit.register
def _close() -> None:
    """What is open when the interpreter ends is reported as leaked, a page of it."""
    for instance in _let_go():
        with suppress(duckdb.Error):
            instance.close()


def _in_child() -> None:
    """A fork has none of the threads of the DuckDBs that it inherits: it neither uses them nor ever ends them."""
    _lock.release()
    for instance in _let_go():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(instance))


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)
