"""The views `evaluations` and `evaluation_episodes`: every headline number by SQL, and what an erasure leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines import erasing, readings
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run
from tests.pipelines.test_queries import QUESTIONS


def asked(workspace: Workspace, sql: str) -> dict[str, Any]:
    answer = workspace.query(sql)
    (row,) = answer.rows
    return dict(zip(answer.columns, row, strict=True))


def recorded(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.release_path(1) / "evaluation.json").read_text())
    return found


def test_every_headline_number_is_recomputed_by_sql(first_night: Path) -> None:
    workspace = open_workspace(first_night)
    evaluation = recorded(workspace)
    deciding = evaluation["deciding_estimator"]
    values = {(e["estimator"], e["policy"]): e["value"] for e in evaluation["estimates"]}
    differences = {c["against"]: c["value"] for c in evaluation["comparisons"] if c["binding"]}
    (overlap,) = (o for o in evaluation["overlaps"] if o["policy"] == "candidate" and o["decides"])

    by_sql = asked(
        workspace,
        """SELECT count(*) AS n, avg(candidate_term) AS value, avg(candidate_term - baseline_term) AS difference,
            avg(candidate_term - version_zero_term) AS to_rules, avg("return") AS logged, avg(weight) AS mean_weight,
            sum(weight) ^ 2 / sum(weight ^ 2) AS ess, count(DISTINCT night) AS nights, any_value(estimator) AS estimator
        FROM evaluation_episodes WHERE release = 1""",
    )
    row = asked(workspace, "SELECT * FROM evaluations WHERE release = 1")

    assert by_sql["n"] == row["n_episodes"] == row["n_episode_rows"] == evaluation["counts"]["n_episodes"]
    assert by_sql["value"] == pytest.approx(values[deciding, "candidate"], rel=1e-12)
    assert by_sql["logged"] == pytest.approx(values["on_policy", "log"], rel=1e-12)
    assert by_sql["difference"] == pytest.approx(differences["baseline"], rel=1e-12)
    assert by_sql["to_rules"] == pytest.approx(differences["version_zero"], rel=1e-12)
    assert by_sql["mean_weight"] == pytest.approx(overlap["mean_weight"], rel=1e-12)
    assert by_sql["ess"] == pytest.approx(overlap["effective_sample_size"], rel=1e-9)
    assert (by_sql["estimator"], by_sql["nights"]) == (deciding, evaluation["counts"]["n_nights"])
    assert (row["verdict"], row["reason"]) == ("passed", evaluation["decision"]["reason"])
    assert row["value"] == values[deciding, "candidate"]
    assert row["difference"] == differences["baseline"]
    assert row["effective_sample_size"] == overlap["effective_sample_size"]
    assert (row["alpha"], row["failed_checks"]) == (0.05, [])


def test_the_questions_of_the_page_about_verdicts_are_answered(first_night: Path) -> None:
    workspace = open_workspace(first_night)
    (numbers,), carriers, nights = (_rows(workspace, sql) for sql in QUESTIONS[10:])

    for name in ("value", "difference", "mean_weight", "effective_sample_size"):
        assert numbers[name] == pytest.approx(numbers[f"{name}_again"], rel=1e-9)
    assert numbers["n_episodes"] == numbers["n_episode_rows"]
    assert len(carriers) == 10
    assert [row["share"] for row in carriers] == sorted((row["share"] for row in carriers), reverse=True)
    assert sum(row["n_episodes"] for row in nights) == numbers["n_episodes"]


def _rows(workspace: Workspace, sql: str) -> list[dict[str, Any]]:
    answer = workspace.query(sql)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def test_the_views_join_with_the_lake(first_night: Path) -> None:
    found = asked(
        open_workspace(first_night),
        """SELECT count(*) AS n, max(abs(e.n_steps - l.n_steps)) AS off
        FROM evaluation_episodes e JOIN episodes l USING (episode_id)""",
    )

    assert found["n"] > 900
    assert found["off"] == 0


def test_without_an_evaluation_the_views_are_empty_and_have_their_columns(fresh: Workspace) -> None:
    assert fresh.query("SELECT count(*), count(weight) FROM evaluation_episodes").rows == ((0, 0),)
    assert fresh.query("SELECT count(*), count(value) FROM evaluations").rows == ((0, 0),)


def test_a_file_that_nobody_registered_is_no_row(workspace: Workspace) -> None:
    shutil.copytree(workspace.release_path(1), workspace.release_path(2))
    (workspace.release_path(2) / "release.json").unlink()

    assert workspace.query("SELECT DISTINCT release FROM evaluation_episodes").rows == ((1,),)


def test_a_workspace_that_was_moved_still_answers(workspace: Workspace) -> None:
    moved = workspace.root.rename(workspace.root.with_name("moved"))

    assert open_workspace(moved).query("SELECT count(*) > 900 FROM evaluation_episodes").rows == ((True,),)


def test_an_erased_episode_leaves_everything_that_the_evaluation_wrote(workspace: Workspace, run: Run) -> None:
    shown = recorded(workspace)["changes"]["episodes"][0]["episode_id"]
    before = asked(workspace, "SELECT count(*) AS n FROM evaluation_episodes")["n"]
    value = recorded(workspace)["estimates"]

    erasing.erase(workspace, episode=shown, named=None)

    left = open_workspace(workspace.root)
    assert asked(left, "SELECT count(*) AS n FROM evaluation_episodes")["n"] == before - 1
    row = asked(left, "SELECT n_episodes, n_episode_rows FROM evaluations")
    assert row == {"n_episodes": before, "n_episode_rows": before - 1}
    assert shown not in [e["episode_id"] for e in recorded(left)["changes"]["episodes"]]
    assert recorded(left)["estimates"] == value
    assert not any(shown.encode() in path.read_bytes() for path in left.release_path(1).iterdir() if path.is_file())
    assert left.registry.releases()[1].intact
    replay = run(left, "evaluate", 1, "--replay")
    assert replay.code == 1  # its snapshot was erased with the episode
    reading = readings.reading_behind(workspace, 1)  # the bytes are others now, and the ledger knows them
    assert reading is not None
    assert reading.verdict == "passed"
    assert "erased" in replay.err
