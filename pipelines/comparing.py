"""Rows of files as two sides of a comparison: DuckDB reads them, and hands them over in blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.duck import literal, quoted
from drift.counting import Block
from drift.reference import scalars
from drift.row_comparison import RowComparison, Rows, compare_rows
from drift.windows import ColumnKind, DriftColumn, DriftDataError

BLOCK_ROWS = 32_768
"""Rows that are handed over at once: a few MB, and quicker than more, which leave the processor's cache."""

_READERS = {
    (".parquet", ".pq"): "read_parquet({}, union_by_name = true)",
    (".csv", ".csv.gz", ".tsv", ".tsv.gz"): "read_csv({}, union_by_name = true)",
    (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz"): "read_json({}, union_by_name = true)",
}

_NUMBERS = {
    *("tinyint", "smallint", "integer", "bigint", "hugeint"),
    *("utinyint", "usmallint", "uinteger", "ubigint", "uhugeint", "float", "double", "decimal"),
}
_TEXTS = {"varchar", "enum", "uuid"}
_EMPTY = {'"null"', "null", "sqlnull"}


@dataclass(frozen=True)
class Field:
    """A column of a relation: its kind as a drift column, how to select it, and how long a vector's lists are."""

    kind: ColumnKind
    sql: str
    length: int = 0


@dataclass(frozen=True)
class Relation:
    """What DuckDB can select from.

    Attributes:
        name: as the user knows it.
        sql: of its rows.
        fields: its columns by name, those of structs as `struct.field`.
        left_out: columns that are not compared, with the reason.
    """

    name: str
    sql: str
    fields: Mapping[str, Field]
    left_out: Mapping[str, str]

    def blocks(self, connection: duckdb.DuckDBPyConnection, fields: Mapping[str, Field]) -> Iterator[Block]:
        """Some of its columns, in its own order.

        Raises:
            DriftDataError: a file cannot be read to its end.
        """
        selected = ", ".join(f"{field.sql} AS {quoted(name)}" for name, field in fields.items())
        with _read(self.name):
            reader = connection.sql(f"SELECT {selected} FROM {self.sql}").to_arrow_reader(BLOCK_ROWS)
            for batch in reader:
                columns = {
                    name: _column(field, batch.column(place)) for place, (name, field) in enumerate(fields.items())
                }
                yield Block(scalars(columns))


def files_relation(connection: duckdb.DuckDBPyConnection, pattern: str) -> Relation:
    """The rows of one file, or of all files that a glob matches.

    Args:
        pattern: a path or glob, by its ending Parquet, CSV or JSON Lines (.gz too).

    Raises:
        DriftDataError: the ending is another one, no file matches, or one cannot be read.
    """
    reader = next((sql for endings, sql in _READERS.items() if pattern.lower().endswith(endings)), None)
    if reader is None:
        raise DriftDataError(
            f"{pattern}: what kind of file is it? It ends in none of .parquet, .csv, .tsv, .jsonl, .json (or .gz of "
            "the last four). Name files by their ending, with a glob where there are several: 'nights/*.parquet'."
        )
    return relation_of(connection, pattern, reader.format(literal(pattern)))


def relation_of(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> Relation:
    """Anything that stands behind FROM, with the columns that can be compared.

    Raises:
        DriftDataError: it cannot be read.
    """
    fields: dict[str, Field] = {}
    left_out: dict[str, str] = {}
    with _read(name):
        found = connection.sql(f"SELECT * FROM {sql}")
        for column, column_type in zip(found.columns, found.types, strict=True):
            _describe(column, quoted(column), column_type, fields, left_out)
    return Relation(name, sql, fields, left_out)


def compare_relations(
    connection: duckdb.DuckDBPyConnection,
    reference: Relation,
    live: Relation,
    *,
    n_bins: int,
    floor: float,
    leave_out: Collection[str] = (),
) -> tuple[RowComparison, dict[str, str]]:
    """Every column that both have, and what was left out with the reason; memory does not grow with rows.

    Args:
        n_bins, floor: as in `compare_rows`.
        leave_out: names of columns.

    Raises:
        DriftDataError: see `relation_of`, `shared_fields` and `compare_rows`; or there is no column to leave out.
    """
    unknown = [name for name in leave_out if not any(_has(side, name) for side in (reference, live))]
    if unknown:
        raise DriftDataError(
            f"Neither side has a column {' or '.join(unknown)} that could be left out. There are {_listed(reference)}."
        )
    asked = [_without(side, leave_out) for side in (reference, live)]
    before, now, left_out = shared_fields(connection, *asked)

    def rows(side: Relation, fields: Mapping[str, Field]) -> Rows:
        return lambda without: side.blocks(connection, {n: f for n, f in fields.items() if n not in without})

    return compare_rows(rows(asked[0], before), rows(asked[1], now), n_bins=n_bins, floor=floor), left_out


def shared_fields(
    connection: duckdb.DuckDBPyConnection, reference: Relation, live: Relation
) -> tuple[dict[str, Field], dict[str, Field], dict[str, str]]:
    """The columns of both sides, as each side selects them, and the other ones with the reason why not.

    A column in which one side holds no value at all is of the other side's kind: files say nothing of it.

    Raises:
        DriftDataError: no column is in both, or columns differ in kind or in their lists' lengths; all such columns
            are named.
    """
    left_out = {**live.left_out, **reference.left_out}
    for side, other in ((reference, live), (live, reference)):
        for name in side.fields:
            if name not in other.fields and name not in left_out:
                left_out[name] = f"only {side.name} has it"
    both = [name for name in reference.fields if name in live.fields]
    if not both:
        raise DriftDataError(
            f"{reference.name} and {live.name} have no column in common that can be compared: the first has "
            f"{_listed(reference)}; the second {_listed(live)}."
        )
    before, now = dict[str, Field](), dict[str, Field]()
    problems = []
    for name in both:
        fields = _alike(connection, (reference, live), name)
        if isinstance(fields, str):
            problems.append(f"  {name}: {fields}")
        else:
            before[name], now[name] = fields
    if problems:
        lines = "\n".join(problems)
        raise DriftDataError(
            f"{len(problems)} columns cannot be compared:\n{lines}\nWrite them alike, or leave them out with "
            "--leave-out NAME."
        )
    return before, now, left_out


def _alike(
    connection: duckdb.DuckDBPyConnection, sides: tuple[Relation, Relation], name: str
) -> tuple[Field, Field] | str:
    """A column as each side selects it; or why its sides differ."""
    before, now = (side.fields[name] for side in sides)
    if before.kind != now.kind:
        empty = [_is_empty(connection, side, name) for side in sides]
        if not any(empty):
            return f"{before.kind} in {sides[0].name}, {now.kind} in {sides[1].name}"
        kind = now.kind if empty[0] else before.kind
        nothing = Field(kind, _cast("NULL", kind))
        before, now = (nothing if is_empty else field for is_empty, field in zip(empty, (before, now), strict=True))
    if before.kind != "vector":
        return before, now
    found = sorted({*_lengths(connection, sides[0], before), *_lengths(connection, sides[1], now)})
    if len(found) > 1:
        return f"its lists hold {' or '.join(map(str, found))} values; all must be equally long"
    length = found[0] if found else 0
    return replace(before, length=length), replace(now, length=length)


def _describe(name: str, sql: str, column_type: Any, fields: dict[str, Field], left_out: dict[str, str]) -> None:
    """Adds a column to what can be compared, or to what is left out."""
    kind = column_type.id
    if kind == "struct":
        for child, child_type in column_type.children:
            _describe(f"{name}.{child}", f"{sql}.{quoted(child)}", child_type, fields, left_out)
        return
    found: ColumnKind | None = None
    if kind in _NUMBERS:
        found = "numeric"
    elif kind == "boolean":
        found = "boolean"
    elif kind in _TEXTS or kind in _EMPTY:
        found = "categorical"
    elif kind in {"list", "array"} and dict(column_type.children)["child"].id in _NUMBERS:
        found = "vector"
    if found is None:
        moves = "time always moves" if kind.startswith(("timestamp", "date", "time")) else "no kind that is compared"
        left_out[name] = f"{str(column_type).lower()}: {moves}"
    else:
        fields[name] = Field(found, _cast(sql, found))


def _cast(sql: str, kind: ColumnKind) -> str:
    if kind == "boolean":  # a plain cast would be pushed down into a CSV reader, which then finds no number in "true"
        return f"CASE WHEN {sql} THEN 1.0::DOUBLE WHEN NOT {sql} THEN 0.0::DOUBLE END"
    types = {"numeric": "DOUBLE", "categorical": "VARCHAR", "vector": "DOUBLE[]"}
    return f"CAST({sql} AS {types[kind]})"


def _is_empty(connection: duckdb.DuckDBPyConnection, side: Relation, name: str) -> bool:
    with _read(side.name):
        found = connection.execute(f"SELECT count({side.fields[name].sql}) FROM {side.sql}").fetchall()
    return found == [(0,)]


def _lengths(connection: duckdb.DuckDBPyConnection, side: Relation, field: Field) -> list[int]:
    """The shortest and the longest of a column's lists; none where it holds none."""
    with _read(side.name):
        found = connection.execute(f"SELECT min(len({field.sql})), max(len({field.sql})) FROM {side.sql}").fetchall()
    return [length for length in found[0] if length is not None]


def _column(field: Field, values: pa.Array) -> DriftColumn:
    """A block's column."""
    if field.kind == "categorical":
        encoded = values.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return DriftColumn(field.kind, codes, tuple(encoded.dictionary.to_pylist()))
    if field.kind != "vector":
        return DriftColumn(field.kind, _floats(values))
    vectors = np.full((len(values), field.length), np.nan)
    there = values.drop_null()
    if len(there):
        vectors[values.is_valid().to_numpy(zero_copy_only=False)] = _floats(there.flatten()).reshape(len(there), -1)
    return DriftColumn(field.kind, vectors)


def _floats(values: pa.Array) -> NDArray[np.float64]:
    """Doubles with NaN for null; a view where none is null."""
    floats: NDArray[np.float64] = values.to_numpy(zero_copy_only=False)
    return floats


def _has(side: Relation, name: str) -> bool:
    return name in side.fields or name in side.left_out


def _without(side: Relation, names: Collection[str]) -> Relation:
    fields = {name: field for name, field in side.fields.items() if name not in names}
    return replace(side, fields=fields, left_out={n: why for n, why in side.left_out.items() if n not in names})


@contextmanager
def _read(name: str) -> Iterator[None]:
    """Says which side could not be read, and why."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        lines = [line.strip().removesuffix(".") for line in str(error).splitlines() if line.strip()]
        raise DriftDataError(f"{name} cannot be read: {'. '.join(lines[:2]) or type(error).__name__}.") from error


def _listed(relation: Relation) -> str:
    return ", ".join(list(relation.fields)[:12]) or "none"
