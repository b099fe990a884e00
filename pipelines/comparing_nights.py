"""Two sides of a comparison whose rows have nights and clusters, so that chance can be told: from files or the lake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
from numpy.typing import NDArray

from datasets.contract import ImageFeature
from datasets.duck import duck, quoted
from datasets.episodes import episodes_sql, settled_steps_sql
from datasets.exclusions import read_exclusions
from drift.cells import MAX_CELLS, Cells, dense
from drift.config import DriftConfig
from drift.row_comparison import RowComparison, compare_rows_by_cell
from drift.row_verdicts import LiveCells, judged_by_cells
from drift.windows import DriftDataError
from pipelines.comparing import CellCodes, Pair, Relation, day_sql, reading, relation_of
from pipelines.workspace import Workspace

_LOGGED = ("action", "reward", "behavior_prob")
"""Of a step, beside its observation."""

_FEW_CLUSTERS = 100_000
"""Up to about as many, distinct ones are counted; beyond, estimated to within a few percent in a bounded memory."""

_MAX_COUNTS = 2**21
"""Cells of all columns together: some 200 MB of counts in about a dozen slots each."""


@dataclass(frozen=True)
class Nights:
    """A range of nights, both ends inclusive and either of them open."""

    first: date | None
    last: date | None

    @classmethod
    def parsed(cls, text: str) -> Nights:
        """From "2026-01-01:2026-01-14", "2026-01-20:", ":2026-01-14" or one date.

        Raises:
            DriftDataError: it is none of these, or ends before it begins.
        """
        first, colon, last = text.partition(":")
        try:
            ends = [date.fromisoformat(end) if end else None for end in (first, last if colon else first)]
        except ValueError as error:
            raise DriftDataError(
                f"'{text}' is no range of nights; write 2026-01-01:2026-01-14, 2026-01-20: for all since, or one date."
            ) from error
        found = cls(ends[0], ends[1])
        if found.first is not None and found.last is not None and found.first > found.last:
            raise DriftDataError(f"The range of nights {text} ends before it begins.")
        return found

    @property
    def sql(self) -> str:
        """Which rows are of it, by their column `night`."""
        since = [f"night >= DATE '{self.first}'"] if self.first else []
        until = [f"night <= DATE '{self.last}'"] if self.last else []
        return " AND ".join([*since, *until]) or "true"


@contextmanager
def lake_sides(
    workspace: Workspace, ranges: Sequence[Nights], names: Sequence[str]
) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[Relation]]]:
    """The steps of complete, undamaged episodes that started in each range of nights, as relations.

    What DuckDB's memory does not hold goes into a temporary folder for a while.
    """
    lake, contract = workspace.open_lake(), workspace.contract
    tables = lake.scans(("steps", "outcomes", "quarantine"))
    as_of = workspace.as_of(lake)
    steps = (
        f"(SELECT * FROM {tables['steps']} WHERE timestamp IS NULL OR timestamp <= TIMESTAMPTZ '{as_of.isoformat()}')"
    )
    images = [f"observation.{name}" for name, feature in contract.features.items() if isinstance(feature, ImageFeature)]
    with TemporaryDirectory(prefix="offline-dqn-") as folder, duck(memory="1GB", spill=Path(folder)) as connection:
        episodes = episodes_sql(steps, tables["outcomes"], tables["quarantine"], contract, as_of, read_exclusions(lake))
        connection.execute(f"CREATE TEMP TABLE episodes AS {episodes}")
        rows = settled_steps_sql(steps, tables["outcomes"], "episodes", contract)
        sides = []
        for nights, name in zip(ranges, names, strict=True):
            columns = f"observation, {', '.join(_LOGGED)}, night, cluster"
            side = relation_of(connection, name, f"(SELECT {columns} FROM ({rows}) WHERE {nights.sql})")
            fields = {n: field for n, field in side.fields.items() if n not in {*images, "cluster"}}
            left_out = dict.fromkeys(images, "an image")
            sides.append(replace(side, fields=fields, left_out=left_out))
        yield connection, sides


def compare_nights(pair: Pair, night: str, cluster: str | None, config: DriftConfig, *, floor: float) -> RowComparison:
    """A comparison with the verdicts that the reference's nights or clusters allow; memory does not grow with rows.

    Args:
        night: column of both sides that holds each row's date, or an instant of it in UTC.
        cluster: column of what makes rows of a night dependent; None looks at whole nights alone.
        config: the `[drift]` table; nights of all weekdays are taken alike.

    Raises:
        DriftDataError: a side lacks such a column or values in it, or both sides share nights; see `compare_rows` too.
    """
    before, now = (_night_facts(pair, side, night, cluster) for side in (0, 1))
    shared = np.intersect1d(before.nights, now.nights)
    if len(shared):
        raise DriftDataError(
            f"{len(shared)} nights are on both sides, first {shared[0].astype('datetime64[D]')}. Rows of a night share "
            "its shocks, so such nights say nothing of chance: choose ranges that do not overlap."
        )
    most = min(MAX_CELLS, _MAX_COUNTS // max(1, len(pair.fields[0])))
    per_night = max(64, most // len(before.nights)) if cluster else 1
    codes = CellCodes(quoted(night), quoted(cluster) if cluster else "0", before.nights, per_night)
    found, counts = compare_rows_by_cell(
        pair.rows(0, codes), pair.rows(1), n_bins=config.n_bins, floor=floor, n_cells=len(before.nights) * per_night
    )
    held = next(iter(counts.values())).sum(axis=1) > 0 if counts else np.zeros(0, dtype=np.bool_)
    index = np.flatnonzero(held)
    cells = Cells(before.nights[index // per_night], dense(index % per_night), index[:0], before.n_clusters)
    kept = {name: table[held] for name, table in counts.items()}
    return judged_by_cells(found, kept, cells, LiveCells(now.nights, now.n_clusters, now.n_clusters_by_night), config)


@dataclass(frozen=True)
class _NightFacts:
    """(M,) nights of a side, its clusters, and those of each night added up (about, where they are many)."""

    nights: NDArray[np.int64]
    n_clusters: int
    n_clusters_by_night: int


def _check_dates(pair: Pair, side: int, night: str) -> None:
    """Raises DriftDataError where the column of nights holds what is no date."""
    relation, column = pair.sides[side], quoted(night)
    try:
        pair.connection.execute(f"SELECT count({day_sql(column)}) FROM {relation.sql}").fetchall()
    except duckdb.ConversionException:
        wrong = f"TRY_CAST(CAST({column} AS VARCHAR) AS DATE) IS NULL AND {column} IS NOT NULL"
        with reading(relation.name):
            found = pair.connection.execute(f"SELECT {column} FROM {relation.sql} WHERE {wrong} LIMIT 1").fetchall()
        shown = f", such as '{found[0][0]}'" if found else ""
        raise DriftDataError(
            f"{relation.name}: the column {night} holds what is no date{shown}. --night names the column of each row's "
            "date, or of an instant of it."
        ) from None
    except (duckdb.Error, OSError):
        return  # told by what reads it next


def _night_facts(pair: Pair, side: int, night: str, cluster: str | None) -> _NightFacts:
    relation = pair.sides[side]
    day, of = day_sql(quoted(night)), quoted(cluster) if cluster else "0"

    def ask(sql: str) -> list[tuple[int, ...]]:
        with reading(relation.name):
            return pair.connection.execute(sql).fetchall()

    _check_dates(pair, side, night)
    ((n_clusters,),) = ask(f"SELECT approx_count_distinct({of}) FROM {relation.sql}")
    distinct = f"approx_count_distinct({of})"
    if n_clusters <= _FEW_CLUSTERS:
        distinct = f"count(DISTINCT {of})"
        _check_dates(pair, side, night)
    ((n_clusters,),) = ask(f"SELECT {distinct} FROM {relation.sql}")
    rows = ask(f"SELECT {day} AS day, count(*), count({of}), {distinct} FROM {relation.sql} GROUP BY 1 ORDER BY 1")
    missing = {
        night: sum(n for day, n, *_ in rows if day is None),
        cluster: sum(n - known for _, n, known, _ in rows),
    }
    for name, n_missing in missing.items():
        if n_missing:
            raise DriftDataError(
                f"{relation.name}: {name} is missing in {n_missing:,} rows, and what they depend on is not known. "
                "Leave those rows out, or name another column."
            )
    if not rows:
        raise DriftDataError(f"{relation.name} holds no row.")
    nights = np.array([day for day, *_ in rows], dtype=np.int64)
    return _NightFacts(nights, n_clusters, sum(n for *_, n in rows))
