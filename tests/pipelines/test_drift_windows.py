from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from datasets.contract import Behavior
from datasets.freezing import read_episodes
from datasets.replay import Replay
from datasets.snapshot import open_snapshot
from drift.records import ColumnDrift, JointDrift
from pipelines import stages
from pipelines.drift_history import DriftCheck
from pipelines.drift_windows import (
    champion_windows,
    drift_of_champion,
    moved_columns,
    moved_nights,
    split_nights,
    with_cause,
)
from pipelines.live_nights import freshness
from pipelines.readings import snapshot_of
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import edit
from tests.reports import drift_samples as samples
from tests.reports.promotion_world import Leaning, logged


def nights_of(*versions: str, first: int = 0) -> Replay:
    """One night per version, "" for a night without episodes; two episodes each."""
    n = len(versions)
    replay = logged(np.random.default_rng(0), Leaning(0.0), n_nights=n, per_night=2, first_night=first)
    of_episode = np.repeat(np.array(versions, dtype=object), 2)
    replay.policy_versions[:] = of_episode
    return replay.subset(of_episode != "")


def moved(*days: int) -> np.ndarray:
    return np.datetime64("2026-03-01") + np.array(days, dtype=np.int64) - 1


def split(since: Replay, acting: int | None = 1, **options: Any) -> tuple[list[str], list[str]]:
    live = since.subset(since.nights == since.nights.max())
    frozen_on = options.pop("frozen_on", np.datetime64("2026-02-28"))
    own, recent = split_nights(
        since, live, acting, **{"champion": 1, "min_nights": 3, "frozen_on": frozen_on, "moved": moved(), **options}
    )
    return [str(night)[8:] for night in own], [str(night)[8:] for night in recent]


def test_first_nights_of_its_own_become_the_reference_once_there_are_enough() -> None:
    assert split(nights_of("1", "1", "1")) == ([], ["01", "02", "03"])
    assert split(nights_of("1", "1", "1", "1")) == (["01", "02", "03"], ["04"])
    assert split(nights_of("1", "1", "1", "1", "1", "1")) == (["01", "02", "03"], ["04", "05", "06"])


def test_nights_in_which_another_policy_acted_are_neither() -> None:
    assert split(nights_of("0", "0", "1", "1", "1", "1")) == (["03", "04", "05"], ["06"])
    assert split(nights_of("1", "1", "0", "1", "1")) == (["01", "02", "04"], ["05"])
    assert split(nights_of("0", "1", "1")) == ([], ["02", "03"])
    assert split(nights_of("0", "2", "2"), acting=2) == ([], ["02", "03"])  # the champion is not what acts


def test_nights_that_had_moved_are_no_reference_and_not_looked_at_again() -> None:
    nights = nights_of("1", "1", "1", "1", "1", "1")
    assert split(nights, moved=moved(2)) == (["01", "03", "04"], ["05", "06"])
    assert split(nights, moved=moved(1, 2)) == (["03", "04", "05"], ["06"])
    assert split(nights, moved=moved(1, 2, 3)) == ([], ["01", "02", "03", "04", "05", "06"])  # too few are left


def test_moved_are_nights_that_drifted_from_this_champion_or_were_held() -> None:
    def check(first: str, last: str, status: str, cause: str, champion: int = 1) -> DriftCheck:
        report = {"status": status, "joint": (), "slow": ()}
        return DriftCheck(last, "", "", champion, {"cause": cause, "retrain": False}, (first, last), report)

    checks = [
        check("2026-03-01", "2026-03-02", "drifted", "cool-down"),
        check("2026-03-03", "2026-03-03", "stable", "suspicious"),
        check("2026-03-04", "2026-03-04", "stable", "none"),
        check("2026-03-05", "2026-03-05", "drifted", "drift", champion=2),
        replace(check("2026-03-06", "2026-03-06", "drifted", "drift"), live_nights=None),
    ]
    assert moved_nights(checks, 1).tolist() == moved(1, 2, 3).tolist()
    assert moved_nights([], 1).tolist() == []


def test_night_without_an_episode_breaks_nothing() -> None:
    assert split(nights_of("1", "", "1", "", "1", "1")) == (["01", "03", "05"], ["06"])


def test_night_that_began_before_the_snapshot_is_no_night_of_its_own() -> None:
    assert split(nights_of("1", "1", "1", "1"), frozen_on=np.datetime64("2026-03-01")) == ([], ["01", "02", "03", "04"])


def test_actor_without_a_number_has_all_nights() -> None:
    assert split(nights_of("blue", "green", "green"), acting=None) == ([], ["01", "02", "03"])


def test_check_compares_what_the_champion_does_and_what_follows(workspace: Workspace) -> None:
    stages.simulate(workspace, n_episodes=300)
    stages.ingest(workspace)
    report = stages.measure(workspace).report
    assert report is not None
    roles = {column.name: column.role for column in report.columns}
    assert roles["episode.return"] == "episode"
    assert roles["propensity"] == "policy"
    assert roles["q_value"] == "policy"
    assert roles["td_error"] == "dynamics"
    assert roles["reward.residual"] == "dynamics"
    assert "reward.residual" not in {column.name for column in report.columns if column.exogenous}


def second_night(workspace: Workspace) -> tuple[Replay, Replay, datetime]:
    """The champion's snapshot, the night that it wrote since, and when the snapshot was frozen."""
    stages.simulate(workspace, n_episodes=200)
    stages.ingest(workspace)
    trained_on, summary = open_snapshot(snapshot_of(workspace, 1))
    lake = workspace.open_lake()
    frozen_at = datetime.fromisoformat(summary.as_of)
    since = read_episodes(lake, workspace.config.snapshot, as_of=workspace.as_of(lake), started_after=frozen_at)
    assert since is not None
    return trained_on, since, frozen_at


def test_reference_whose_log_knows_no_probabilities_leaves_what_no_action_moves(workspace: Workspace) -> None:
    trained_on, since, frozen_at = second_night(workspace)
    unknown = replace(trained_on, behavior_prob=np.full(trained_on.n_steps, np.nan))
    report = drift_of_champion(workspace, 1, unknown, since, since, frozen_at)
    columns = {column.name: column for column in report.columns}
    assert columns["action"].status == "not enough data"
    assert "lacks the probabilities to weight it to what acts now" in columns["action"].reason
    assert columns["reward.residual"].status == "not enough data"
    assert any(column.exogenous for column in report.columns)
    assert all(column.psi is not None for column in report.columns if column.exogenous)
    assert all(test.status == "not enough data" for test in report.joint)


def test_estimated_probabilities_weight_the_reference(workspace: Workspace) -> None:
    trained_on, since, frozen_at = second_night(workspace)
    contract = trained_on.contract.model_copy(update={"behavior": Behavior(propensity="estimated")})
    unknown = replace(trained_on, contract=contract, behavior_prob=np.full(trained_on.n_steps, np.nan))
    windows = champion_windows(workspace, 1, unknown, since, since, frozen_at)
    assert not windows.unweighable
    weights = windows.references[0].weights
    assert weights is not None
    assert weights.any()
    known = champion_windows(workspace, 1, trained_on, since, since, frozen_at).references[0].weights
    assert known is not None
    assert np.corrcoef(weights, known)[0, 1] > 0.5


def test_own_nights_are_the_reference_of_what_actions_move(workspace: Workspace) -> None:
    edit(workspace.root / "offline_dqn.toml", "[gate]\n", "[drift]\nmin_nights = 4\n[gate]\n")
    workspace = open_workspace(workspace.root)
    trained_on, since, frozen_at = second_night(workspace)
    n = since.n_episodes
    nights = since.nights.min() + np.arange(n) // 20  # ten nights of twenty episodes
    spread = replace(since, nights=nights)
    live = spread.subset(nights >= nights.max() - 1)
    windows = champion_windows(workspace, 1, trained_on, spread, live, frozen_at)
    gate, own = windows.references
    assert own.weights is None
    assert own.n_nights == 4
    assert own.nights.max() < windows.recent.nights.min()
    assert windows.recent.n_nights == 6
    assert windows.live.n_nights == 2
    assert gate.weights is not None


def test_only_where_the_weights_are_the_reason_are_they_the_cause() -> None:
    few = ColumnDrift(
        name="action", kind="categorical", exogenous=False, status="not enough data", reference_rows=9, live_rows=9,
        reason="the live window holds 12 episodes, and it takes 30",
    )  # fmt: skip
    assert with_cause(few) == few
    assert "lacks the probabilities" in with_cause(replace(few, reason="the reference holds no entry of it")).reason


def test_freshness_does_not_compare_a_gate_that_cannot_be_weighted_and_estimates_where_the_contract_does(
    workspace: Workspace,
) -> None:
    trained_on, _, _ = second_night(workspace)
    _, summary = open_snapshot(snapshot_of(workspace, 1))
    unknown = replace(trained_on, behavior_prob=np.full(trained_on.n_steps, np.nan))
    found = freshness(workspace, unknown, summary)
    assert found.status == "not enough data"
    assert "their log lacks the probabilities to weight them" in found.sentence
    contract = trained_on.contract.model_copy(update={"behavior": Behavior(propensity="estimated")})
    assert freshness(workspace, replace(unknown, contract=contract), summary).psi is not None


def test_columns_that_moved_slowly_or_together_are_weighed_too() -> None:
    calm = samples.calm_report()
    slow, last = calm.columns[0].name, calm.columns[-1].name
    moved = replace(samples.drift_report().slow[0], name=slow)
    joint = JointDrift(
        method="classifier", status="drifted", reason="", columns=((last, 0.7), (slow, 0.2), ("no", 0.1))
    )
    assert moved_columns(calm) == ()
    assert [c.name for c in moved_columns(replace(calm, slow=(moved,), joint=(joint,)))] == [slow, last]
    drifted = samples.drift_report(slow=(), joint=())
    assert moved_columns(drifted) == drifted.drifted_columns
