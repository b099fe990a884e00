"""Outcomes through the stages: from their logs to views and snapshots; nothing is settled while a batch is held."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from datasets.batches import reject_batch
from datasets.splits import last_night_over
from pipelines import stages
from pipelines.night_record import Ingested, held_tonight
from pipelines.training import StageError
from pipelines.workspace import Workspace, open_workspace, write_workspace
from tests.datasets.builders import step_row, suite_says, tiny, write_rows
from tests.pipelines.conftest import Run

RULES = """
[outcomes]
attribution_window = "1h"
combine = "sum"
default = -5.0
"""

CONTRACT = """
name = "shop"
gamma = 0.9
[features.cpu]
type = "numeric"
[actions]
names = ["down", "hold", "up"]
[reward]
min = -10.0
max = 0.0
[episodes]
timeout = "1h"
"""

AS_OF = datetime(2024, 5, 2, tzinfo=UTC)


def shop(folder: Path, contract: str = CONTRACT + RULES) -> Workspace:
    write_workspace(folder, "blank")
    (folder / "contract.toml").write_text(contract, encoding="utf-8")
    return open_workspace(folder, AS_OF)


def write_logs(workspace: Workspace) -> None:
    rows = [step_row("e", i, reward=None, decision_id=f"d{i}") for i in range(3)]
    write_rows(workspace.logs_path / "s.jsonl", [*rows, step_row("open", 0, reward=None, decision_id="new")])
    write_rows(
        workspace.outcome_logs_path / "o.jsonl", [outcome("d0"), outcome("d0"), outcome("d2", "2024-05-01T09:00:00Z")]
    )


def outcome(decision_id: str, at: str = "2024-05-01T10:30:00Z") -> dict[str, Any]:
    return {"decision_id": decision_id, "timestamp": at, "reward": -1.0}


@pytest.fixture
def quick_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    suite_says(monkeypatch, True)


def test_a_new_workspace_has_a_place_for_outcomes(tmp_path: Path) -> None:
    assert write_workspace(tmp_path / "w", "blank").outcome_logs_path.is_dir()


@pytest.mark.usefixtures("quick_suite")
def test_one_ingest_takes_steps_and_outcomes_as_batches_of_their_own(tmp_path: Path) -> None:
    workspace = shop(tmp_path)
    write_logs(workspace)
    report = stages.ingest(workspace)

    assert report.batch is not None
    assert report.outcomes is not None
    assert report.outcomes.batch is not None
    assert (report.batch.kind, report.outcomes.batch.kind) == ("steps", "outcomes")
    assert report.to_json()["outcomes"]["account"] == {
        "n_counted": 1,
        "n_early": 1,
        "n_late": 0,
        "n_duplicate": 1,
        "n_already_rewarded": 0,
        "n_dangling": 0,
        "n_no_reward": 0,
        "n_end_counted": 0,
        "n_end_early": 0,
        "n_end_late": 0,
        "n_end_repeated": 0,
        "n_end_contradicting": 0,
        "n_end_dangling": 0,
    }
    again = stages.ingest(workspace)
    assert (again.batch, again.outcomes and again.outcomes.batch) == (None, None)
    found = {
        sql: workspace.query(sql).rows
        for sql in (
            "SELECT status, count(*) FROM outcomes_status GROUP BY 1 ORDER BY 1",
            "SELECT count(*) FROM outcomes",
            'SELECT episode_id, "return" FROM episodes ORDER BY 1',
            "SELECT decision_id, reward FROM transitions WHERE episode_id = 'e' ORDER BY position",
            "SELECT count(reward) FROM steps",
        )
    }
    assert list(found.values()) == [
        (("counted", 1), ("duplicate", 1), ("early", 1)),
        ((3,),),
        (("e", -11.0), ("open", -5.0)),
        (("d0", -1.0), ("d1", -5.0), ("d2", -5.0)),
        ((0,),),
    ]


@pytest.mark.usefixtures("quick_suite")
def test_an_outcome_that_contradicts_an_end_is_told_by_ingest(tmp_path: Path, run: Run) -> None:
    workspace = shop(tmp_path / "w")
    rows = [step_row("e", i, reward=None, decision_id=f"d{i}", terminated=False) for i in range(3)]
    write_rows(workspace.logs_path / "s.jsonl", rows)
    ends = [{**outcome("d2"), "terminated": True}, {**outcome("d2"), "truncated": True, "reward": None}]
    write_rows(workspace.outcome_logs_path / "o.jsonl", ends)

    answer = run(workspace, "ingest")
    assert answer.code == 0, answer.err
    assert "1 counted, 1 contradicting" in " ".join(answer.out.split())
    assert "1 outcomes contradict how their episodes ended; these are damaged" in " ".join(answer.err.split())
    found = workspace.query("SELECT end_status FROM outcomes_status ORDER BY source_line").rows
    assert found == (("counted",), ("contradicting",))


@pytest.mark.usefixtures("quick_suite")
def test_outcomes_given_by_path_come_alone(tmp_path: Path, run: Run) -> None:
    workspace = shop(tmp_path / "w")
    write_logs(workspace)
    path = write_rows(tmp_path / "elsewhere.jsonl", [outcome("d1")])

    answer = run(workspace, "ingest", "--outcomes", str(path))
    assert (answer.code, answer.err.count("warning")) == (0, 0), answer.err
    assert "Batch of outcomes ingested" in answer.out
    assert "0 counted, 0 early, 0 late, 0 duplicate, 0 already rewarded, 1 dangling, 0 no reward" in " ".join(
        answer.out.split()
    )
    assert "Batch ingested" not in answer.out
    both = json.loads(run(workspace, "ingest", "--json").out)
    assert (both["batch"]["n_lake"], both["outcomes"]["batch"]["n_lake"]) == (4, 3)


def test_outcomes_of_a_contract_without_rules_for_them_are_refused(tmp_path: Path) -> None:
    workspace = shop(tmp_path, CONTRACT)
    write_logs(workspace)

    with pytest.raises(
        StageError, match=r"logs/outcomes holds outcomes, and .*contract.toml has no table \[outcomes\]"
    ):
        stages.ingest(workspace)


def test_nothing_is_settled_while_a_batch_of_outcomes_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = shop(tmp_path)
    write_logs(workspace)
    suite_says(monkeypatch, True)
    stages.ingest(workspace, [workspace.logs_path])
    suite_says(monkeypatch, False)
    report = stages.ingest(workspace)
    assert report.outcomes is not None
    held = report.outcomes.batch
    assert held is not None

    assert held.status == "held"
    assert held_tonight(workspace, Ingested.of(report)) == stages.held_outcomes(workspace.open_lake())
    with pytest.raises(StageError, match=f"Batch {held.batch_id} of outcomes is held, and decisions that it rewards"):
        stages.snapshot(workspace)
    reject_batch(workspace.open_lake(), held.batch_id, by="Ada", at=AS_OF)
    _, summary = stages.snapshot(workspace)
    assert (summary.n_episodes, summary.n_damaged) == (1, 1)


def test_a_night_is_over_once_its_last_windows_have_closed() -> None:
    plain, waiting = tiny(), tiny(outcomes={"attribution_window": "3h"})
    at_two, at_four = (datetime(2024, 5, 2, hour, tzinfo=UTC) for hour in (2, 4))

    assert last_night_over(plain, at_two, whole_nights=False) == date(2024, 5, 1)
    assert last_night_over(waiting, at_two, whole_nights=False) == date(2024, 4, 30)
    assert last_night_over(waiting, at_four, whole_nights=False) == date(2024, 5, 1)
    assert last_night_over(waiting, at_two, whole_nights=True) == date(2024, 4, 30)
