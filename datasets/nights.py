"""What is remembered of each night: a few counts of a batch, kept in its validation result, that later ones are
compared with. Comparing never scans the lake's rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from typing import Any

import duckdb

from datasets.contract import CategoricalFeature, Contract
from datasets.duck import duck, literal
from datasets.lake import Lake

_MAX_LABELS = 500
"""A feature with more labels in one batch is no vocabulary that could be compared."""
_MAX_BATCHES = 500
"""Batches that are looked through for recent nights: some 20 a night over four weeks."""
_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class NightFacts:
    """One night's share of a batch.

    Attributes:
        n_episodes: an estimate, within a few percent.
        nulls: rows without each nullable feature.
        actions: rows of each action that was taken.
    """

    night: date
    n_rows: int
    n_episodes: int
    nulls: Mapping[str, int]
    actions: Mapping[str, int]


@dataclass(frozen=True)
class BatchFacts:
    """What a batch holds.

    Attributes:
        nights: by date, oldest first.
        newest: newest timestamp; None where there is none.
        labels: rows of each label of each categorical feature; None for a feature that has too many.
        n_new, n_quarantined: rows that are no repeats, and those of them in quarantine.
    """

    nights: tuple[NightFacts, ...]
    newest: datetime | None
    labels: Mapping[str, Mapping[str, int] | None]
    n_new: int = 0
    n_quarantined: int = 0

    @property
    def n_rows(self) -> int:
        """Rows of all nights."""
        return sum(night.n_rows for night in self.nights)

    def to_json(self, *, n_nights: int) -> dict[str, Any]:
        """Plain JSON values, with the newest nights only: a back-fill may hold thousands."""
        nights = [asdict(night) | {"night": night.night.isoformat()} for night in self.nights[-n_nights:]]
        newest = self.newest.isoformat() if self.newest else None
        return asdict(self) | {"nights": nights, "newest": newest}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BatchFacts:
        """What `to_json` wrote."""
        nights = tuple(NightFacts(**(n | {"night": date.fromisoformat(n["night"])})) for n in values["nights"])
        newest = datetime.fromisoformat(values["newest"]) if values["newest"] else None
        return cls(**(dict(values) | {"nights": nights, "newest": newest}))


def steps_facts(
    connection: duckdb.DuckDBPyConnection,
    steps: str,
    contract: Contract,
    stored: frozenset[str],
    *,
    undated: datetime,
    n_new: int,
    n_quarantined: int,
) -> BatchFacts:
    """The facts of a batch of canonical steps.

    Args:
        steps: SQL relation.
        stored: its columns, and the fields of the observation as `observation.x`.
        undated: the night of rows without a timestamp.
    """
    nullable = [name for name, f in contract.features.items() if f.nullable]
    nulls = "".join(
        f", count(*) - count(observation[{literal(f)}])" if f"observation.{f}" in stored else ", count(*)"
        for f in nullable
    )
    rows = connection.execute(
        f"SELECT {_day(undated)}, action, max(timestamp), count(*){nulls} FROM {steps} GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()
    episodes: dict[int, int] | None = None
    if contract.episodes.kind == "sequence":
        episodes = dict(
            connection.execute(
                f"SELECT {_day(undated)}, approx_count_distinct(episode_id) FROM {steps} GROUP BY 1"
            ).fetchall()
        )
    nights = list[NightFacts]()
    for day, group in groupby(rows, key=lambda row: int(row[0])):
        of_night = list(group)
        n_rows, *n_null = (sum(column) for column in zip(*(counts for _, _, _, *counts in of_night), strict=True))
        nights.append(
            NightFacts(
                night=date.fromordinal(_EPOCH + day),
                n_rows=n_rows,
                n_episodes=episodes[day] if episodes else n_rows,
                nulls=dict(zip(nullable, n_null, strict=True)),
                actions={action: n for _, action, _, n, *_ in of_night if action is not None},
            )
        )
    return BatchFacts(
        nights=tuple(nights),
        newest=_newest(row[2] for row in rows),
        labels={
            name: _labels(connection, steps, name)
            for name, feature in contract.features.items()
            if isinstance(feature, CategoricalFeature) and f"observation.{name}" in stored
        },
        n_new=n_new,
        n_quarantined=n_quarantined,
    )


def outcomes_facts(
    connection: duckdb.DuckDBPyConnection, outcomes: str, *, undated: datetime, n_new: int, n_quarantined: int
) -> BatchFacts:
    """The facts of a batch of outcomes."""
    rows = connection.execute(
        f"SELECT {_day(undated)}, count(*), max(timestamp) FROM {outcomes} GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return BatchFacts(
        nights=tuple(NightFacts(date.fromordinal(_EPOCH + int(day)), n, n, {}, {}) for day, n, _ in rows),
        newest=_newest(row[2] for row in rows),
        labels={},
        n_new=n_new,
        n_quarantined=n_quarantined,
    )


def _day(undated: datetime) -> str:
    """Days since 1970. Arithmetic: to take the date of an instant is slower than all the rest together."""
    days = undated.astimezone(UTC).toordinal() - _EPOCH
    return f"coalesce(floor(epoch_us(timestamp) / 86400e6)::INTEGER, {days})"


def _newest(timestamps: Iterable[datetime | None]) -> datetime | None:
    return max((at for at in timestamps if at is not None), default=None)


def _labels(connection: duckdb.DuckDBPyConnection, steps: str, feature: str) -> dict[str, int] | None:
    value = f"observation[{literal(feature)}]"
    found = connection.execute(
        f"SELECT {value} AS label, count(*) FROM {steps} WHERE label IS NOT NULL GROUP BY 1 LIMIT {_MAX_LABELS + 1}"
    ).fetchall()
    return dict(sorted(found)) if len(found) <= _MAX_LABELS else None


def recent_facts(lake: Lake, kind: str) -> list[BatchFacts]:
    """The facts of the newest batches of a kind that are in the lake, newest first.

    Reads the small table `batches` alone, and the results only of those batches.
    """
    table = lake.scan("batches")
    with duck() as connection:
        newest = connection.execute(
            f"""SELECT last FROM (
                SELECT max(commit_number) AS last, arg_max(status, commit_number) AS status
                FROM {table} WHERE kind = ? GROUP BY batch_id
            ) WHERE status IN ('lake', 'released') ORDER BY last DESC LIMIT {_MAX_BATCHES}""",
            [kind],
        ).fetchall()
        numbers = [int(number) for (number,) in newest]
        if not numbers:
            return []
        listed = ", ".join(map(str, numbers))
        found = connection.execute(
            f"""SELECT json_extract(validation, '$.facts')::VARCHAR FROM {table}
            WHERE commit_number BETWEEN {min(numbers)} AND {max(numbers)} AND commit_number IN ({listed})
                AND kind = ? AND validation IS NOT NULL ORDER BY commit_number DESC""",
            [kind],
        ).fetchall()
    facts = [json.loads(text) for (text,) in found if text]
    return [BatchFacts.from_json(values) for values in facts if values]
