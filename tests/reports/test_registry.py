"""The release registry on temporary workspaces: numbering, promotion, rollback, altered bytes, crashes, two at once."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from reports.history import Promotion, left_by, line_of_champions
from reports.manifest import file_digest
from reports.registry import JUDGED_AGAINST, Gate, Registry, RegistryError, RejectedError
from reports.shared_tracking import TrackingError
from reports.tracking import Tracking

AT = datetime(2024, 5, 1, 3, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def empty_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose database exists already: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("workspace")
    open_registry(path).releases()
    return path


@pytest.fixture
def workspace(empty_workspace: Path, tmp_path: Path) -> Path:
    return shutil.copytree(empty_workspace, tmp_path / "workspace")


def open_registry(workspace: Path) -> Registry:
    return Registry(workspace / "mlflow.db", workspace / "releases", "autoscaler")


def add_release(
    registry: Registry, gate: Gate = "passed", content: str = "{}", training: dict[str, Any] | None = None
) -> int:
    staged = registry.new_staging()
    if training is not None:
        (staged / "training.json").write_text(json.dumps(training))
    (staged / "policy.json").write_text(content)
    (staged / "contract.toml").write_text("name = 'autoscaler'")
    judged = {JUDGED_AGAINST: "none, 0, 1, 2, 3, 4, 5"} if gate in ("passed", "refused") else {}
    return registry.register(staged, gate=gate, tags={"snapshot": "abc", **judged}, at=AT)


def promotion(action: str, release: int) -> Promotion:
    return Promotion(AT, "rollback" if action == "rollback" else "promote", None, release, "Ada", "")


def test_releases_are_numbered_from_the_baseline(workspace: Path) -> None:
    registry = open_registry(workspace)
    assert [add_release(registry, gate) for gate in ("baseline", "not evaluated", "passed")] == [0, 1, 2]
    baseline, first, second = registry.releases()
    assert (baseline.gate, baseline.aliases, baseline.created_at, baseline.intact) == ("baseline", (), AT, True)
    assert (first.gate, first.aliases, dict(first.tags)) == ("not evaluated", (), {"snapshot": "abc"})
    assert (second.gate, second.aliases) == ("passed", ("candidate",))
    assert (registry.champion(), registry.candidate()) == (None, 2)


def test_first_release_without_a_baseline_is_one(workspace: Path) -> None:
    assert add_release(open_registry(workspace)) == 1


def test_second_baseline_and_empty_folder_are_refused(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry, "baseline")
    with pytest.raises(RegistryError, match="Release 0, the baseline, exists already"):
        add_release(registry, "baseline")
    with pytest.raises(RegistryError, match="is no folder with files in it"):
        registry.register(registry.new_staging(), tags={})
    assert [release.number for release in registry.releases()] == [0]


def test_registry_says_which_arguments_are_wrong(workspace: Path) -> None:
    registry = open_registry(workspace)
    staged = registry.new_staging()
    (staged / "policy.json").write_text("{}")
    with pytest.raises(ValueError, match="the tags digest, gate are the registry's own"):
        registry.register(staged, tags={"gate": "x", "digest": "y"})
    with pytest.raises(ValueError, match=r"release\.json: a file of an evaluation is named by a plain name"):
        registry.record_evaluation(1, gate="passed", files={"release.json": b""})


def test_promotion_moves_the_alias_and_is_written_down(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry, "baseline")
    add_release(registry)
    registry.promote(0, reviewer="Ada", at=AT)
    done = registry.promote(1, reviewer=" Grace ", note="looks right", at=AT)
    assert done == Promotion(AT, "promote", 0, 1, "Grace", "looks right")
    assert registry.history() == [Promotion(AT, "promote", None, 0, "Ada", ""), done]
    assert [release.aliases for release in registry.releases()] == [(), ("champion",)]
    assert (registry.champion(), registry.candidate()) == (1, None)


@pytest.mark.parametrize(
    ("number", "reviewer", "message"),
    [
        (9, "Ada", r"There is no release 9; there are: 1, 2, 3\."),
        (2, "Ada", "Release 2 cannot be promoted: its gate is 'refused'.*report.html says why"),
        (3, "Ada", "Release 3 cannot be promoted: its gate is 'not evaluated'.*offline-dqn evaluate 3"),
        (1, "  ", "Who answers for release 1"),
    ],
)
def test_promotion_is_refused_with_the_reason(workspace: Path, number: int, reviewer: str, message: str) -> None:
    registry = open_registry(workspace)
    for gate in ("passed", "refused", "not evaluated"):
        add_release(registry, gate)
    with pytest.raises(RegistryError, match=message):
        registry.promote(number, reviewer=reviewer)
    assert registry.champion() is None


def test_champion_cannot_be_promoted_again(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry)
    registry.promote(1, reviewer="Ada")
    with pytest.raises(RegistryError, match="Release 1 is the champion already"):
        registry.promote(1, reviewer="Ada")
    assert len(registry.history()) == 1


def alter_file(release: Path) -> None:
    (release / "policy.json").write_text("[]")


def remove_file(release: Path) -> None:
    (release / "policy.json").unlink()


def alter_file_and_manifest(release: Path) -> None:
    alter_file(release)
    manifest = json.loads((release / "release.json").read_text())
    manifest["files"]["policy.json"] = file_digest(release / "policy.json")
    (release / "release.json").write_text(json.dumps(manifest))


def open_the_gate_by_hand(release: Path) -> None:
    text = (release / "release.json").read_text()
    (release / "release.json").write_text(text.replace('"refused"', '"passed"'))


@pytest.mark.parametrize(
    ("alter", "gate", "message"),
    [
        (alter_file, "passed", r"policy\.json is altered"),
        (remove_file, "passed", r"policy\.json is missing"),
        (alter_file_and_manifest, "passed", r"release\.json was altered"),
        (open_the_gate_by_hand, "refused", r"release\.json was altered"),
        (shutil.rmtree, "passed", r"release\.json is missing"),
    ],
)
def test_altered_bytes_are_never_promoted(workspace: Path, alter: object, gate: Gate, message: str) -> None:
    registry = open_registry(workspace)
    add_release(registry, gate)
    assert callable(alter)
    alter(workspace / "releases" / "1")
    with pytest.raises(RegistryError, match=f"Release 1 is not what was registered: {message}"):
        registry.promote(1, reviewer="Ada")
    with pytest.raises(RegistryError, match=message):
        registry.path(1)
    assert all(not release.intact for release in registry.releases())
    assert registry.champion() is None


def test_number_of_a_deleted_release_is_not_given_again(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry)
    shutil.rmtree(workspace / "releases" / "1")
    assert add_release(registry) == 2


def test_evaluation_opens_the_gate_and_is_guarded_like_the_rest(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry, "not evaluated")
    registry.record_evaluation(1, gate="refused", files={"evaluation.json": b"{}", "report.html": b"<p>no"})
    assert registry.releases()[0].gate == "refused"
    tags = {"n": 3, "judged_against": "none"}
    registry.record_evaluation(1, gate="passed", files={"evaluation.json": b"[]", "report.html": b"<p>"}, tags=tags)
    record = registry.releases()[0]
    assert (record.gate, record.intact, record.tags["n"], record.tags["snapshot"]) == ("passed", True, "3", "abc")
    assert registry.path(1) == workspace / "releases" / "1"

    (workspace / "releases" / "1" / "report.html").write_text("<p>better")
    with pytest.raises(RegistryError, match=r"report\.html is altered"):
        registry.promote(1, reviewer="Ada")
    registry.record_evaluation(1, gate="passed", files={"evaluation.json": b"[]", "report.html": b"<p>"}, tags=tags)
    assert registry.promote(1, reviewer="Ada").to_release == 1


def test_evaluation_cannot_touch_the_policy_or_launder_it(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry, "not evaluated")
    with pytest.raises(RegistryError, match=r"Release 1 was registered with policy\.json: that cannot change"):
        registry.record_evaluation(1, gate="passed", files={"policy.json": b"[]"})
    alter_file(workspace / "releases" / "1")
    with pytest.raises(RegistryError, match=r"policy\.json is altered"):
        registry.record_evaluation(1, gate="passed", files={"evaluation.json": b"{}"})


def test_evaluation_cut_off_by_a_crash_leaves_a_valid_release(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = open_registry(workspace)
    add_release(registry, "not evaluated")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracking, "update", crash)  # the manifest is written, MLflow was not told
    with pytest.raises(KeyboardInterrupt):
        registry.record_evaluation(1, gate="passed", files={"evaluation.json": b"{}"})
    monkeypatch.undo()
    record = registry.releases()[0]
    assert (record.gate, record.intact) == ("passed", True)


def test_rollback_returns_to_the_former_champion_and_then_further(workspace: Path) -> None:
    registry = open_registry(workspace)
    for gate in ("baseline", "passed", "passed", "passed"):
        add_release(registry, gate)
    for number in (1, 2, 3):
        registry.promote(number, reviewer="Ada")
    assert [registry.rollback(reviewer="Ada").to_release for _ in range(3)] == [2, 1, 0]
    with pytest.raises(RegistryError, match="There is nothing to roll back to"):
        registry.rollback(reviewer="Ada")


def test_rollback_never_goes_forward_to_what_was_rolled_back_from(workspace: Path) -> None:
    registry = open_registry(workspace)
    for gate in ("baseline", "passed", "passed", "passed"):
        add_release(registry, gate)
    for number in (1, 2, 3):
        registry.promote(number, reviewer="Ada")
    registry.rollback(2, reviewer="Grace", note="it starves", at=AT)
    with pytest.raises(RegistryError) as refused:
        registry.rollback(3, reviewer="Ada")
    assert str(refused.value) == (
        "Release 3 was rolled back from on 2024-05-01 03:00:00 UTC by Grace (it starves). A rollback goes only back: "
        "here to 0, 1. `offline-dqn promote 3` has it act again, after its gate, rejections and error budgets were "
        "asked."
    )
    registry.reject(3, reviewer="Grace", note="it starves")
    with pytest.raises(RejectedError):
        registry.promote(3, reviewer="Ada")
    assert registry.rollback(1, reviewer="Ada").undo == "offline-dqn promote 2"
    with pytest.raises(RegistryError, match=r"Release 2 was rolled back from on .* by Ada"):
        registry.rollback(2, reviewer="Ada")
    assert registry.promote(2, reviewer="Ada").undo == "offline-dqn rollback"
    assert registry.rollback(reviewer="Ada").to_release == 1


def test_rollback_goes_only_to_former_champions(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry)
    with pytest.raises(RegistryError, match="There is nothing to roll back to"):
        registry.rollback(reviewer="Ada")
    add_release(registry)
    registry.promote(1, reviewer="Ada")
    with pytest.raises(RegistryError, match=r"There is no release 7\. There is nothing to roll back to\."):
        registry.rollback(7, reviewer="Ada")
    with pytest.raises(RegistryError, match=r"Release 2 was never champion\. There is nothing to roll back to\."):
        registry.rollback(2, reviewer="Ada")
    with pytest.raises(RegistryError, match="There is no release 0"):
        registry.rollback(0, reviewer="Ada")


def test_rollback_to_altered_bytes_is_refused(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry)
    add_release(registry)
    registry.promote(1, reviewer="Ada")
    registry.promote(2, reviewer="Ada")
    alter_file(workspace / "releases" / "1")
    with pytest.raises(RegistryError, match=r"Release 1 is not what was registered: policy\.json is altered"):
        registry.rollback(reviewer="Ada")
    assert registry.champion() == 2


def test_everything_works_after_the_workspace_moved(workspace: Path, tmp_path: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry, "baseline")
    add_release(registry)
    registry.promote(0, reviewer="Ada")
    moved = tmp_path / "elsewhere with space"
    workspace.rename(moved)
    registry = open_registry(moved)
    assert registry.promote(1, reviewer="Ada").from_release == 0
    assert registry.rollback(reviewer="Ada").to_release == 0
    assert add_release(registry, training={"config": {}, "history": [{"step": 1.0, "loss": 1.0}]}) == 2
    assert all(release.intact for release in registry.releases())
    assert not workspace.exists()


def test_release_that_mlflow_never_heard_of_is_registered_at_the_next_opening(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_registry(workspace)
    add_release(registry, "baseline")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracking, "add", crash)
    with pytest.raises(KeyboardInterrupt):
        add_release(registry)
    monkeypatch.undo()
    assert [(r.number, r.gate, r.aliases, r.intact) for r in open_registry(workspace).releases()] == [
        (0, "baseline", (), True),
        (1, "passed", ("candidate",), True),
    ]


def test_promotion_cut_off_by_a_crash_is_completed_or_did_not_happen(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_registry(workspace)
    add_release(registry)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracking, "set_alias", crash)
    with pytest.raises(KeyboardInterrupt):
        registry.promote(1, reviewer="Ada")
    monkeypatch.undo()
    assert [release.aliases for release in registry.releases()] == [("champion",)]

    add_release(registry)
    with (workspace / "releases" / "history.jsonl").open("ab") as file:
        file.write(b'{"at": "2024-05-0')
    assert registry.champion() == 1
    registry.promote(2, reviewer="Ada")
    assert [p.to_release for p in registry.history()] == [1, 2]


def test_lost_database_is_rebuilt_from_the_folders(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry, "baseline")
    add_release(registry)
    registry.promote(1, reviewer="Ada")
    moved = workspace.with_name("moved")
    workspace.rename(moved)
    (moved / "mlflow.db").unlink()
    assert [(r.number, r.aliases, r.intact) for r in open_registry(moved).releases()] == [
        (0, (), True),
        (1, ("champion",), True),
    ]


def test_two_promotions_at_once_resolve_to_one_order(workspace: Path) -> None:
    registry = open_registry(workspace)
    numbers = [add_release(registry) for _ in range(4)]
    threads = [
        threading.Thread(target=open_registry(workspace).promote, args=(n,), kwargs={"reviewer": "Ada"})
        for n in numbers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = registry.history()
    assert sorted(p.to_release for p in history) == numbers
    assert [p.from_release for p in history] == [None, *(p.to_release for p in history[:-1])]
    assert [r.number for r in registry.releases() if "champion" in r.aliases] == [history[-1].to_release]


def test_two_registrations_at_once_get_two_numbers(workspace: Path) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(add_release(open_registry(workspace)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4]


LONG_TRAINING = {
    "config": {"gamma": 0.99, "hidden": [256, 256], "long": "x" * 10_000},
    "history": [{"step": i, "dqn/td_loss": 1.0 / (i + 1), "cql 0.5/q_greedy": -float(i)} for i in range(600)],
}


def test_training_run_belongs_to_its_release(workspace: Path) -> None:
    from mlflow import MlflowClient

    registry = open_registry(workspace)
    add_release(registry, "baseline")
    add_release(registry, training=LONG_TRAINING)
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}")
    (version,) = (v for v in client.search_model_versions("name = 'autoscaler'") if v.tags["release"] == "1")
    run = client.get_run(version.tags["run_id"])
    assert run.data.tags["release"] == "1"
    assert run.data.params["gamma"] == "0.99"
    assert run.data.metrics["cql 0.5/q_greedy"] == -599.0
    assert [m.step for m in client.get_metric_history(run.info.run_id, "dqn/td_loss")] == list(range(600))
    assert all(release.intact for release in registry.releases())
    assert len(client.search_runs([run.info.experiment_id])) == 1  # once, however often the registry is opened


def test_a_release_that_two_machines_have_registered_is_told_by_its_first_version(workspace: Path) -> None:
    from mlflow import MlflowClient

    registry = open_registry(workspace)
    number = add_release(registry, training=LONG_TRAINING)
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}")
    (first,) = client.search_model_versions("name = 'autoscaler'")
    tags = {**first.tags, "digest": "0" * 64}
    del tags["run_id"]
    client.create_model_version("autoscaler", source="releases/1", tags=tags)

    tracking = Tracking(workspace / "mlflow.db", "autoscaler")
    before = tracking.digests()
    tracking.expect(number, "1" * 64)  # what is written is what is read
    assert tracking.digests() == {number: before[number] | {"1" * 64}}
    assert tracking.without_run() == []
    for _ in range(2):
        assert [release.intact for release in open_registry(workspace).releases()] == [True]
    (run,) = client.search_runs([client.get_experiment_by_name("autoscaler").experiment_id])
    assert run.info.run_id == first.tags["run_id"]  # neither deleted nor logged anew


@pytest.mark.parametrize("cut_off_by", ["log_run", "_version"])
def test_curves_that_a_crash_cut_off_are_logged_at_the_next_opening(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, cut_off_by: str
) -> None:
    from mlflow import MlflowClient

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    registry = open_registry(workspace)
    monkeypatch.setattr(Tracking, "set_alias", lambda *_: None)  # it looks for the version, too
    monkeypatch.setattr(Tracking, cut_off_by, crash)
    with pytest.raises(KeyboardInterrupt):
        add_release(registry, training={"config": {"seed": 3}, "history": [{"step": 1.0, "bc/gradient_norm": 2.0}]})
    monkeypatch.undo()
    open_registry(workspace).releases()
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("autoscaler").experiment_id])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"bc/gradient_norm": 2.0})


def test_line_of_champions_forgets_what_was_rolled_back() -> None:
    def line(*steps: tuple[str, int]) -> list[int]:
        return line_of_champions([promotion(action, release) for action, release in steps])

    assert line() == []
    assert line(("promote", 1), ("promote", 2), ("rollback", 1)) == [1]
    assert line(("promote", 1), ("promote", 2), ("promote", 1), ("promote", 3), ("rollback", 1)) == [1, 2, 1]
    assert line(("promote", 1), ("rollback", 0)) == [0]


def test_the_rollback_that_took_a_release_out_of_the_line_is_known() -> None:
    steps = [("promote", 1), ("promote", 2), ("promote", 3), ("rollback", 2), ("promote", 4), ("rollback", 1)]
    history = [promotion(action, release) for action, release in steps]
    assert left_by(3, history) is history[3]
    assert left_by(2, history) is history[5]
    assert left_by(1, history) is None
    assert left_by(9, history) is None


def test_a_fresh_registry_prints_nothing_and_leaves_nothing_beside(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from reports.registry import Registry
registry = Registry(Path("w/mlflow.db"), Path("w/releases"), "a/b: c")
staged = registry.new_staging()
(staged / "training.json").write_text('{"config": {}, "history": [{"step": 1.0, "loss": 1.0}]}')
registry.promote(registry.register(staged, gate="baseline", tags={}), reviewer="Ada")
"""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert sorted(path.name for path in (tmp_path / "w" / "releases").iterdir()) == [".lock", "0", "history.jsonl"]


def test_a_database_that_cannot_be_read_is_told_with_its_remedy_and_no_release_is_lost(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry, "baseline")
    database = workspace / "mlflow.db"
    whole = database.read_bytes()
    database.write_bytes(os.urandom(4096) + whole[4096:])

    with pytest.raises(TrackingError, match=r"used: file is not a database. Restore it from a backup") as told:
        open_registry(workspace).releases()

    assert str(database) in str(told.value)
    assert "\n" not in str(told.value)
    database.unlink()  # the other remedy that the message names
    moved = workspace.rename(workspace.with_name("another-process"))  # MLflow holds what it opened under that path
    assert [(r.number, r.intact) for r in open_registry(moved).releases()] == [(0, True)]


def test_a_database_that_another_program_holds_is_told_as_such(workspace: Path) -> None:
    holder = sqlite3.connect(workspace / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    registry = open_registry(workspace)
    with pytest.raises(TrackingError, match=r"database is locked. Another program holds it: end that"):
        registry.releases()
    holder.close()
    assert registry.releases() == []


def test_a_copied_folder_of_another_release_is_damage(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry)
    shutil.copytree(workspace / "releases" / "1", workspace / "releases" / "2")

    first, second = open_registry(workspace).releases()

    assert first.intact
    assert second.damage == "release.json is that of release 1"
