"""A poisoned or gamed night, from its log files to what the night, the command and the view say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.freezing import read_episodes
from datasets.snapshot import open_snapshot
from drift.records import DriftReport, JointDrift, SlowDrift
from pipelines import stages
from pipelines.drift_guard import _not_asked
from pipelines.drift_windows import drift_of_champion
from pipelines.flow import nightly
from pipelines.night_record import warnings_of_drift
from pipelines.readings import snapshot_of
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run, edit
from tests.reports.drift_samples import drift_report

Row = dict[str, Any]


def rewrite(log: Path, change: Callable[[Row], Row]) -> None:
    rows = [change(json.loads(line)) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))


def split_by_host(log: Path, change: Callable[[Row, int], Row], n_hosts: int = 10) -> None:
    """A night's log as ten hosts would have written it, a file each."""
    by_host: dict[int, list[str]] = {host: [] for host in range(n_hosts)}
    for line in log.read_text().splitlines():
        row = json.loads(line)
        host = int(row["episode_id"][-5:]) % n_hosts
        by_host[host].append(json.dumps(change(row, host)) + "\n")
    for host, lines in by_host.items():
        log.with_name(f"host{'abcdefghij'[host]}-{log.stem}.jsonl").write_text("".join(lines))
    log.unlink()


def in_zone(row: Row, zone: str) -> Row:
    return {**row, "observation": {**row["observation"], "zone": zone}}


@pytest.mark.usefixtures("prefect_server")
def test_one_poisoned_host_of_ten_waits_for_a_person(workspace: Workspace, run: Run) -> None:
    log = stages.simulate(workspace).path
    split_by_host(log, lambda row, host: in_zone(row, "nowhere") if host == 3 else row)

    record = nightly(str(workspace.root))
    shown = run(workspace, "drift")

    assert (record["drift"], record["decision"], record["release"]) == ("drifted", "suspicious", None)
    said = "the shift of observation.zone"
    assert str(record["reason"]).startswith(f"Wait for a person: {said}")
    assert " is confined to the source logs/steps/hostd-night-" in str(record["reason"])
    assert "(10.0%)" in str(record["reason"])
    assert any(f"suspicious: {said}" in warning for warning in record["warnings"])  # type: ignore[attr-defined]
    assert "hostd-night-" in shown.out
    assert said in " ".join(shown.out.split())
    listed = workspace.query("SELECT column_name, suspicion FROM drift_history WHERE suspicion IS NOT NULL").rows
    # What follows is of the same source: the sentence names both columns, and so does the history.
    assert {name for name, _ in listed} == {"observation.zone", "next.zone.residual"}

    after_looking = stages.measure(workspace, forced=True).decision
    assert (after_looking.retrain, after_looking.cause) == (True, "drift")
    settings = workspace.root / "offline_dqn.toml"
    edit(settings, "[train]", '[drift]\non_suspicion = "retrain"\n\n[train]')
    goes_on = stages.measure(Workspace(workspace.root)).decision
    assert (goes_on.retrain, goes_on.cause) == (True, "drift")
    assert f"although it looks suspicious: {said}" in goes_on.sentence


def test_a_zone_that_opens_on_every_host_is_no_poison_of_one(workspace: Workspace) -> None:
    log = stages.simulate(workspace).path
    split_by_host(log, lambda row, _: in_zone(row, "new") if row["observation"]["zone"] == "c" else row)
    stages.ingest(workspace)

    found = stages.measure(workspace)

    assert found.report is not None
    assert found.report.suspicions == ()
    assert (found.decision.retrain, found.decision.cause) == (True, "drift")


def test_a_reward_that_rises_while_the_objective_is_missed_is_suspicious(workspace: Workspace) -> None:
    def gamed(row: Row) -> Row:
        slower = {**row["observation"], "p95_ms": min(2000.0, 1.6 * row["observation"]["p95_ms"])}
        return {**row, "observation": slower, "reward": min(0.0, row["reward"] + 1.0)}

    rewrite(stages.simulate(workspace).path, gamed)
    stages.ingest(workspace)

    found = stages.measure(workspace)

    assert found.report is not None
    by_outcome = {one.where[0]: one for one in found.report.suspicions if one.kind == "reward against outcome"}
    assert "the success rate" in by_outcome
    assert "the mean reward of a step rose from -" in by_outcome["the success rate"].sentence
    assert (found.decision.retrain, found.decision.cause) == (False, "suspicious")
    assert "while the success rate fell from " in found.decision.sentence


def gamed_after(n_own: int, workspace: Workspace) -> DriftReport:
    """A check of a night in which the reward rose and the success fell, after own nights; the reference's log knows no
    probabilities."""
    stages.simulate(workspace, n_episodes=200)
    stages.ingest(workspace)
    trained_on, summary = open_snapshot(snapshot_of(workspace, 1))
    lake, frozen_at = workspace.open_lake(), datetime.fromisoformat(summary.as_of)
    since = read_episodes(lake, workspace.config.snapshot, as_of=workspace.as_of(lake), started_after=frozen_at)
    assert since is not None
    nights = since.nights.min() + np.arange(since.n_episodes) * (n_own + 1) // since.n_episodes
    is_live = (nights == nights.max())[since.episode_of_step]
    seen_live = np.zeros(len(since.observations.columns["p95_ms"]), dtype=bool)
    seen_live[: since.n_steps] = is_live
    seen_live[since.next_row[is_live & (since.next_row >= 0)]] = True  # final observations stand behind the steps
    slower = np.where(seen_live, 10.0, 1.0) * since.observations.columns["p95_ms"]
    columns = {**since.observations.columns, "p95_ms": slower}
    observations = replace(since.observations, columns=columns)
    rewards = since.rewards + 5.0 * is_live
    since = replace(since, nights=nights, rewards=rewards, observations=observations)
    trained_on = replace(trained_on, behavior_prob=np.full(trained_on.n_steps, np.nan))
    live = since.subset(nights == nights.max())
    return drift_of_champion(workspace, 1, trained_on, since, live, frozen_at)


def test_reward_and_outcomes_can_be_held_against_the_champions_own_nights(workspace: Workspace) -> None:
    edit(workspace.root / "offline_dqn.toml", "[gate]\n", "[drift]\nmin_nights = 4\n[gate]\n")
    report = gamed_after(4, Workspace(workspace.root))
    assert report.not_looked_for == ""
    assert "the success rate" in {one.where[0] for one in report.suspicions if one.kind == "reward against outcome"}


def test_a_reward_that_nothing_is_known_of_is_said_to_be_not_looked_for(workspace: Workspace) -> None:
    report = gamed_after(0, workspace)
    assert "reward against outcome" not in {one.kind for one in report.suspicions}
    assert "whether the reward rose while an outcome fell was not looked for" in report.not_looked_for
    assert "episodes are worth 0.0, and it takes 30" in report.not_looked_for
    outcome = stages.DriftOutcome(report, stages.measure(workspace).decision, None)
    assert report.not_looked_for in warnings_of_drift(outcome)


def test_slow_and_joint_drift_that_the_guard_does_not_ask_are_said_to_be_so() -> None:
    slow = SlowDrift(name="cpu", since="2026-03-01", n_nights=7, psi=0.1, threshold=0.05, p_value=0.001)
    joint = JointDrift(method="mmd", status="drifted", reason="")
    calm = drift_report(columns=(), joint=(), slow=())
    assert _not_asked(calm) == ""
    assert _not_asked(replace(calm, slow=(slow,), joint=(joint,))) == (
        "whether few sources or episodes bring the slow drift of cpu and what all columns together show was not looked "
        "for: only columns that drifted in the live window are asked for that"
    )
