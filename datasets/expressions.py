"""SQL expressions over the fields of one row: whether they can be used, and what they speak of."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

import duckdb

from datasets.duck import FEATURE_TYPES, quoted, sealed_duck


class _Typed(Protocol):
    @property
    def type(self) -> str: ...


def observation_type(features: Mapping[str, Any]) -> str:
    """The DuckDB type of an observation: a struct of the features, each with a `type` of the contract."""
    types: Mapping[str, _Typed] = features
    fields = (f"{quoted(name)} {FEATURE_TYPES[feature.type]}" for name, feature in types.items())
    return f"STRUCT({', '.join(fields)})"


def expression_problem(
    expression: str, kind: str, columns: Mapping[str, str], actions: tuple[str, ...] = ()
) -> str | None:
    """What is wrong with an expression of the SQL type `kind`, tried on no rows; None where it can be used.

    Subqueries, aggregates and window functions are refused: they would look at other rows than the one that is asked
    about. So are names that are no field of the row, and labels that `action` is compared with and never equals; the
    nearest known name is given.

    Args:
        expression: the SQL text.
        kind: type to which its value is cast, such as BOOLEAN.
        columns: DuckDB type of each column of the row, by name.
        actions: the labels that the column `action` takes.
    """
    return _problem(expression, kind, tuple(columns.items()), actions)


@lru_cache(maxsize=1024)
def _problem(expression: str, kind: str, columns: tuple[tuple[str, str], ...], actions: tuple[str, ...]) -> str | None:
    with sealed_duck() as connection:
        declared = ", ".join(f"{quoted(name)} {type_}" for name, type_ in columns)
        connection.execute(f"CREATE TEMP TABLE steps ({declared})")
        value = f"CAST(({expression}\n) AS {kind})"
        try:
            statements = connection.extract_statements(f"SELECT {value} FROM steps")
            if len(statements) != 1:
                return f"`{expression}` is not one expression"
            tree = syntax_tree(expression)
            if tree is None:
                return f"`{expression}` is not one expression"
            if any(node.get("class") == "SUBQUERY" for node in _nodes(tree)):
                known = " and ".join(f"`{name}`" for name, _ in columns)
                return f"`{expression}` holds a subquery; only the fields of the row's own {known} can be asked for"
            connection.execute(statements[0])
            # A condition on a row is where SQL itself refuses aggregates and window functions.
            connection.execute(f"SELECT 1 FROM steps WHERE {value} IS NOT NULL")
        except duckdb.Error as error:
            hints = _unknown_names(expression, dict(columns))
            return f"`{expression}`: {'; '.join(hints) or str(error).splitlines()[0]}"
    unknown = [_nearest(label, actions, "action") for label in sorted(_compared_labels(tree) - {*actions})]
    return f"`{expression}`: {'; '.join(unknown)}" if unknown and actions else None


def syntax_tree(expression: str) -> dict[str, Any] | None:
    """DuckDB's syntax tree of an expression; None where the text is not one expression."""
    with sealed_duck() as connection:
        found = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT ({expression}\n)"]).fetchall()
    nodes = [statement["node"] for statement in json.loads(found[0][0]).get("statements", [])]
    if len(nodes) != 1 or len(nodes[0].get("select_list", ())) != 1 or nodes[0]["from_table"]["type"] != "EMPTY":
        return None
    tree: dict[str, Any] = nodes[0]["select_list"][0]
    return tree


@lru_cache(maxsize=1024)
def mentioned_fields(expression: str, struct: str) -> frozenset[str] | None:
    """Names, in lower case, of the fields of a struct column that an expression reads; None where it reads it whole."""
    fields = set()
    for names in _column_names(syntax_tree(expression) or {}):
        if names[0].lower() == struct.lower():
            if len(names) == 1:
                return None
            fields.add(names[1].lower())
    return frozenset(fields)


@lru_cache(maxsize=1024)
def unsteady_functions(expression: str) -> tuple[str, ...]:
    """Functions that an expression calls and that may answer otherwise the next time, such as `random` and `now`."""
    called = {str(node.get("function_name", "")).lower() for node in _nodes(syntax_tree(expression) or {})} - {""}
    with sealed_duck() as connection:
        found = connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT' ORDER BY 1"
        ).fetchall()
    return tuple(name for (name,) in found if name in called)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node of a syntax tree."""
    if isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)
    elif isinstance(tree, dict):
        yield tree
        yield from _nodes(list(tree.values()))


def _column_names(tree: Any) -> Iterator[list[str]]:
    yield from (node["column_names"] for node in _nodes(tree) if node.get("class") == "COLUMN_REF")


def _unknown_names(expression: str, columns: Mapping[str, str]) -> list[str]:
    """Names in an expression that DuckDB refused which are no column, or no field of a struct column."""
    try:
        tree = syntax_tree(expression)
    except duckdb.Error:
        return []
    found = []
    for names in _column_names(tree or {}):
        column = next((name for name in columns if name.lower() == names[0].lower()), None)
        if column is None:
            found.append(_nearest(names[0], tuple(columns), "column here"))
        elif len(names) > 1 and columns[column].startswith("STRUCT"):
            fields = _fields_of(columns[column])
            if names[1].lower() not in {field.lower() for field in fields}:
                found.append(_nearest(names[1], fields, "feature"))
    return list(dict.fromkeys(found))


def _fields_of(struct: str) -> tuple[str, ...]:
    with sealed_duck() as connection:
        return tuple(name for name, _ in connection.execute(f"SELECT NULL::{struct}").description[0][1].children)


def _compared_labels(tree: Any) -> set[str]:
    """Texts that the column `action` is compared with."""
    labels: set[str] = set()
    for node in _nodes(tree):
        if node.get("class") == "COMPARISON" and node["type"] in ("COMPARE_EQUAL", "COMPARE_NOTEQUAL"):
            sides = [node["left"], node["right"]]
        elif node.get("type") in ("COMPARE_IN", "COMPARE_NOT_IN"):
            sides = node["children"]
        else:
            continue
        if any([name.lower() for name in side.get("column_names", ())] == ["action"] for side in sides):
            literals = [side["literal"] for side in sides if side.get("class") == "CONSTANT"]
            labels |= {literal["text"] for literal in literals if literal["kind"] == "STRING"}
    return labels


def _nearest(name: str, known: tuple[str, ...], what: str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"'{name}' is no {what}; " + (f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}")
