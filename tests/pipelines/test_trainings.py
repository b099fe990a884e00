"""What earlier nights decide: the last training starts a cool-down, a run of drifted nights begins a world."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from drift.decision import RetrainDecision
from drift.records import ColumnDrift, DriftReport
from pipelines import flow
from pipelines.drift_history import record_check
from pipelines.nights import NightRecord, append_night
from pipelines.stages import DriftOutcome, ingest, measure, simulate
from pipelines.trainings import last_training
from pipelines.workspace import Workspace
from tests.pipelines.conftest import edit

RECORD = NightRecord(
    as_of="", batch=None, status="nothing new", n_in=0, n_quarantined=0, drift="stable", decision="none", release=None,
    value=None, low=None, high=None, baseline=None, gate=None, reason="", report=None, seconds={},
)  # fmt: skip
SNAPSHOT = date(2026, 1, 5)  # of release 1, which the shared workspace trained by hand, without a night


def at(day: int, hour: int = 23) -> datetime:
    return datetime(2026, 1, day, hour, 50, tzinfo=UTC)


def test_a_training_counts_from_the_night_or_from_the_snapshot_by_hand(workspace: Workspace) -> None:
    assert last_training(workspace, at(9)) == SNAPSHOT
    assert last_training(workspace, at(5)) is None  # the night that runs again is told what it was told then

    for day, release in ((6, None), (7, 2), (8, None)):
        append_night(workspace.nights_path, replace(RECORD, as_of=at(day).isoformat(), release=release))
    assert last_training(workspace, at(9)) == date(2026, 1, 7)
    assert last_training(workspace, at(7)) == SNAPSHOT
    assert last_training(workspace, at(8, 2)) == date(2026, 1, 7)


def test_a_release_made_by_compressing_is_no_training(workspace: Workspace) -> None:
    path = workspace.release_path(1) / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "compression": {}}))
    assert last_training(workspace, at(9)) is None


def report(status: str = "drifted", since: str | None = None) -> DriftReport:
    column = ColumnDrift(
        name="x", kind="numeric", exogenous=False, status=status, reason="", reference_rows=9, live_rows=9, psi=1.0,
        since=since,
    )  # type: ignore[arg-type]  # fmt: skip
    return DriftReport(
        columns=(column,), status=status, sentence="", unit="cluster", n_units=9, optimistic=True,  # type: ignore[arg-type]
        false_alarm_rate=0.01, min_psi=0.02, reference_episodes=9, effective_reference_episodes=9.0, reference_nights=2,
        live_episodes=9, live_nights=1,
    )  # fmt: skip


def outcome(day: int, found: DriftReport | None, cause: str = "drift") -> DriftOutcome:
    decision = RetrainDecision(cause == "drift", cause, "", ())  # type: ignore[arg-type]
    return DriftOutcome(found, decision, (date(2026, 1, day), date(2026, 1, day)))


@pytest.mark.parametrize(
    ("nights", "begins"),
    [
        ([("drifted", "drift", 1)], 12),
        ([("drifted", "drift", 1), ("drifted", "cool-down", 1), ("drifted", "suspicious", 1)], 10),
        ([("drifted", "drift", 1), ("stable", "none", 1), ("drifted", "cool-down", 1)], 12),
        ([("drifted", "drift", 4), ("drifted", "cool-down", 1), ("drifted", "drift", 1)], 11),  # of another champion
    ],
)
def test_the_new_world_begins_with_the_run_of_drifted_nights_whatever_was_decided(
    workspace: Workspace, nights: list[tuple[str, str, int]], begins: int
) -> None:
    first = 13 - len(nights)
    for day, (status, cause, champion) in enumerate(nights, first):
        kept: dict[str, Any] = outcome(day, report(status), cause).to_json()
        record_check(workspace.drift_path, kept, as_of=at(day), champion=champion)

    assert flow._changed_since(workspace, outcome(12, report())) == date(2026, 1, begins)


def test_where_the_report_tells_since_when_it_is_believed(workspace: Workspace) -> None:
    record_check(workspace.drift_path, outcome(11, report()).to_json(), as_of=at(11), champion=1)

    assert flow._changed_since(workspace, outcome(12, report(since="2026-01-08"))) == date(2026, 1, 8)
    assert flow._changed_since(workspace, outcome(12, report(), "age")) is None
    assert flow._changed_since(workspace, outcome(12, report(), "forced")) is None


def test_a_drifted_night_soon_after_a_training_waits_and_says_until_when(workspace: Workspace) -> None:
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(settings.read_text() + '\n[drift]\ncool_down = "4d"\n')
    workspace = Workspace(workspace.root)
    simulate(workspace, traffic=1.6)
    ingest(workspace)
    held = measure(workspace)
    assert (held.decision.retrain, held.decision.cause) == (False, "cool-down")
    assert "cooling down until the night of 2026-01-09 after the training of 2026-01-05, although " in (
        held.decision.sentence
    )
    assert "request_rate (PSI " in held.decision.sentence
    assert measure(workspace, forced=True).decision.cause == "drift"
    edit(settings, '"4d"', '"1d"')
    assert measure(Workspace(workspace.root)).decision.cause == "drift"
