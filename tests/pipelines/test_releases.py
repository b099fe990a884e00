"""Promotion and rollback from a shell."""

from __future__ import annotations

from pipelines import stages
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run


def test_nothing_is_promoted_that_is_unknown_or_nameless(workspace: Workspace, run: Run) -> None:
    unknown = run(workspace, "promote", 7, "--reviewer", "Ada", "--json")
    nameless = run(workspace, "promote", 0, "--reviewer", " ")
    again = run(workspace, "promote", 1, "--reviewer", "Ada")

    assert (unknown.code, unknown.out) == (1, "")
    assert "There is no release 7; there are: 0, 1." in unknown.err
    assert (nameless.code, "Who answers for release 0? Name a reviewer" in nameless.err) == (1, True)
    assert (again.code, "Release 1 is the champion already; nothing was changed." in again.err) == (1, True)
    assert workspace.registry.champion() == 1


def test_rollback_goes_to_the_rules_and_there_and_back(workspace: Workspace, run: Run) -> None:
    to_rules = run(workspace, "rollback", "--reviewer", "Ada", "--note", "pager", "--json")
    nothing_left = run(workspace, "rollback", "--reviewer", "Ada")
    back = run(workspace, "promote", 1, "--reviewer", "Ada", "--json")
    named = run(workspace, "rollback", "--to", 0, "--reviewer", "Ada", "--json")
    never = run(workspace, "rollback", "--to", 5, "--reviewer", "Ada")
    forward = run(workspace, "rollback", "--to", 1, "--reviewer", "Ada")

    found = {key: to_rules.json[key] for key in ("action", "from", "to", "reviewer", "note")}
    assert found == {"action": "rollback", "from": 1, "to": 0, "reviewer": "Ada", "note": "pager"}
    assert nothing_left.code == 1
    assert "There is nothing to roll back to" in nothing_left.err
    assert (back.json["from"], back.json["to"]) == (0, 1)
    assert (named.json["from"], named.json["to"]) == (1, 0)
    assert never.code == 1
    assert "There is no release 5. There is nothing to roll back to." in never.err
    assert forward.code == 1
    assert "Release 1 was rolled back from on " in forward.err
    assert "`offline-dqn promote 1` has it act again" in " ".join(forward.err.split())
    assert stages.measure(workspace).decision.cause == "no champion"  # the rules are no trained policy


def test_the_catalog_knows_the_champion_at_once(workspace: Workspace, run: Run) -> None:
    sql = "SELECT release FROM releases WHERE is_champion"
    assert run(workspace, "query", sql, "--json").json["rows"] == [{"release": 1}]

    run(workspace, "rollback")

    assert run(workspace, "query", sql, "--json").json["rows"] == [{"release": 0}]


def test_bytes_that_changed_are_neither_promoted_nor_evaluated(workspace: Workspace, run: Run) -> None:
    assert run(workspace, "rollback").code == 0
    report = workspace.release_path(1) / "report.html"
    report.write_text(report.read_text() + " ")

    promoted = run(workspace, "promote", 1, "--reviewer", "Ada", "--json")
    evaluated = run(workspace, "evaluate", 1)
    listed = run(workspace, "releases", "--json").json["releases"]

    assert (promoted.code, promoted.out, evaluated.code) == (1, "", 1)
    assert "Release 1 is not what was registered: report.html is altered" in promoted.err
    assert "Restore the files from a backup, or use another release; nothing was changed." in promoted.err
    assert [entry["damage"] for entry in listed] == ["", "report.html is altered"]
    assert workspace.registry.champion() == 0


def test_a_damaged_champion_is_told_before_anything_is_trained(workspace: Workspace, run: Run) -> None:
    (workspace.release_path(1) / "policy.safetensors").unlink()

    refused = run(workspace, "train", "--json")

    assert (refused.code, refused.out) == (1, "")
    assert "Release 1 is not what was registered: policy.safetensors is missing" in refused.err
    assert not list((workspace.root / "checkpoints").glob("*"))


def test_a_damaged_release_is_trained_anew(workspace: Workspace, run: Run) -> None:
    assert run(workspace, "rollback").code == 0
    (workspace.release_path(1) / "policy.safetensors").unlink()

    trained = run(workspace, "train", "--json").json

    assert (trained["release"], trained["repeated"]) == (2, False)


def test_a_registry_that_cannot_be_read_is_a_message(workspace: Workspace, run: Run) -> None:
    (workspace.root / "mlflow.db").write_text("no database")

    answer = run(workspace, "releases", "--json")

    assert (answer.code, answer.out) == (1, "")
    assert "mlflow.db cannot be used: file is not a database." in answer.err
    assert "Restore it from a backup" in answer.err
