"""The exact reader: log rows as they were written to canonical rows, or to a reason why not, in one SQL query.

The query has three layers, innermost first: the log's own value of each canonical field (JSON or text), the field's
typed value, and the row with its reason.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

from datasets.duck import literal, quoted
from datasets.fields import raw_of, typed_of
from datasets.layouts import Layout
from datasets.logfiles import LINE, PROBLEM, RAW, UNREADABLE
from datasets.settings import SettingsError

REASON = "reason"


def canonical_sql(layout: Layout, columns: Iterable[str] | None) -> str:
    """The query that turns a registered chunk `chunk` into canonical rows.

    Args:
        columns: names of the log's columns; None for JSON Lines, whose rows are read from RAW.

    Returns:
        A SELECT with the layout's columns, `source_line`, `raw` (where there is a reason), `reason`, null for a row
        that fits the contract, and `is_placed`: whether what tells the row from others can be relied on.

    Raises:
        SettingsError: two paths of the contract contradict each other.
    """
    values = ", ".join(f"{sql} AS {raw_of(name)}" for name, sql in _values(layout, columns))
    typed = ", ".join(f"{f.typed(raw_of(f.name))} AS {typed_of(f.name)}" for f in layout.fields)
    reason = f"nullif(concat_ws('; ', {', '.join(layout.reasons)}), '')"
    outputs = ", ".join(f"{sql} AS {name}" for name, sql in layout.outputs.items())
    return f"""
WITH documents AS ({_documents(layout, columns)}),
raw_values AS (SELECT {LINE}, {RAW}, {PROBLEM}, {values} FROM documents),
typed_values AS (SELECT *, {typed} FROM raw_values),
judged AS (SELECT *, coalesce({PROBLEM}, {reason}) AS {REASON} FROM typed_values)
SELECT {outputs}, {LINE} AS source_line, CASE WHEN {REASON} IS NOT NULL THEN {RAW} END AS raw, {REASON},
    {_is_placed(layout)} AS is_placed
FROM judged"""


def _is_placed(layout: Layout) -> str:
    named = [field for field in layout.fields if field.name in ("episode_id", "step", "timestamp", "decision_id")]
    sound = [f"({f.problem(raw_of(f.name), typed_of(f.name))}) IS NULL" for f in named]
    return " AND ".join([f"{PROBLEM} IS NULL", *sound])


def json_structure(layout: Layout, leaf: Callable[[str], str]) -> dict[str, Any]:
    """The nested objects of a JSON row in which the layout's paths lie, each path with the type that `leaf` gives it.

    Raises:
        SettingsError: a path is read as a value and as an object, or two differ in case only.
    """
    root: dict[str, Any] = {}
    for path in (path for field in layout.fields for path in field.paths):
        *parents, last = path.split(".")
        node = root
        for part in parents:
            _refuse_twin(node, part)
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise SettingsError(f"The contract reads '{path}' inside '{part}' and also '{part}' itself as a value.")
        _refuse_twin(node, last)
        if isinstance(node.setdefault(last, leaf(path)), dict):
            raise SettingsError(f"The contract reads '{path}' as a value and also fields inside it. Map one of them.")
    return root


def repeated_key_sql(structure: dict[str, Any], document: str) -> str:
    """Whether a JSON document has a key twice of those that are read from it: which one counts, nobody knows."""
    tests = []
    for pointer, node in objects_in(structure):
        known = ", ".join(literal(key) for key in node)
        keys = f"list_filter(json_keys({document}, {literal(pointer)}), lambda k: k IN ({known}))"
        tests.append(f"len({keys}) <> len(list_distinct({keys}))")
    return f"coalesce({' OR '.join(f'coalesce({test}, false)' for test in tests)}, false)"


def _refuse_twin(node: dict[str, Any], name: str) -> None:
    for twin in (other for other in node if other != name and other.lower() == name.lower()):
        raise SettingsError(
            f"The contract reads '{twin}' and '{name}' from the log, which differ in case only; SQL cannot tell them "
            "apart. Rename one of them in the log."
        )


def objects_in(structure: dict[str, Any], path: str = "$") -> list[tuple[str, dict[str, Any]]]:
    """JSON paths of the objects that hold the structure's values, each with what is read of it."""
    inner = [objects_in(node, _pointer(path, key)) for key, node in structure.items() if isinstance(node, dict)]
    return [(path, structure), *(found for paths in inner for found in paths)]


def _pointer(path: str, key: str) -> str:
    return f'{path}."{key}"'


def _documents(layout: Layout, columns: Iterable[str] | None) -> str:
    if columns is not None:
        own = ", ".join(f"{quoted(c)} := {quoted(c)}" for c in columns)
        raw = f"coalesce({RAW}, to_json(struct_pack({own}))::VARCHAR)"
        return f"SELECT * REPLACE ({raw} AS {RAW}) FROM chunk"
    structure = json_structure(layout, lambda _: "JSON")
    problem = f"""CASE WHEN {PROBLEM} IS NOT NULL THEN {PROBLEM}
        WHEN NOT json_valid({RAW}) THEN '{UNREADABLE}is not valid JSON'
        WHEN json_type({RAW}) <> 'OBJECT' THEN '{UNREADABLE}is no JSON object'
        WHEN {repeated_key_sql(structure, RAW)} THEN 'the JSON object has a key twice' END"""
    document = f"from_json({RAW}, {literal(json.dumps(structure))})"
    return f"""SELECT *, CASE WHEN {PROBLEM} IS NULL THEN {document} END AS document
    FROM (SELECT * REPLACE ({problem} AS {PROBLEM}) FROM chunk)"""


def _values(layout: Layout, columns: Iterable[str] | None) -> list[tuple[str, str]]:
    known = None if columns is None else set(columns)
    values = []
    for field in layout.fields:
        found = [sql for sql in (_path_sql(path, known) for path in field.paths) if sql]
        values.append((field.name, f"coalesce({', '.join(found)})" if found else "NULL::JSON"))
    return values


def _path_sql(path: str, columns: set[str] | None) -> str | None:
    if columns is None:
        return "document." + ".".join(quoted(part) for part in path.split("."))
    if path in columns:
        return f"nullif(to_json({quoted(path)}), 'null'::JSON)"
    root, *rest = path.split(".")
    if rest and root in columns:
        # A nested column as JSON, then the path inside it: null where the column has no such field.
        pointer = functools.reduce(_pointer, rest, "$")
        return f"nullif(to_json({quoted(root)})->{literal(pointer)}, 'null'::JSON)"
    return None
