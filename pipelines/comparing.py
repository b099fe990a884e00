"""Rows of files as two sides of a comparison: DuckDB reads them, and hands them over in blocks."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from drift.row_comparison import Rows
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


_LINEAGE = frozenset(("source", "source_line", "batch_id"))
"""Columns that together tell a file of the lake."""
_WRITER = frozenset(("policy_version",))


@dataclass(frozen=True)
class Field:
    """A column of a relation: its kind as a drift column, how to select it, and how long a vector's lists are."""

    kind: ColumnKind
    sql: str
    length: int = 0


@dataclass(frozen=True)
class CellCodes:
    """How rows fall into cells: a night's clusters, or bundles of them by hash where they are many.

    Attributes:
        night, cluster: SQL of a row's date, and of what makes rows of a night dependent.
        nights: (M,) day numbers, ascending.
        per_night: cells of a night; cell c is of night c // per_night.
    """

    night: str
    cluster: str
    nights: NDArray[np.int64]
    per_night: int

    @property
    def columns(self) -> str:
        """SQL of the two columns that `of` takes."""
        return f"{day_sql(self.night)} AS day, (hash({self.cluster}) % {self.per_night})::INTEGER AS code"

    def of(self, days: pa.Array, codes: pa.Array) -> NDArray[np.int64]:
        """(rows,) cell of each row."""
        night = np.searchsorted(self.nights, days.to_numpy(zero_copy_only=False))
        cells: NDArray[np.int64] = night * self.per_night + codes.to_numpy(zero_copy_only=False)
        return cells


def day_sql(night: str) -> str:
    """Day number, since 1970, of a date or an instant."""
    return f"date_diff('day', DATE '1970-01-01', CAST({night} AS DATE))"


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

    def blocks(
        self, connection: duckdb.DuckDBPyConnection, fields: Mapping[str, Field], cells: CellCodes | None = None
    ) -> Iterator[Block]:
        """Some of its columns, in its own order, and where asked for each row's cell.

        Raises:
            DriftDataError: a file cannot be read to its end.
        """
        selected = ", ".join(f"{field.sql} AS {quoted(name)}" for name, field in fields.items())
        if cells is not None:
            selected += f", {cells.columns}"
        with reading(self.name):
            reader = connection.sql(f"SELECT {selected} FROM {self.sql}").to_arrow_reader(BLOCK_ROWS)
            for batch in reader:
                columns = {
                    name: _column(field, batch.column(place)) for place, (name, field) in enumerate(fields.items())
                }
                n = len(fields)
                of_row = None if cells is None else cells.of(batch.column(n), batch.column(n + 1))
                yield Block(scalars(columns), of_row)


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
    found = relation_of(connection, pattern, reader.format(literal(pattern)))
    if [*found.fields, *found.left_out] == ["column0"] and _is_empty(connection, found, "column0"):  # DuckDB's own name
        raise DriftDataError(f"{pattern} is empty: it holds neither a head nor a row.")
    return found


def relation_of(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> Relation:
    """Anything that stands behind FROM, with the columns that can be compared.

    Raises:
        DriftDataError: it cannot be read.
    """
    fields: dict[str, Field] = {}
    left_out: dict[str, str] = {}
    with reading(name):
        found = connection.sql(f"SELECT * FROM {sql}")
        for column, column_type in zip(found.columns, found.types, strict=True):
            _describe(column, quoted(column), column_type, fields, left_out)
    if {*fields, *left_out} >= _LINEAGE:
        for column in (_LINEAGE | _WRITER) & set(fields):
            del fields[column]
            left_out[column] = "the lake's own note of where a row came from, which always moves"
    return Relation(name, sql, fields, left_out)


@dataclass(frozen=True)
class Pair:
    """Two relations with the columns that both have.

    Attributes:
        left_out: what is not compared, with the reason.
    """

    connection: duckdb.DuckDBPyConnection
    sides: tuple[Relation, Relation]
    fields: tuple[Mapping[str, Field], Mapping[str, Field]]
    left_out: Mapping[str, str]

    def rows(self, side: int, cells: CellCodes | None = None) -> Rows:
        """One side's rows, the reference's being side 0."""

        def blocks(without: frozenset[str]) -> Iterator[Block]:
            kept = {name: field for name, field in self.fields[side].items() if name not in without}
            return self.sides[side].blocks(self.connection, kept, cells)

        return blocks


def require_columns(side: Relation, names: Collection[str]) -> None:
    """Raises DriftDataError where a relation lacks a column."""
    lacking = [name for name in names if not _has(side, name)]
    if lacking:
        raise DriftDataError(f"{side.name} has no column {' and no '.join(lacking)}. {_known(side, lacking)}")


def pair_of(
    connection: duckdb.DuckDBPyConnection, reference: Relation, live: Relation, leave_out: Collection[str] = ()
) -> Pair:
    """Two relations side by side, without the columns named.

    Raises:
        DriftDataError: see `shared_fields`; or there is no such column to leave out.
    """
    unknown = [name for name in leave_out if not any(_has(side, name) for side in (reference, live))]
    if unknown:
        raise DriftDataError(
            f"Neither side has a column {' or '.join(unknown)} that could be left out. {_known(reference, unknown)}"
        )
    sides = _without(reference, leave_out), _without(live, leave_out)
    before, now, left_out = shared_fields(connection, *sides)
    return Pair(connection, sides, (before, now), left_out)


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
                left_out[name] = f"only in {side.name}"
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
        elif fields[0].kind == "vector" and not fields[0].length:
            left_out[name] = "neither side holds a list in it"
        else:
            before[name], now[name] = fields
    if not before and not problems:
        said = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise DriftDataError(f"{reference.name} and {live.name} have nothing in common that can be compared: {said}.")
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
    with reading(side.name):
        found = connection.execute(f"SELECT count({side.fields[name].sql}) FROM {side.sql}").fetchall()
    return found == [(0,)]


def _lengths(connection: duckdb.DuckDBPyConnection, side: Relation, field: Field) -> list[int]:
    """The shortest and the longest of a column's lists; none where it holds none."""
    with reading(side.name):
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
def reading(name: str) -> Iterator[None]:
    """Says which side could not be read, and why."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        lines = [line.strip().removesuffix(".") for line in str(error).splitlines() if line.strip()]
        raise DriftDataError(f"{name} cannot be read: {'. '.join(lines[:2]) or type(error).__name__}.") from error


def _listed(relation: Relation) -> str:
    return ", ".join([*relation.fields, *relation.left_out][:12]) or "none"


def _known(relation: Relation, asked: Sequence[str]) -> str:
    """What a misspelt column may have meant, or else what there is."""
    names = [*relation.fields, *relation.left_out]
    near = [close[0] for name in asked if (close := difflib.get_close_matches(name, names, n=1, cutoff=0.5))]
    if near:
        return f"Did you mean {' and '.join(near)}?"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"There are {_listed(relation)}{more}."
