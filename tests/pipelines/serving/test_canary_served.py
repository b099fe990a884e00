"""A canary on a real server: whose episodes are whose, and how it ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.canary import _rules_digest
from pipelines.canary_state import Canary, Share, read_events, record_event
from pipelines.serving.acting_releases import ActingReleases
from pipelines.serving.canary_looks import CanaryLooks
from pipelines.serving.switch import Disabled
from pipelines.workspace import Workspace
from reports.manifest import read_manifest
from tests.pipelines.serving.running import OBSERVATION, eventually, logged, make_champion, served_workspace, serving


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = served_workspace(tmp_path / "workspace")
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(settings.read_text() + '\n[canary]\ninterval = "1s"\n')
    return workspace


def start(workspace: Workspace, share: float = 0.5, rules: str = "") -> Canary:
    """A canary of release 2, as `offline-dqn canary start` records it."""
    manifest = read_manifest(workspace.release_path(2))
    assert manifest is not None
    now = datetime.now(UTC)
    canary = Canary(
        id=1,
        release=2,
        champion=1,
        kind="slices",
        salt="salt",
        plan=(share, 1.0),
        shares=(Share(at=now, share=share),),
        started_at=now,
        started_by="Ada",
        digest=manifest.digest,
        rules=rules,
        certified_share=1.0,
    )
    record_event(workspace, "started", canary, now)
    return canary


def test_where_there_is_no_version_zero_the_kill_switch_ends_the_traffic_of_a_canary(workspace: Workspace) -> None:
    acting = ActingReleases(workspace).current
    canary = start(workspace, share=1.0)
    now = replace(acting, version_zero=None, canary=canary, candidate=acting.champion)
    champion = replace(acting.champion, number=7)
    now = replace(now, champion=champion)
    at = datetime.now(UTC)
    disabled = replace(now, disabled=Disabled(at, "Ada", ""))

    assert now.in_charge("e", at).number == 1
    assert disabled.in_charge("e", at).number == 7


def test_episodes_are_assigned_and_stay_so_until_it_ends(workspace: Workspace) -> None:
    with serving(workspace) as server:
        canary = start(workspace)
        eventually(lambda: (server.ask("/v1/ready")[1]["canary"] or {}).get("acts"))
        episodes = [f"episode-{i}" for i in range(40)]
        asked = [{"episode_id": e, "step": s, "observation": OBSERVATION} for s in range(2) for e in episodes]
        _, answer = server.ask("/v1/act", {"decisions": asked})
        page = server.ask("/metrics")[1]
        # Its rules are none of the contract's: the server's own look ends it.
        eventually(lambda: server.ask("/v1/ready")[1]["canary"] is None)
        after = {server.act(f"later-{i}")["release"] for i in range(20)}

    expected = {e: 2 if canary.assigned(e, datetime.now(UTC)) else 1 for e in episodes}
    releases = [decision["release"] for decision in answer["decisions"]]
    assert releases == [expected[ask["episode_id"]] for ask in asked]
    assert 10 < releases.count(2) < 70
    assert 'offline_dqn_canary_share{release="2"} 0.5' in page
    assert after == {1}
    assert read_events(workspace)[-1]["event"] == "ended"
    by_id = {line["decision_id"]: line for line in logged(workspace)}
    for decision in answer["decisions"]:
        line = by_id[decision["decision_id"]]
        assert line["policy_version"] == str(decision["release"])
        assert line["behavior_probs"] == list(decision["probabilities"].values())


def test_a_damaged_candidate_gets_no_traffic(workspace: Workspace) -> None:
    weights = workspace.release_path(2) / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with serving(workspace) as server:
        start(workspace)
        eventually(lambda: "2" in server.ask("/v1/ready")[1]["refused"])
        assert {server.act(f"e{i}")["release"] for i in range(20)} == {1}


def test_a_canary_against_another_champion_assigns_nothing(workspace: Workspace) -> None:
    make_champion(workspace, 1)
    with serving(workspace) as server:
        start(workspace, 0.9)
        eventually(lambda: server.ask("/v1/ready")[1]["canary"])
        make_champion(workspace, 0, "rollback")
        eventually(lambda: server.ask("/v1/ready")[1]["champion"] == 0)
        assert {server.act(f"e{i}")["decided_by"] for i in range(20)} == {"baseline"}


def test_the_servers_log_tells_each_change_of_who_acts(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    acting = ActingReleases(workspace)
    no_more = "canary 1: release 2 gets no traffic of it any more; `offline-dqn canary status` says why"

    def said() -> list[str]:
        acting.look()
        acting.look()  # which finds nothing new, and says nothing
        told = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return told

    said()
    canary = start(workspace)
    assert said() == ["canary 1: release 2 gets 0.5 of the traffic"]
    ActingReleases(workspace)
    assert said() == ["canary 1: release 2 gets 0.5 of the traffic"], "a server that starts says it, too"
    acting.hold_canary(True)
    assert said() == [no_more]
    acting.hold_canary(False)
    assert said() == ["canary 1: release 2 gets 0.5 of the traffic"]
    now = datetime.now(UTC)
    wider = canary.model_copy(update={"shares": (*canary.shares, Share(at=now, share=0.8))})
    record_event(workspace, "advanced", wider, now)
    assert said() == ["canary 1: release 2 gets 0.8 of the traffic; before it was 0.5"]
    make_champion(workspace, 2)
    record_event(workspace, "ended", wider.model_copy(update={"ended_at": now, "ending": "promoted"}), now)
    assert said() == ["release 2 acts; before it was 1", no_more]


EPISODES = [f"episode-{i}" for i in range(40)]


def in_charge(acting: ActingReleases) -> set[int]:
    return {acting.current.in_charge(episode, datetime.now(UTC)).number for episode in EPISODES}


def test_a_candidate_that_nobody_can_judge_gets_no_traffic_until_somebody_can(workspace: Workspace) -> None:
    start(workspace, rules=_rules_digest(workspace))
    acting = ActingReleases(workspace)
    looks = CanaryLooks(workspace, lambda: datetime.now(UTC), acting.hold_canary)
    history = workspace.root / "serving" / "canary_history.jsonl"
    whole = history.read_text()
    history.write_text("no json\n" + whole)
    found = []
    for text in (None, None, None, whole):
        if text is not None:
            history.write_text(text)
        looks.look()
        acting.look()
        found.append((looks.n_failed, in_charge(acting)))
    assert found == [(1, {1, 2}), (2, {1, 2}), (3, {1}), (0, {1, 2})]
