"""SQL over observations: each row is a struct `observation` with the contract's features, evaluated by DuckDB."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, Feature, ImageFeature, VectorFeature
from datasets.duck import sealed_duck
from datasets.expressions import expression_problem, observation_type
from datasets.observations import Observations


def evaluate_sql(
    contract: Contract, observations: Observations, expressions: Sequence[str], kind: str
) -> list[NDArray[Any]]:
    """Values (n,) of each expression at n observations, cast to the SQL type `kind`; masked where they are null.

    Raises:
        duckdb.Error: an expression fails on a row.
    """
    return evaluate_on(observation_table(contract, observations), expressions, kind)


def evaluate_on(table: pa.Table, expressions: Sequence[str], kind: str) -> list[NDArray[Any]]:
    """As `evaluate_sql`, over the columns of a table; one of them is `row`, by which it is ordered."""
    columns = ", ".join(f"CAST(({text}\n) AS {kind}) AS value_{i}" for i, text in enumerate(expressions))
    with sealed_duck() as connection:
        connection.register("steps", table)
        statements = connection.extract_statements(f"SELECT {columns} FROM steps ORDER BY row")
        if len(statements) != 1:
            raise duckdb.ParserException(f"{' and '.join(expressions)} is more than one expression")
        found = connection.execute(statements[0]).fetchnumpy()
    return list(found.values())


def sql_problem(contract: Contract, expression: str, kind: str) -> str | None:
    """What is wrong with an expression over `observation` of type `kind`; None where it can be used."""
    return expression_problem(expression, kind, {"observation": observation_type(contract.features)})


def failing_row(table: pa.Table, expression: str, kind: str) -> int | None:
    """The first row of a table on which an expression fails; None where it fails on none."""
    if not _fails(table, expression, kind):
        return None
    first, end = 0, len(table)  # the first failing row lies in [first, end)
    while end - first > 1:
        middle = (first + end) // 2
        first, end = (first, middle) if _fails(table[first:middle], expression, kind) else (middle, end)
    return first


def _fails(table: pa.Table, expression: str, kind: str) -> bool:
    try:
        evaluate_on(table, [expression], kind)
    except duckdb.Error:
        return True
    return False


def observation_table(contract: Contract, observations: Observations) -> pa.Table:
    """The observations as DuckDB sees them: `row`, and one struct column with missing values null."""
    struct = observation_structs(contract, observations)
    return pa.table({"row": pa.array(np.arange(len(observations))), "observation": struct})


def observation_structs(
    contract: Contract,
    observations: Observations,
    *,
    only: Collection[str] | None = None,
    absent: NDArray[np.bool_] | None = None,
) -> pa.StructArray:
    """(n,) structs of the contract's features, missing values null.

    Args:
        contract: names the features.
        observations: n rows, of the wanted features at least.
        only: names, in lower case, of the features that are wanted; the others are left out of the structs.
        absent: (n,) bool, rows without any observation: the whole struct is null.
    """
    names = [name for name in contract.features if only is None or name.lower() in only]
    names = names or list(observations.columns)[:1]  # there is no struct without a field
    fields = [_column(contract.features[name], name, observations) for name in names]
    return pa.StructArray.from_arrays(fields, names=names, mask=None if absent is None else pa.array(absent))


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
