"""SQL over observations: each row is a struct `observation` with the contract's features, evaluated by DuckDB."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, Feature, ImageFeature, VectorFeature
from datasets.observations import Observations, observations_from_records

_SEALED: dict[str, str | bool | int | float | list[str]] = {"enable_external_access": "false"}


def evaluate_sql(
    contract: Contract, observations: Observations, expressions: Sequence[str], kind: str
) -> list[NDArray[Any]]:
    """Values (n,) of each expression at n observations, cast to the SQL type `kind`; masked where they are null.

    Raises:
        duckdb.Error: an expression fails on a row.
    """
    columns = ", ".join(f"CAST(({text}\n) AS {kind}) AS value_{i}" for i, text in enumerate(expressions))
    with duckdb.connect(config=_SEALED) as connection:
        connection.register("steps", observation_table(contract, observations))
        connection.execute("SET lock_configuration = true")
        found = connection.execute(f"SELECT {columns} FROM steps ORDER BY row").fetchnumpy()
    return list(found.values())


def sql_problem(contract: Contract, expression: str, kind: str) -> str | None:
    """What is wrong with an expression of type `kind`, tried on no rows; None where it can be used.

    A subquery is refused: it could look at other rows than the one that is decided.
    """
    with duckdb.connect(config=_SEALED) as connection:
        connection.register("steps", observation_table(contract, observations_from_records(contract, [])))
        try:
            statements = connection.extract_statements(f"SELECT CAST(({expression}\n) AS {kind}) FROM steps")
            if len(statements) != 1:
                return f"`{expression}` is not one expression"
            connection.execute(statements[0])
            tree = syntax_tree(expression)
        except duckdb.Error as error:
            return f"`{expression}`: {str(error).splitlines()[0]}"
    if tree is None:
        return f"`{expression}` is not one expression"
    if _has_subquery(tree):
        return f"`{expression}` holds a subquery; only the fields of the row's own `observation` can be asked for"
    return None


def syntax_tree(expression: str) -> dict[str, Any] | None:
    """DuckDB's syntax tree of an expression; None where the text is not one expression."""
    with duckdb.connect(config=_SEALED) as connection:
        found = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT ({expression}\n)"]).fetchall()
    nodes = [statement["node"] for statement in json.loads(found[0][0]).get("statements", [])]
    if len(nodes) != 1 or len(nodes[0].get("select_list", ())) != 1 or nodes[0]["from_table"]["type"] != "EMPTY":
        return None
    tree: dict[str, Any] = nodes[0]["select_list"][0]
    return tree


def _has_subquery(tree: Any) -> bool:
    if isinstance(tree, list):
        return any(_has_subquery(child) for child in tree)
    return isinstance(tree, dict) and (tree.get("class") == "SUBQUERY" or _has_subquery(list(tree.values())))


def observation_table(contract: Contract, observations: Observations) -> pa.Table:
    """The observations as DuckDB sees them: `row`, and one struct column with missing values null."""
    fields = [_column(feature, name, observations) for name, feature in contract.features.items()]
    struct = pa.StructArray.from_arrays(fields, names=list(contract.features))
    return pa.table({"row": pa.array(np.arange(len(observations))), "observation": struct})


def _column(feature: Feature, name: str, observations: Observations) -> pa.Array:
    values = observations.columns[name]
    if isinstance(feature, CategoricalFeature):
        return pa.array(observations.labels(name), type=pa.string())
    if isinstance(feature, ImageFeature):
        images = [None if row[-1] else row[:-1] for row in values]
        return pa.array(images, type=pa.list_(pa.uint8()))
    if isinstance(feature, VectorFeature):
        rows = [None if np.isnan(row).all() else row for row in values]
        return pa.array(rows, type=pa.list_(pa.float64()))
    missing = np.isnan(values)
    if isinstance(feature, BooleanFeature):
        return pa.array(np.where(missing, 0.0, values) != 0.0, mask=missing)
    return pa.array(values, mask=missing)
