"""Outcome logs on their way into the lake: exactly once, nothing lost, and each found its decision or counted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datasets.batches import list_batches, reject_batch, release_batch
from datasets.compatibility import IncompatibleContractError
from datasets.contract import Contract
from datasets.freezing import NoEpisodesError, freeze_snapshot
from datasets.ingest import IngestReport
from datasets.lake import Lake
from datasets.outcome_account import OutcomeAccount
from datasets.snapshot import open_snapshot
from datasets.snapshot_config import SnapshotConfig
from tests.datasets.builders import (
    NOON,
    ask,
    counts_of,
    lake_at,
    reasons_of,
    step_row,
    suite_says,
    take_in,
    tiny,
    write_rows,
)
from tests.datasets.test_episodes import episodes_of, transitions_of

pytestmark = pytest.mark.usefixtures("quick_suite")

RULES = {"attribution_window": "1h", "combine": "sum", "default": -5.0}


def waiting(**changes: Any) -> Contract:
    return tiny(outcomes={**RULES, **changes})


def awaiting_row(step: int = 0, **changes: Any) -> dict[str, Any]:
    """A step of episode e whose decision is named after it, at 10:00 and the minutes behind."""
    return step_row("e", step, **{"reward": None, "decision_id": f"d{step}", **changes})


def outcome_row(decision_id: str | None = "d0", at: str = "10:30", reward: Any = -1.0) -> dict[str, Any]:
    return {"decision_id": decision_id, "timestamp": f"2024-05-01T{at}:00Z", "reward": reward}


def steps_in(lake: Lake, name: str, *rows: dict[str, Any]) -> IngestReport:
    return take_in(lake, write_rows(lake.root.parent / name, rows))


def outcomes_in(lake: Lake, name: str, *rows: dict[str, Any] | str) -> IngestReport:
    return take_in(lake, write_rows(lake.root.parent / name, rows), kind="outcomes")


def rewards_of(lake: Lake, as_of: datetime = NOON) -> dict[str, float]:
    return {row["decision_id"]: row["reward"] for row in transitions_of(lake, as_of)}


def three_steps() -> list[dict[str, Any]]:
    return [awaiting_row(i) for i in range(3)]


def test_outcomes_settle_the_rewards_of_their_decisions(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", *three_steps())
    report = outcomes_in(lake, "o.jsonl", outcome_row("d0"), outcome_row("d0", "10:40", -2), outcome_row("d2"))

    assert counts_of(report) == {"in": 3, "lake": 3}
    assert report.account == OutcomeAccount(n_counted=3)
    assert rewards_of(lake) == {"d0": -3.0, "d1": -5.0, "d2": -1.0}
    assert ask(lake, "SELECT reward FROM {steps}") == [(None,)] * 3  # the log's own facts stay as they are
    assert [(b.kind, b.status) for b in list_batches(lake)] == [("steps", "lake"), ("outcomes", "lake")]


def test_outcomes_that_came_before_their_steps_find_them_once_they_are_there(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    early = outcomes_in(lake, "o.jsonl", outcome_row("d0"), outcome_row("d1"))
    steps_in(lake, "s.jsonl", *three_steps())

    assert early.account == OutcomeAccount(n_dangling=2)
    assert rewards_of(lake) == {"d0": -1.0, "d1": -1.0, "d2": -5.0}


def test_the_account_says_what_became_of_each_outcome(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", *three_steps()[:2], awaiting_row(2, reward=-1.0))
    outcomes_in(lake, "before.jsonl", outcome_row("d1", "10:10"))
    report = outcomes_in(
        lake,
        "o.jsonl",
        outcome_row("d0"),
        outcome_row("d0"),
        outcome_row("d1", "10:10"),  # repeats the one of an earlier batch
        outcome_row("d0", "09:59"),
        outcome_row("d0", "11:01"),
        outcome_row("d2"),
        outcome_row("nobody"),
    )

    expected = OutcomeAccount(n_counted=1, n_early=1, n_late=1, n_duplicate=2, n_already_rewarded=1, n_dangling=1)
    assert report.account == expected
    assert report.to_json()["account"]["n_late"] == 1
    assert ask(lake, "SELECT count(*) FROM {outcomes}") == [(8,)]  # all of them are kept
    assert rewards_of(lake) == {"d0": -1.0, "d1": -1.0, "d2": -1.0}


def test_the_same_file_renamed_or_grown_is_read_once(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    outcomes_in(lake, "o.jsonl", outcome_row("d0"))

    assert outcomes_in(lake, "renamed.jsonl", outcome_row("d0")).batch is None
    assert counts_of(outcomes_in(lake, "o.jsonl", outcome_row("d0"), outcome_row("d1"))) == {"in": 1, "lake": 1}
    assert ask(lake, "SELECT decision_id, source_line FROM {outcomes} ORDER BY 1") == [("d0", 1), ("d1", 2)]


def test_a_file_that_was_taken_for_steps_can_still_be_taken_for_outcomes(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    rows = [outcome_row("d0")]

    assert counts_of(steps_in(lake, "o.jsonl", *rows)) == {"in": 1, "quarantined": 1}
    assert counts_of(outcomes_in(lake, "o.jsonl", *rows)) == {"in": 1, "lake": 1}
    assert steps_in(lake, "o.jsonl", *rows).unchanged == ("o.jsonl",)


def test_bad_outcomes_are_in_quarantine_and_damage_the_episode_that_awaits_them(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", *three_steps())
    report = outcomes_in(
        lake,
        "o.jsonl",
        outcome_row("d1", reward="much"),
        outcome_row("d1", reward=None),
        outcome_row(None),
        {**outcome_row("d1"), "timestamp": "yesterday"},
        "no JSON",
    )

    assert counts_of(report) == {"in": 5, "quarantined": 5}
    assert reasons_of(lake) == [
        'reward is "much", not a number',
        "reward is missing, and it tells of no end of an episode",
        "decision_id is missing",
        'timestamp "yesterday" has no time zone; set time.zone in the contract',
        "the line is not valid JSON",
    ]
    assert ask(lake, "SELECT kind, decision_id FROM {quarantine} ORDER BY source_line") == [
        ("outcomes", "d1"),
        ("outcomes", "d1"),
        ("outcomes", None),
        ("outcomes", "d1"),
        ("outcomes", None),
    ]
    assert episodes_of(lake)["e"]["damage"] == "3 of its rows are in quarantine"


def test_single_outcomes_may_lie_outside_the_range_of_rewards(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", *three_steps())
    report = outcomes_in(lake, "o.jsonl", outcome_row("d0", reward=-60), outcome_row("d0", "10:31", reward=59))

    assert counts_of(report) == {"in": 2, "lake": 2}
    assert rewards_of(lake)["d0"] == -1.0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"decision_id": None}, "reward is missing, and without a decision_id no outcome can bring it"),
        ({"timestamp": None}, "reward is missing, and without a timestamp its outcomes have no window"),
    ],
)
def test_a_step_without_reward_needs_what_its_outcomes_are_found_by(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    contract = tiny(outcomes=RULES, episodes={"kind": "one_step"})
    lake = lake_at(tmp_path, contract)
    steps_in(lake, "s.jsonl", awaiting_row(**row))

    assert reasons_of(lake) == [reason]


def test_outcomes_come_as_csv_under_names_of_their_own(tmp_path: Path) -> None:
    names = {"decision_id": "order.ref", "reward": "revenue"}
    lake = lake_at(tmp_path, waiting(columns=names))
    steps_in(lake, "s.jsonl", *three_steps())
    path = tmp_path / "o.csv"
    path.write_text("order.ref,timestamp,revenue,note\nd0,2024-05-01T10:30:00Z,-1.5,x\nd1,2024-05-01T10:30:00Z,,\n")
    report = take_in(lake, path, kind="outcomes")

    assert counts_of(report) == {"in": 2, "lake": 1, "quarantined": 1}
    assert report.batch is not None
    assert report.batch.dropped_columns == ("note",)
    assert ask(lake, "SELECT decision_id, reward, source, source_line FROM {outcomes}") == [("d0", -1.5, "o.csv", 2)]


@pytest.mark.parametrize("status", ["released", "rejected"])
def test_a_held_batch_of_outcomes_waits_for_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", *three_steps())
    suite_says(monkeypatch, False)
    report = outcomes_in(lake, "o.jsonl", outcome_row("d0"), outcome_row("d0"), outcome_row("d1", reward="x"))
    suite_says(monkeypatch, True)
    assert report.batch is not None
    assert (counts_of(report), report.account) == ({"in": 3, "held": 3}, None)
    assert ask(lake, "SELECT count(*) FROM {outcomes}") == [(0,)]

    settle = release_batch if status == "released" else reject_batch
    settled = settle(lake, report.batch.batch_id, by="somebody", at=NOON)

    assert (settled.status, settled.kind) == (status, "outcomes")
    if status == "released":
        assert ask(lake, "SELECT decision_id, reward FROM {outcomes}") == [("d0", -1.0)] * 2
        assert episodes_of(lake)["e"]["damage"] == "1 of its rows are in quarantine"
    else:
        assert episodes_of(lake)["e"]["damage"] == "3 of its rows are in quarantine"
        assert ask(lake, "SELECT count(*), count(decision_id) FROM {quarantine} WHERE kind = 'outcomes'") == [(3, 3)]


def test_rejected_outcomes_that_were_read_again_damage_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", *three_steps())
    suite_says(monkeypatch, False)
    report = outcomes_in(lake, "o.jsonl", outcome_row("d0"))
    suite_says(monkeypatch, True)
    assert report.batch is not None
    reject_batch(lake, report.batch.batch_id, by="somebody", at=NOON)
    assert episodes_of(lake)["e"]["damage"] == "1 of its rows are in quarantine"

    mended = lake_at(tmp_path, waiting(default=-4.0))
    assert counts_of(outcomes_in(mended, "o.jsonl", outcome_row("d0"))) == {"in": 1, "lake": 1}
    assert rewards_of(mended) == {"d0": -1.0, "d1": -4.0, "d2": -4.0}


def test_outcomes_cannot_be_taken_out_of_the_contract_while_steps_may_await_them(tmp_path: Path) -> None:
    steps_in(lake_at(tmp_path, waiting()), "s.jsonl", *three_steps())

    with pytest.raises(IncompatibleContractError, match="outcomes is gone; steps in history may await them"):
        lake_at(tmp_path, tiny())


def test_as_of_newest_goes_on_with_the_outcomes(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    take_in(lake, write_rows(tmp_path / "s.jsonl", three_steps()), as_of="newest")
    report = take_in(
        lake, write_rows(tmp_path / "o.jsonl", [outcome_row("d0", "10:50")]), kind="outcomes", as_of="newest"
    )

    assert report.batch is not None
    assert report.batch.as_of == datetime(2024, 5, 1, 10, 50, tzinfo=UTC)


def test_a_snapshot_freezes_settled_rewards_and_waits_for_open_windows(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", *three_steps())
    outcomes_in(lake, "o.jsonl", outcome_row("d0"), outcome_row("d2", "11:02"))

    with pytest.raises(NoEpisodesError, match="1 are still open at 2024-05-01 11:02"):
        freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=datetime(2024, 5, 1, 11, 2, tzinfo=UTC))
    path, summary = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=NOON)
    replay, _ = open_snapshot(path)

    assert replay.rewards.tolist() == [-1.0, -5.0, -1.0]
    outcomes_in(lake, "late.jsonl", outcome_row("d1", "10:50", -2))  # in the window, but it came a day later
    assert open_snapshot(path)[0].rewards.tolist() == [-1.0, -5.0, -1.0]
    again, changed = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=NOON)
    assert open_snapshot(again)[0].rewards.tolist() == [-1.0, -2.0, -1.0]
    assert changed.digest != summary.digest
