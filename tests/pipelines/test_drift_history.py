"""What a night's drift check leaves behind: whole lines, one check that stands for a night, and a view of them all."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from drift.config import DriftConfig
from drift.decision import Cause
from pipelines import stages
from pipelines.drift_history import drift_history_view, erase_from_history, read_drift_history, record_check
from pipelines.flow import nightly
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run

PAGE = Path(__file__).parents[2] / "docs" / "drift.md"
FIRST = datetime(2026, 1, 5, 23, 50, tzinfo=UTC)


def outcome(cause: str = "none", *, retrain: bool = False, psi: float = 0.01) -> dict[str, Any]:
    column = {
        "name": "observation.cpu", "role": "feature", "kind": "numeric", "status": "stable", "psi": psi, "kl": 0.004,
        "since": "2026-01-05", "threshold": 0.05,
    }  # fmt: skip
    report = {
        "status": "stable",
        "min_psi": 0.02,
        "live_episodes": 60,
        "columns": [column, {**column, "name": "action", "since": None}],
        "joint": [{"p_value": 0.4}, {"p_value": 0.2}, {"p_value": None}],
        "slow": [{"name": "action", "since": "2026-01-02"}],
        "effects": [{"column": "observation.cpu", "share_change": 0.1, "value_change": -2.0, "overlap_change": None}],
        "suspicions": [{"column": "action", "where": ["ep-17"], "sentence": "confined to ep-17"}],
    }
    decision = {"retrain": retrain, "cause": cause, "sentence": f"It is {cause}.", "reasons": []}
    return {"decision": decision, "live_nights": ["2026-01-04", "2026-01-05"], "report": report}


def nothing(cause: str = "not enough data") -> dict[str, Any]:
    return {**outcome(cause), "live_nights": None, "report": None}


def test_each_night_is_read_back_as_it_was_found(tmp_path: Path) -> None:
    for n in range(40):  # into February
        record_check(tmp_path, outcome(psi=0.001 * n), as_of=FIRST + timedelta(days=n), champion=3)

    found = read_drift_history(tmp_path)

    assert [check.night for check in found] == [str(date(2026, 1, 5) + timedelta(days=n)) for n in range(40)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["2026-01.jsonl", "2026-02.jsonl"]
    assert (found[-1].champion, found[-1].as_of, found[-1].retrain) == (3, "2026-02-13T23:50:00+00:00", False)
    assert found[7].report == outcome(psi=0.007)["report"]
    assert [check.night for check in read_drift_history(tmp_path, newest=15)] == [c.night for c in found[-15:]]
    assert read_drift_history(tmp_path, newest=100) == found


def test_a_night_that_repeats_adds_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        record_check(tmp_path, outcome(), as_of=FIRST, champion=3)

    assert len((tmp_path / "2026-01.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("causes", "stands"),
    [(("none", "performance"), "performance"), (("drift!", "cool-down"), "drift!"), (("drift!", "forced!"), "forced!"),
     (("suspicious", "forced!", "none"), "forced!")],
)  # fmt: skip
def test_of_a_nights_checks_the_newest_that_trained_stands_or_else_the_newest(
    tmp_path: Path, causes: tuple[str, ...], stands: str
) -> None:
    for hour, cause in enumerate(causes):
        found = outcome(cause, retrain=cause.endswith("!"))
        record_check(tmp_path, found, as_of=FIRST - timedelta(hours=9 - hour), champion=1)

    (check,) = read_drift_history(tmp_path)

    assert check.decision["cause"] == stands
    assert len((tmp_path / "2026-01.jsonl").read_text().splitlines()) == len(causes)  # what was found is not lost


def test_a_night_cut_off_while_it_wrote_leaves_whole_lines(tmp_path: Path) -> None:
    record_check(tmp_path, outcome(), as_of=FIRST, champion=3)
    path = tmp_path / "2026-01.jsonl"
    whole = path.read_bytes()
    record_check(tmp_path, outcome("drift", retrain=True), as_of=FIRST + timedelta(days=1), champion=3)
    both = path.read_bytes()
    for cut in (len(whole) + 1, len(both) - 30, len(both) - 1):
        path.write_bytes(both[:cut])
        assert [check.night for check in read_drift_history(tmp_path)] == ["2026-01-05"]
    record_check(tmp_path, outcome("drift", retrain=True), as_of=FIRST + timedelta(days=1), champion=3)

    assert [check.decision["cause"] for check in read_drift_history(tmp_path)] == ["none", "drift"]


def test_what_was_erased_is_taken_out_and_dates_stay(tmp_path: Path) -> None:
    record_check(tmp_path, outcome(), as_of=FIRST, champion=3)
    erase_from_history(tmp_path, lambda text: text.replace("ep-17", "(erased)").replace("2026-01-05", "(erased)"))

    (check,) = read_drift_history(tmp_path)
    assert check.report is not None
    assert check.report["suspicions"][0]["where"] == ["(erased)"]
    assert check.report["suspicions"][0]["sentence"] == "confined to (erased)"
    assert (check.night, check.report["columns"][0]["since"]) == ("2026-01-05", "2026-01-05")


def test_the_view_has_a_row_per_night_and_column(fresh: Workspace) -> None:
    stages.simulate(fresh, n_episodes=12)
    stages.ingest(fresh)
    record_check(fresh.drift_path, nothing("no champion"), as_of=FIRST, champion=None)
    record_check(fresh.drift_path, outcome(), as_of=FIRST + timedelta(days=1), champion=3)

    found = fresh.query("SELECT * FROM drift_history ORDER BY night, column_name")
    first, action, cpu = (dict(zip(found.columns, row, strict=True)) for row in found.rows)

    assert {name for name, value in first.items() if value is not None} == {
        "night", "as_of", "retrain", "cause", "sentence", "drift"
    }  # fmt: skip
    assert (first["cause"], first["drift"], first["night"]) == ("no champion", "not measured", date(2026, 1, 5))
    assert (cpu["column_name"], cpu["psi"], cpu["threshold"], cpu["status"]) == (
        "observation.cpu",
        0.01,
        0.05,
        "stable",
    )
    assert (cpu["since"], cpu["slow_since"], cpu["value_change"]) == (date(2026, 1, 5), None, -2.0)
    assert (action["slow_since"], action["suspicion"], action["since"]) == (
        date(2026, 1, 2), "confined to ep-17", None,
    )  # fmt: skip
    assert {row["joint_p_value"] for row in (action, cpu)} == {0.2}
    assert {row["champion"] for row in (action, cpu)} == {3}

    record_check(fresh.drift_path, outcome(psi=0.5), as_of=FIRST + timedelta(days=2), champion=3)
    assert fresh.query("SELECT max(psi), count(*) FROM drift_history").rows == ((0.5, 5),)


def test_the_questions_of_the_page_are_answered(fresh: Workspace) -> None:
    stages.simulate(fresh, n_episodes=12)
    stages.ingest(fresh)
    for n in range(40):
        drifted = n > 37
        found = outcome("drift" if drifted else "none", retrain=drifted, psi=0.2 if drifted else 0.001 * n)
        found["report"]["columns"][0]["status"] = "drifted" if drifted else "stable"
        record_check(fresh.drift_path, found, as_of=FIRST + timedelta(days=n), champion=3)
    nearest, decided = re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)

    rows = fresh.query(nearest).rows
    assert rows[0] == ("observation.cpu", 40, 2, 4.0, date(2026, 2, 12))
    assert [row[0] for row in rows] == ["observation.cpu", "action"]
    last = fresh.query(decided).rows
    assert len(last) == 31
    assert last[0] == (date(2026, 2, 13), "drift", True, 3, 1, "observation.cpu", "It is drift.")
    assert last[2][1:6] == ("none", False, 3, 0, None)


def test_the_page_lists_every_setting_with_its_default_and_every_cause() -> None:
    page = PAGE.read_text()
    listed = re.findall(r"^\| `(\w+)` \| (\S+) \| ", page, re.MULTILINE)
    known = DriftConfig.model_fields.items()
    assert [(name, json.loads(default)) for name, default in listed] == [(name, f.default) for name, f in known]
    causes = re.findall(r"^\| `([a-z -]+)` \| [^|]+ \| [^|]+ \|$", page.partition("## The decision")[2], re.MULTILINE)
    assert set(get_args(Cause)) <= set(causes)


def test_before_the_first_night_the_view_is_empty(fresh: Workspace) -> None:
    stages.simulate(fresh, n_episodes=12)
    stages.ingest(fresh)
    assert fresh.query("SELECT count(*), count(psi) FROM drift_history").rows == ((0, 0),)


@pytest.mark.usefixtures("prefect_server")
def test_a_night_is_recorded_once_and_a_look_by_hand_is_not(workspace: Workspace, run: Run) -> None:
    stages.simulate(workspace)
    nightly(str(workspace.root))
    nightly(str(workspace.root))
    run(workspace, "drift")

    (check,) = read_drift_history(workspace.drift_path)
    by_hand = run(workspace, "drift", "--json").json
    assert (check.champion, check.night) == (1, "2026-01-06")
    assert json.loads(json.dumps(by_hand)) == {
        "decision": check.decision, "live_nights": check.live_nights, "report": check.report
    }  # fmt: skip
    answer = run(
        workspace, "query", "SELECT night, column_name, psi, cause FROM drift_history ORDER BY psi DESC NULLS LAST",
        "--format", "json",
    )  # fmt: skip
    assert answer.code == 0
    assert {row["column_name"] for row in answer.json["rows"]} >= {"observation.cpu", "action", "reward"}


def test_every_column_of_a_suspicion_and_every_suspicion_of_a_column_is_told(tmp_path: Path) -> None:
    found = outcome()
    found["report"]["suspicions"] = [
        {"column": "action", "also": ["observation.cpu"], "where": ["a"], "sentence": "confined to a"},
        {"column": "action", "where": ["the success rate"], "sentence": "the success rate fell"},
    ]
    record_check(tmp_path, found, as_of=FIRST, champion=3)
    table = drift_history_view(tmp_path).tables["drift_history"]()
    told = dict(zip(table["column_name"].to_pylist(), table["suspicion"].to_pylist(), strict=True))
    assert told == {"observation.cpu": "confined to a", "action": "confined to a; the success rate fell"}
