"""The fast reader: a whole file of JSON Lines in one typed DuckDB read, each row with whether it is surely right.

DuckDB's own conversions take `"1.5"` for 1.5 and true for 1, so values leave its JSON reader as the text they have in
the file and are converted here. A row of which any value is not surely right is only marked: the exact reader judges
its line again, so both take the same rows.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import duckdb

from datasets.canonical import json_structure, objects_in, repeated_key_sql
from datasets.contract import Contract
from datasets.duck import literal, quoted
from datasets.fields import Field, raw_of, typed_of
from datasets.layouts import Layout, lean_layout
from datasets.logfiles import LONGEST_LINE
from datasets.texts import copy_with_other_lines

DOUBTFUL = "doubtful"
"""Column that tells whether the exact reader must judge the row."""

_TOO_MANY_DOUBTS = 0.1
"""Share of doubtful rows from which a sample was not what the log is like."""


def read_fast(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    layout: Layout,
    path: Path,
    table: str,
    *,
    found: Collection[str],
    mended: Path | None = None,
) -> None:
    """Reads a plain JSON Lines file into a new table with the layout's columns and DOUBTFUL, in the order of its lines.

    Blank lines make no row; every other line makes one, also where it is no JSON at all. The table's rowid counts the
    rows from 0.

    Args:
        found: dotted paths that a sample of the rows holds; others are looked at only for whether they are there.
        mended: where a copy may be written of which the broken lines are taken out; without it they cost more.

    Raises:
        duckdb.Error: the file cannot be read this way, for example because of a very long line.
    """
    lean = lean_layout(layout, contract, found)
    _read(connection, lean, path, table, mended)
    counted = f"SELECT count(*) FILTER ({DOUBTFUL}), count(*) FROM {table}"
    ((n_doubtful, n_rows),) = connection.execute(counted).fetchall()
    if lean != layout and n_doubtful > _TOO_MANY_DOUBTS * n_rows:
        _read(connection, layout, path, table, mended)


def _read(connection: duckdb.DuckDBPyConnection, layout: Layout, path: Path, table: str, mended: Path | None) -> None:
    """Reads strictly, if need be without the broken lines, and where that fails too tolerantly.

    A strict read fails at a line that is no JSON, and at an object that has a key twice. A tolerant one makes a row of
    nulls of the first and takes the second for well, so repeated keys must then be looked for, which takes longer.
    """
    if _read_strictly(connection, layout, path, table):
        return
    if mended is not None:
        try:
            if _without_broken_lines(connection, path, mended) and _read_strictly(connection, layout, mended, table):
                return
        finally:
            mended.unlink(missing_ok=True)
    connection.execute(f"CREATE OR REPLACE TABLE {table} AS {_fast_sql(layout, path, strict=False)}")
    _doubt_repeated_keys(connection, layout, path, table)


def _read_strictly(connection: duckdb.DuckDBPyConnection, layout: Layout, path: Path, table: str) -> bool:
    try:
        connection.execute(f"CREATE OR REPLACE TABLE {table} AS {_fast_sql(layout, path, strict=True)}")
    except duckdb.InvalidInputException:
        return False
    return True


def _without_broken_lines(connection: duckdb.DuckDBPyConnection, path: Path, mended: Path) -> bool:
    """Writes a copy in which an empty object, a row that is all in doubt, stands for each line that is no JSON."""
    connection.execute(f"CREATE OR REPLACE TABLE lines AS SELECT json IS NULL AS is_broken FROM {_objects_sql(path)}")
    broken = connection.execute("SELECT rowid FROM lines WHERE is_broken ORDER BY 1").fetchnumpy()["rowid"].tolist()
    connection.execute("DROP TABLE lines")
    if not broken:
        return False
    copy_with_other_lines(path, mended, dict.fromkeys(broken, b"{}"))
    return True


def _doubt_repeated_keys(connection: duckdb.DuckDBPyConnection, layout: Layout, path: Path, table: str) -> None:
    structure = json_structure(layout, lambda _: "JSON")
    pointers = [pointer for pointer, _ in objects_in(structure)]
    keys = ", ".join(f"json_keys(json, {literal(pointer)})" for pointer in pointers)
    # Most rows have the same keys: what is repeated is found once for each way to have them.
    shapes = f"SELECT hash({keys}) AS shape, any_value(json) AS json FROM {_objects_sql(path)} GROUP BY 1"
    repeated = connection.execute(
        f"SELECT shape FROM ({shapes}) WHERE {repeated_key_sql(structure, 'json')}"
    ).fetchnumpy()["shape"]
    if not len(repeated):
        return
    listed = ", ".join(str(shape) for shape in repeated)
    connection.execute(f"CREATE OR REPLACE TABLE lines AS SELECT hash({keys}) AS shape FROM {_objects_sql(path)}")
    connection.execute(
        f"UPDATE {table} SET {DOUBTFUL} = true "
        f"WHERE NOT {DOUBTFUL} AND rowid IN (SELECT rowid FROM lines WHERE shape IN ({listed}))"
    )
    connection.execute("DROP TABLE lines")


def _objects_sql(path: Path) -> str:
    return f"read_ndjson_objects({literal(str(path))}, ignore_errors = true, maximum_object_size = {LONGEST_LINE})"


def _fast_sql(layout: Layout, path: Path, *, strict: bool) -> str:
    reads = _reads(layout)

    def is_fast(field: Field) -> bool:
        return field.fast is not None and all(reads[p] == field.fast.reads for p in field.paths)

    values, typed = [], []
    for field in layout.fields:
        found = ", ".join(".".join(quoted(part) for part in path.split(".")) for path in field.paths)
        values.append(f"coalesce({found}) AS {raw_of(field.name)}")
        rule = field.fast.typed if field.fast is not None and is_fast(field) else field.typed
        typed.append(f"{rule(raw_of(field.name))} AS {typed_of(field.name)}")
    outputs = ", ".join(f"{sql} AS {name}" for name, sql in layout.outputs.items())
    return f"""
WITH raw_values AS (SELECT {", ".join(values)} FROM {_source(layout, path, reads, strict)}),
typed_values AS (SELECT *, {", ".join(typed)} FROM raw_values)
SELECT {outputs}, NOT coalesce({layout.is_good(layout.fields, is_fast)}, false) AS {DOUBTFUL} FROM typed_values"""


def _reads(layout: Layout) -> dict[str, str]:
    """The type in which each path of the log is read: as its field's fast rule asks, JSON where two of them differ."""
    reads: dict[str, str] = {}
    for field in layout.fields:
        wanted = field.fast.reads if field.fast is not None else "JSON"
        for path in field.paths:
            reads[path] = wanted if reads.get(path, wanted) == wanted else "JSON"
    # A field's values come together from all its paths, so these have one type; to mend one field may part another.
    while mixed := {p for f in layout.fields if len({reads[p] for p in f.paths}) > 1 for p in f.paths}:
        reads |= dict.fromkeys(mixed, "JSON")
    return reads


def _source(layout: Layout, path: Path, reads: dict[str, str], strict: bool) -> str:
    structure = json_structure(layout, reads.__getitem__)
    columns = ", ".join(f"{literal(key)}: {literal(_type(node))}" for key, node in structure.items())
    tolerant = str(not strict).lower()
    return (
        f"read_json({literal(str(path))}, columns = {{{columns}}}, format = 'newline_delimited', auto_detect = false, "
        f"compression = 'uncompressed', maximum_object_size = {LONGEST_LINE}, ignore_errors = {tolerant})"
    )


def _type(node: Any) -> str:
    if isinstance(node, str):
        return node
    return "STRUCT(" + ", ".join(f"{quoted(key)} {_type(inner)}" for key, inner in node.items()) + ")"
