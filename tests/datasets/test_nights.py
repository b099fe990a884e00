"""What is remembered of a night, and that remembering it reads the results of batches and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from datasets.batches import Batch, BatchCounts, commit_batch
from datasets.duck import duck
from datasets.lake import open_lake
from datasets.nights import BatchFacts, NightFacts, outcomes_facts, recent_facts, steps_facts
from datasets.validation import ValidationResult
from tests.datasets.builders import tiny

AS_OF = datetime(2024, 5, 9, tzinfo=UTC)
STORED = frozenset({"observation", "observation.zone", "observation.busy"})


def steps(rows: Sequence[tuple[str | None, str, str | None, str | None, bool | None]]) -> pa.Table:
    at = [datetime.fromisoformat(r[0]).replace(tzinfo=UTC) if r[0] else None for r in rows]
    return pa.table(
        {
            "timestamp": pa.array(at, pa.timestamp("us", "UTC")),
            "episode_id": [r[1] for r in rows],
            "action": pa.array([r[2] for r in rows], pa.string()),
            "observation": pa.array(
                [{"zone": r[3], "busy": r[4]} for r in rows],
                pa.struct([("zone", pa.string()), ("busy", pa.bool_())]),
            ),
        }
    )


def facts_of(table: pa.Table) -> BatchFacts:
    with duck() as connection:
        connection.register("steps", table)
        return steps_facts(connection, "steps", tiny(), STORED, undated=AS_OF, n_new=9, n_quarantined=2)


def test_counts_of_each_night() -> None:
    found = facts_of(
        steps(
            [
                ("2024-05-01T23:59:59.999999", "e", "hold", "a", None),
                ("2024-05-02T00:00:00", "e", "up", None, True),
                ("2024-05-02T10:00:00", "f", "up", "b", None),
                ("1969-12-31T23:00:00", "g", None, "a", True),
                (None, "h", "up", "a", True),
            ]
        )
    )
    # The vector feature `load`, which the files do not have, counts as null throughout.
    assert found.nights == (
        NightFacts(date(1969, 12, 31), 1, 1, {"zone": 0, "busy": 0, "load": 1}, {}),
        NightFacts(date(2024, 5, 1), 1, 1, {"zone": 0, "busy": 1, "load": 1}, {"hold": 1}),
        NightFacts(date(2024, 5, 2), 2, 2, {"zone": 1, "busy": 1, "load": 2}, {"up": 2}),
        NightFacts(AS_OF.date(), 1, 1, {"zone": 0, "busy": 0, "load": 1}, {"up": 1}),
    )
    assert found.newest == datetime(2024, 5, 2, 10, tzinfo=UTC)
    assert found.labels == {"zone": {"a": 3, "b": 1}}
    assert (found.n_rows, found.n_new, found.n_quarantined) == (5, 9, 2)


def test_no_rows_are_no_nights() -> None:
    found = facts_of(steps([]))
    assert (found.nights, found.newest, found.labels) == ((), None, {"zone": {}})


def test_a_feature_with_too_many_labels_has_none_that_are_kept() -> None:
    rows = [("2024-05-01T10:00:00", "e", "hold", f"z{i}", True) for i in range(501)]
    assert facts_of(steps(rows)).labels == {"zone": None}
    assert len(facts_of(steps(rows[:-1])).labels["zone"] or ()) == 500


def test_outcomes_are_counted_by_night() -> None:
    at = pa.array([datetime(2024, 5, 1, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    with duck() as connection:
        connection.register("outcomes", pa.table({"timestamp": at}))
        found = outcomes_facts(connection, "outcomes", undated=AS_OF, n_new=2, n_quarantined=0)
    assert [(n.night, n.n_rows) for n in found.nights] == [(date(2024, 5, 1), 1), (date(2024, 5, 2), 1)]
    assert found.newest == datetime(2024, 5, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def lake_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of six batches: kind, status, and the first one judged twice."""
    root = tmp_path_factory.mktemp("nights")
    lake = open_lake(root / "lake", tiny())
    states = ["held", "lake", "lake", "rejected", "lake", "lake", "released"]
    for number, status in enumerate(states):
        n = 0 if status == "released" else number
        at = AS_OF + timedelta(days=number)
        night = NightFacts(date(2024, 5, 1 + n), 10 + n, 1, {}, {})
        facts = BatchFacts((night,), at, {}, 10, 0)
        validation = ValidationResult(True, (), 10, 0.0, (), facts.to_json(n_nights=28)).to_json()
        batch = Batch(
            batch_id=f"b-{n}",
            kind="outcomes" if n == 5 else "steps",
            status=status,
            settled_at=at,
            as_of=at,
            n_files=1,
            counts=BatchCounts(),
            dropped_columns=(),
            note="",
            validation=None if n == 4 else validation,
        )
        commit_batch(lake, batch, [], {}, root / f"records-{number}")
    return root / "lake"


def test_recent_facts_are_those_of_batches_in_the_lake(lake_path: Path) -> None:
    lake = open_lake(lake_path, tiny())
    # Batch 0 was held and then released, 3 rejected, 4 had no row to validate, 5 is of outcomes.
    assert [f.nights[0].n_rows for f in recent_facts(lake, "steps")] == [10, 12, 11]
    assert [f.nights[0].n_rows for f in recent_facts(lake, "outcomes")] == [15]


def test_a_new_lake_remembers_nothing(tmp_path: Path) -> None:
    assert recent_facts(open_lake(tmp_path / "lake", tiny()), "steps") == []
