"""Promises of promoted releases by command and in the decision to retrain, on the small autoscaler workspace."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from datasets.snapshot import open_snapshot
from pipelines import stages
from pipelines.acting import load_release
from pipelines.training import newest_snapshot, written_by
from pipelines.workspace import Workspace
from reports.records import Evaluation, Interval, evaluation_from_json
from tests.pipelines.conftest import Run, edit


def promise_instead(workspace: Workspace, low: float, high: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the recorded evaluation of release 1 promise another value."""
    text = (workspace.release_path(1) / "evaluation.json").read_text()
    evaluation: Evaluation = evaluation_from_json(json.loads(text))
    changed = tuple(
        replace(e, value=(low + high) / 2, interval=Interval(low, high, 0.95, "made up"))
        if (e.estimator, e.policy) == (evaluation.deciding_estimator, "candidate")
        else e
        for e in evaluation.estimates
    )
    monkeypatch.setattr(stages, "recorded_evaluation", lambda *_: replace(evaluation, estimates=changed))


@pytest.fixture(scope="module")
def second_night(first_night, tmp_path_factory):  # type: ignore[no-untyped-def]  # a path of a session's fixture
    """The workspace after a night in which release 1 acted."""
    from pipelines.workspace import open_workspace

    root = tmp_path_factory.mktemp("second") / "workspace"
    shutil.copytree(first_night, root)
    opened = open_workspace(root)
    stages.simulate(opened)
    stages.ingest(opened)
    return opened


def test_before_it_acted_a_release_is_too_early_to_tell(run: Run, workspace: Workspace) -> None:
    shown = run(workspace, "promises", "--json").json

    (promise,) = shown["promises"]
    assert (promise["release"], promise["verdict"]) == (1, "too early to tell")
    assert promise["cause"] == "it has written no episode that is over"
    assert shown["counts"] == {"kept": 0, "broken": 0, "too early to tell": 1, "cannot be judged": 0}


def test_without_a_promotion_there_is_no_promise(run: Run, fresh: Workspace) -> None:
    assert "no trained release was promoted yet" in run(fresh, "promises").out


def test_a_night_of_its_own_is_set_beside_the_promise(run: Run, second_night: Workspace) -> None:
    (promise,) = run(second_night, "promises", "--json").json["promises"]
    (log,) = second_night.query(
        f"""SELECT count(*), avg(earned) FROM (
            SELECT sum(reward * {second_night.contract.gamma} ** (step - first)) AS earned FROM (
                SELECT *, min(step) OVER (PARTITION BY episode_id) AS first FROM steps WHERE policy_version = '1'
            ) JOIN episodes USING (episode_id) WHERE complete AND damage IS NULL GROUP BY episode_id)"""
    ).rows

    # Two Q-values that are equal to the last bit of a float32 share the choice in one batch and not in another: such an
    # episode's probability is not the release's own, and it is not believed.
    assert log[0] - 2 <= promise["n_episodes"] <= log[0]
    assert promise["earned"] == pytest.approx(log[1], rel=1e-3), "every episode is a cluster of its own"
    assert promise["earned_low"] < promise["earned"] < promise["earned_high"]


def test_a_log_that_only_calls_itself_a_releases_own_is_not_believed(workspace: Workspace) -> None:
    replay, _ = open_snapshot(newest_snapshot(workspace))  # written by the rules
    named = np.full(replay.n_episodes, "1", dtype=object)
    forged = replace(replay, policy_versions=named, behavior_prob=np.full(replay.n_steps, 0.123))

    assert written_by(load_release(workspace, 0, workspace.contract), 0, replay).any()
    assert not written_by(load_release(workspace, 1, workspace.contract), 1, forged).any()


def test_the_drift_table_shows_the_threshold_from_which_a_column_drifts(run: Run, second_night: Workspace) -> None:
    edit(second_night.root / "offline_dqn.toml", "[gate]\n", "[drift]\nmin_psi = 0.7531\n[gate]\n")
    report = run(second_night, "drift", "--json").json["report"]
    shown = run(second_night, "drift").out
    edit(second_night.root / "offline_dqn.toml", "[drift]\nmin_psi = 0.7531\n[gate]\n", "[gate]\n")

    judged = [c for c in report["columns"] if c["threshold"] is not None]
    assert judged
    assert max(c["threshold"] for c in judged) < 0.7531, "chance alone exceeds less than what matters"
    assert shown.count("0.7531") == min(len(judged), 20)  # the rest is told in a line


def test_a_broken_promise_is_a_reason_to_retrain(
    run: Run, second_night: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise_instead(second_night, 0.0, 0.1, monkeypatch)  # returns are costs: nothing earns 0
    decision = stages.measure(second_night).decision

    assert decision.retrain
    assert any("release 1 broke its promise" in reason for reason in decision.reasons)
    assert "1 broken" in run(second_night, "promises").out


def test_a_kept_promise_is_none(run: Run, second_night: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    promise_instead(second_night, -1e6, 0.0, monkeypatch)

    assert not any("promise" in reason for reason in stages.measure(second_night).decision.reasons)
    assert "1 kept" in run(second_night, "promises").out


def test_a_lost_snapshot_leaves_nothing_to_judge(run: Run, workspace: Workspace) -> None:
    shutil.rmtree(workspace.snapshots_path)
    (promise,) = run(workspace, "promises", "--json").json["promises"]

    assert promise["verdict"] == "cannot be judged"
    assert promise["cause"].startswith("what it was judged on is gone")
