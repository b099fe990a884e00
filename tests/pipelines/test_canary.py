"""A canary from its first look to its end: what it stops, what it promotes, and what a kill does to it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from datasets.contract import contract_from_text
from datasets.durable import append_record
from datasets.erased import EPISODE, remember_erased
from datasets.privacy import PrivacyKey
from pipelines import canary as canary_module
from pipelines.canary import (
    CanaryRefusedError,
    CanaryWatch,
    abort_canary,
    evaluate_canary,
    override_advance,
)
from pipelines.canary_erasing import erase_from_evidence
from pipelines.canary_evidence import EvidenceError
from pipelines.canary_logs import StepRows
from pipelines.canary_state import Share, last_canary, read_canary, read_events, record_event
from pipelines.serving.switch import disable, enable
from pipelines.workspace import Workspace, open_workspace
from reports.history import Promotion, Rejection, read_history
from tests.pipelines.canary_world import CONTRACT, START, Server, alike, shifted, started, tiny_workspace

FAST = "min_episodes = 20\nmargin_sd = 0.5\nlate_margin = 0.05\nbreach_margin = 1.0"


def test_a_worse_candidate_is_stopped_at_once_and_nothing_is_rejected(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server = Server(workspace)
    server.episodes(started(workspace), 400, shifted(-1.5))
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.canary.ending == "stopped"
    assert look.canary.share == 0.0
    assert "return is" in look.canary.reason
    assert "worse by at least" in look.canary.reason
    assert read_canary(workspace) is None
    event = read_events(workspace)[-1]
    assert event["event"] == "ended"
    assert event["verdict"]["judgements"][0]["name"] == "return"
    assert workspace.registry.champion() == 1
    assert workspace.registry.rejections() == []
    assert evaluate_canary(workspace, server.later) is None


def test_a_better_candidate_climbs_its_plan_and_is_promoted_with_its_figures(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server, canary = Server(workspace), started(workspace)
    watch, shares = CanaryWatch(workspace), []
    for _ in range(12):
        server.episodes(canary, 200, shifted(0.5))
        look = watch.evaluate(server.later)
        assert look is not None
        canary = look.canary
        shares.append(canary.share)
        if not canary.running:
            break
        server.now = server.later  # what comes next meets the new share
    assert canary.ending == "promoted"
    assert shares[-2] == 0.5
    last = read_history(workspace.releases_path / "history.jsonl")[-1]
    assert (last.to_release, last.from_release, last.reviewer) == (2, 1, "canary 1, started by Ada")
    assert "return" in last.note
    assert "gain at least" in last.note
    assert [e["event"] for e in read_events(workspace)] == ["started", "advanced", "ended"]


@pytest.mark.parametrize(
    ("drawn", "name"),
    [
        ({"late": True}, "late decisions"),
        ({"load": 1.5}, "success"),
        ({"load": 3.0}, "breaches of hot"),
    ],
)
def test_each_measure_stops_a_candidate_that_earns_as_much(tmp_path: Path, drawn: dict[str, object], name: str) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server = Server(workspace)
    server.episodes(started(workspace), 400, lambda _rng, ours: dict(drawn) if ours else {})
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.canary.ending == "stopped"
    assert name in look.canary.reason


def test_where_the_candidate_did_not_act_nothing_is_learned_of_it(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server = Server(workspace)
    server.episodes(started(workspace), 600, lambda _rng, _ours: {"version": "0"})
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.canary.running
    assert look.verdict is not None
    assert "the candidate made 0% of the decisions in its episodes, wanted are 90%" in look.verdict.reason
    assert look.n_other > 50


def test_episodes_behind_one_that_still_runs_wait_for_it(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server, canary = Server(workspace), started(workspace)
    server.episodes(canary, 100, alike)
    server.write(
        "steps", [server.step("long", 0, server.now + timedelta(seconds=1), {"load": 1, "version": "1", "late": False})]
    )
    server.now += timedelta(seconds=2)
    server.episodes(canary, 50, alike, every_s=1.0)
    look = evaluate_canary(workspace, server.now + timedelta(seconds=30))
    assert look is not None
    assert look.verdict is not None
    assert (look.verdict.n_episodes, look.n_open, look.n_behind) == (100, 1, 50)
    ended = evaluate_canary(workspace, server.later)  # idle for longer than the timeout, it has ended
    assert ended is not None
    assert ended.verdict is not None
    assert (ended.verdict.n_episodes, ended.n_open, ended.n_behind) == (151, 0, 0)


def test_later_looks_read_on_where_the_last_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = tiny_workspace(tmp_path, "min_episodes = 1000")
    server, canary = Server(workspace), started(workspace)
    read = 0
    parsed = canary_module.CanaryWatch.evaluate.__globals__["Evidence"].read.__globals__["parsed"]

    def counting(line: bytes) -> object:
        nonlocal read
        read += 1
        return parsed(line)

    monkeypatch.setattr("pipelines.canary_evidence.parsed", counting)
    watch = CanaryWatch(workspace)
    server.episodes(canary, 100, alike)
    watch.evaluate(server.later)
    assert read == 400  # two steps and two outcomes each
    watch.evaluate(server.later)
    assert read == 400
    server.episodes(canary, 10, alike)
    look = watch.evaluate(server.later)
    assert read == 440
    again = evaluate_canary(workspace, server.later)  # another process: all was complete, so nothing is read again
    assert read == 440
    assert look is not None
    assert again is not None
    assert look.verdict == again.verdict


def test_a_half_written_line_waits_and_unreadable_ones_are_counted(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, "min_episodes = 1000")
    server, canary = Server(workspace), started(workspace)
    server.episodes(canary, 30, alike)
    path = tmp_path / "logs" / "steps" / "served-20260105-000001.jsonl"
    line = json.dumps(server.step("last", 0, server.now, {"load": 1, "version": "1", "late": False}))
    with path.open("a") as log:
        log.write(line[:-40])
    watch = CanaryWatch(workspace)
    first = watch.evaluate(server.now)
    with path.open("a") as log:
        log.write(line[-40:] + "\nno json\n{}\n")
    second = watch.evaluate(server.now)
    assert first is not None
    assert second is not None
    assert (first.n_open, first.n_unreadable) == (0, 0)
    assert (second.n_open, second.n_unreadable) == (1, 2)


@pytest.mark.parametrize("outcomes", [False, True])
def test_every_way_of_reading_sees_the_same_episodes(tmp_path: Path, outcomes: bool) -> None:
    """In one look, in many, and by a new process each time: cut off anywhere, nothing is lost and nothing twice."""
    seen = []
    for name, n_looks, fresh in (("one", 1, False), ("many", 4, False), ("processes", 4, True)):
        workspace = tiny_workspace(tmp_path / name, "min_episodes = 1000", outcomes=outcomes)
        server, canary = Server(workspace, seed=3), started(workspace)
        watch = CanaryWatch(workspace)
        for _ in range(n_looks):
            server.episodes(canary, 200 // n_looks, shifted(0.3), every_s=20.0)
            look = (CanaryWatch(workspace) if fresh else watch).evaluate(server.now + timedelta(seconds=6))
        look = (CanaryWatch(workspace) if fresh else watch).evaluate(server.later)
        assert look is not None
        lines = (workspace.root / "serving" / "canary_evidence" / "1.jsonl").read_text().splitlines()
        seen.append({json.loads(line)["episode_id"]: line for line in lines})
        assert len(lines) == 200
        assert look.verdict is not None
        assert look.verdict.n_episodes == 200
    assert seen[0] == seen[1] == seen[2]


def test_evidence_that_a_kill_made_one_read_twice_counts_once(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, "min_episodes = 1000")
    server, canary = Server(workspace), started(workspace)
    server.episodes(canary, 50, alike)
    evaluate_canary(workspace, server.later)
    kept = tmp_path / "serving" / "canary_evidence"
    place = (kept / "1.json").read_text()
    server.episodes(canary, 50, alike)
    evaluate_canary(workspace, server.later)
    (kept / "1.json").write_text(place)  # killed after the episodes were appended, before the place moved on
    with (kept / "1.jsonl").open("a") as file:
        file.write('{"episode_id": "torn')
    look = evaluate_canary(workspace, server.later)
    server.episodes(canary, 1, alike)
    after = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.verdict is not None
    assert look.verdict.n_episodes == 100
    assert after is not None
    assert after.verdict is not None
    assert after.verdict.n_episodes == 101


@pytest.mark.parametrize("key", [None, PrivacyKey(b"k" * 32)])
def test_an_erased_episode_is_named_no_more_and_still_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: PrivacyKey | None
) -> None:
    workspace = tiny_workspace(tmp_path, "min_episodes = 1000")
    if key is not None:
        monkeypatch.setenv("OFFLINE_DQN_PRIVACY_KEY", "k" * 32)
        contract = tmp_path / "contract.toml"
        contract.write_text(contract.read_text() + '\n[privacy]\nhash = ["episode_id"]\n')
        workspace = open_workspace(tmp_path)
    server, canary = Server(workspace), started(workspace)
    watch = CanaryWatch(workspace)
    server.episodes(canary, 20, alike)
    watch.evaluate(server.later)
    kept = tmp_path / "serving" / "canary_evidence"
    erased = "e-7" if key is None else key.hash("e-7")

    remember_erased(tmp_path / "lake", {EPISODE: [erased]}, at=server.now)
    erase_from_evidence(workspace, {erased}, key)
    # As a kill may leave it: the log, which still names it, is read again.
    (kept / "1.json").write_text('{"resume": {}, "older": {}}')
    server.episodes(canary, 1, alike)
    look = watch.evaluate(server.later)

    names = [json.loads(line)["episode_id"] for line in (kept / "1.jsonl").read_text().splitlines()]
    assert look is not None
    assert look.verdict is not None
    assert look.verdict.n_episodes == len(names) == 21
    assert "e-7" not in names
    assert "e-8" in names


def test_evidence_that_cannot_be_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server, canary = Server(workspace), started(workspace)
    server.episodes(canary, 50, alike)
    evaluate_canary(workspace, server.later)
    kept = tmp_path / "serving" / "canary_evidence"
    (kept / "1.json").write_text("{")
    with pytest.raises(EvidenceError, match="Delete both"):
        evaluate_canary(workspace, server.later)
    for path in kept.iterdir():
        path.unlink()
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.verdict is not None
    assert look.verdict.n_episodes == 50


def test_episodes_that_began_before_the_canary_are_none_of_its_evidence(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, "min_episodes = 1000")
    server, canary = Server(workspace), started(workspace)
    usual = {"load": 1, "version": "1", "late": False}
    server.write("steps", [server.step("old", k, START + timedelta(minutes=m), usual) for k, m in ((0, -5), (1, 1))])
    server.episodes(canary, 10, alike)
    evaluate_canary(workspace, server.now)
    server.write("steps", [server.step("old", 2, START + timedelta(minutes=6), usual)])  # seen by a new process
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.verdict is not None
    assert look.verdict.n_episodes == 10


def test_another_champion_ends_the_canary(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    started(workspace)
    history = workspace.releases_path / "history.jsonl"
    append_record(history, Promotion(START + timedelta(hours=1), "rollback", 1, 0, "Grace", "pager").to_json())
    look = evaluate_canary(workspace, START + timedelta(hours=2))
    assert look is not None
    assert look.canary.ending == "overtaken"
    assert "release 0 became champion on 2026-01-05 01:00 UTC (rollback, by Grace)" in look.canary.reason


def test_no_step_is_taken_while_exclusions_cannot_be_read_but_harm_still_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_self: object) -> None:
        raise OSError("the store does not answer")

    monkeypatch.setattr(Workspace, "open_lake", away)
    endings = []
    for name, gain in (("better", 0.5), ("worse", -1.5)):
        workspace = tiny_workspace(tmp_path / name, FAST)
        canary, server = started(workspace), Server(workspace)
        (workspace.release_path(2) / "training.json").write_text('{"snapshot": "s"}')  # it was trained here
        server.episodes(canary, 400, shifted(gain))
        look = evaluate_canary(workspace, server.later)
        assert look is not None
        assert look.verdict is not None
        endings.append((look.canary.ending, look.canary.share, "the store does not answer" in look.verdict.reason))
    assert endings == [(None, 0.2, True), ("stopped", 0.0, False)]


def test_changed_bytes_changed_rules_and_a_rejection_end_it(tmp_path: Path) -> None:
    bytes_, rules, rejected = (tiny_workspace(tmp_path / name, FAST) for name in ("bytes", "rules", "rejected"))
    for workspace in (bytes_, rules, rejected):
        started(workspace)
    manifest = bytes_.release_path(2) / "release.json"
    manifest.write_text(manifest.read_text().replace("passed", "refused"))
    contract = rules.root / "contract.toml"
    contract.write_text(contract.read_text().replace("limit = 0.1", "limit = 0.2"))
    append_record(rejected.releases_path / "rejections.jsonl", Rejection(START, 2, "Grace", "too thirsty").to_json())
    found = []
    for workspace in (bytes_, rules, rejected):
        look = evaluate_canary(type(workspace)(workspace.root), START + timedelta(hours=1))
        assert look is not None
        found.append((look.canary.ending, look.canary.reason))
    assert found[0] == ("overtaken", "release 2 is not what it was at the start: release.json is missing or altered")
    assert found[1][0] == "overtaken"
    assert "success, constraints or discounting has changed" in found[1][1]
    assert found[2] == ("aborted", "rejected by Grace: too thirsty")


def test_rules_that_change_under_a_watch_that_goes_on_end_it(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    started(workspace)
    watch = CanaryWatch(workspace)  # as a server has it, which opened the contract when it started
    look = watch.evaluate(START + timedelta(hours=1))
    assert look is not None
    assert look.canary.running
    contract = workspace.root / "contract.toml"
    contract.write_text(contract.read_text().replace("limit = 0.1", "limit = 0.01"))
    look = watch.evaluate(START + timedelta(hours=1, minutes=1))
    assert look is not None
    assert look.canary.ending == "overtaken"
    assert "success, constraints or discounting has changed" in look.canary.reason


def test_a_watch_that_opened_another_contract_judges_nothing(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    watch = CanaryWatch(workspace)
    assert workspace.contract.constraints["hot"].limit == 0.1  # opened, as by a server that starts
    contract = workspace.root / "contract.toml"
    contract.write_text(contract.read_text().replace("limit = 0.1", "limit = 0.01"))
    started(type(workspace)(workspace.root))  # by a shell, under the contract of today
    look = watch.evaluate(START + timedelta(hours=1))
    assert look is not None
    assert look.canary.ending == "overtaken"
    assert "restart the server" in look.canary.reason


def test_nothing_is_promoted_while_the_kill_switch_is_thrown_but_harm_still_ends_it(tmp_path: Path) -> None:
    better, worse = (tiny_workspace(tmp_path / name, FAST) for name in ("better", "worse"))
    looks = []
    for workspace, by in ((better, 0.5), (worse, -1.5)):
        server = Server(workspace)
        server.episodes(started(workspace, plan=(0.5, 1.0), share=0.5), 600, shifted(by))
        disable(workspace.serving_path, by="Grace", note="pager")
        looks.append(evaluate_canary(workspace, server.later))
    held, ended = looks
    assert held is not None
    assert held.canary.running
    assert held.verdict is not None
    assert held.verdict.action == "wait"
    assert "the kill switch was thrown by Grace (pager)" in held.verdict.reason
    assert better.registry.champion() == 1
    assert ended is not None
    assert ended.canary.ending == "stopped"
    enable(better.serving_path, by="Grace", note="")
    look = evaluate_canary(better, server.later)
    assert look is not None
    assert look.canary.ending == "promoted"


@pytest.mark.parametrize("ending", ["stopped", "expired", "aborted"])
def test_a_second_canary_of_a_release_wants_a_reason(tmp_path: Path, ending: str) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    canary = started(workspace)
    canary_module._refuse_another_try(workspace, 2, None)  # it runs still
    ended = canary.model_copy(update={"ended_at": START, "ending": ending, "reason": "as it was"})
    record_event(workspace, "ended", ended, START)
    with pytest.raises(CanaryRefusedError, match=r"Canary 1 of release 2 .*: as it was\. Tried often enough"):
        canary_module._refuse_another_try(workspace, 2, None)
    canary_module._refuse_another_try(workspace, 2, "its plan was mistyped")


def test_a_success_with_damaged_bytes_promotes_nothing(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server = Server(workspace)
    canary = started(workspace, plan=(0.5, 1.0), share=0.5)
    server.episodes(canary, 600, shifted(0.5))
    (workspace.release_path(2) / "policy.json").write_text("{}")
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.canary.ending == "overtaken"
    assert "policy.json is altered" in look.canary.reason
    assert workspace.registry.champion() == 1


def test_a_kill_between_promotion_and_its_line_ends_as_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server = Server(workspace)
    server.episodes(started(workspace, plan=(0.5, 1.0), share=0.5), 600, shifted(0.5))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.canary.record_event", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_canary(workspace, server.later)
    assert workspace.registry.champion() == 2
    assert read_canary(workspace) is not None
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.canary.ending == "promoted"
    assert len(workspace.registry.history()) == 2


def test_a_plan_that_ends_below_one_asks_a_reviewer(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server = Server(workspace)
    server.episodes(started(workspace, plan=(0.5,), share=0.5), 600, shifted(0.5))
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.canary.ending == "succeeded"
    assert "a reviewer may promote release 2" in look.did
    assert workspace.registry.champion() == 1


def test_undecided_for_too_long_the_champion_acts_alone(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, 'longest = "1h"\nmin_episodes = 5000')
    server = Server(workspace)
    server.episodes(started(workspace), 50, alike)
    look = evaluate_canary(workspace, START + timedelta(hours=2))
    assert look is not None
    assert (look.canary.ending, look.canary.share) == ("expired", 0.0)
    assert "undecided for 1h" in look.canary.reason


def test_people_abort_and_take_steps_with_their_names_but_never_promote(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    started(workspace)
    at = START + timedelta(hours=1)
    with pytest.raises(CanaryRefusedError, match="Who takes the step"):
        override_advance(workspace, reviewer="Grace", reason=" ", as_of=at)
    assert override_advance(workspace, reviewer="Grace", reason="quiet day", as_of=at).share == 0.5
    assert read_events(workspace)[-1]["override"] == {"reviewer": "Grace", "reason": "quiet day"}
    with pytest.raises(CanaryRefusedError, match="offline-dqn promote 2 --reviewer NAME"):
        override_advance(workspace, reviewer="Grace", reason="more", as_of=at)
    ended = abort_canary(workspace, reviewer="Grace", reason="enough", as_of=at)
    assert (ended.ending, ended.reason) == ("aborted", "by Grace: enough")
    with pytest.raises(CanaryRefusedError, match="No canary runs"):
        abort_canary(workspace, reviewer="Grace", reason="", as_of=at)


def test_a_switchback_compares_whole_blocks_without_their_burn_in(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, "min_blocks = 10")
    server = Server(workspace)
    canary = started(
        workspace, kind="switchback", block_s=600.0, burn_in_s=120.0, plan=(0.5, 1.0), share=0.5,
        shares=(Share(at=START, share=0.5),),
    )  # fmt: skip
    # A minute apart, the second step lies 5 s later: 10 in each block, 2 of them in the burn-in.
    server.episodes(canary, 400, shifted(-2.0), every_s=60.0)
    look = evaluate_canary(workspace, server.later)
    assert look is not None
    assert look.verdict is not None
    assert look.canary.ending == "stopped"
    assert look.verdict.n_candidate + look.verdict.n_champion in (40, 41)
    assert look.verdict.n_episodes == 320
    assert look.n_crossing == 0


def test_two_at_once_look_one_after_the_other(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path, FAST)
    server = Server(workspace)
    server.episodes(started(workspace), 600, shifted(-1.5))
    code = (
        "import sys; from datetime import datetime; from pathlib import Path;"
        "from pipelines.canary import evaluate_canary; from pipelines.workspace import Workspace, open_workspace;"
        "evaluate_canary(open_workspace(Path(sys.argv[1])), datetime.fromisoformat(sys.argv[2]));"
        "heavy = {'torch', 'mlflow', 'prefect', 'scipy', 'sklearn', 'great_expectations'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), server.later.isoformat()], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [one.communicate()[1].decode() for one in both]
    assert [one.returncode for one in both] == [0, 0], errors
    assert [event["event"] for event in read_events(workspace)] == ["started", "ended"]
    ended = last_canary(workspace)
    assert ended is not None
    assert ended.ending == "stopped"


def test_rows_are_read_under_the_names_and_times_of_the_contract() -> None:
    text = CONTRACT.replace('names = ["wait", "act"]\nsafe = "wait"', "bins = [0.0, 1.0, 3.0]")
    contract = contract_from_text(
        f'{text}\n[time]\nformat = "epoch_s"\n[columns]\nepisode_id = "session.id"\n"observation.load" = "cpu"', "here"
    )
    line = {"session": {"id": 7}, "timestamp": 100.5, "action": 2.0, "cpu": 0.3, "step": 4, "decided_by": "late"}
    row = StepRows(contract).read(line)
    assert row is not None
    assert (row["episode_id"], row["at"], row["step"], row["observation"]) == ("7", 100.5, 4, {"load": 0.3})
    assert row["action"] == contract.actions.names[1]
    assert StepRows(contract).read({**line, "action": 17.0}) is None
    assert StepRows(contract).read({**line, "timestamp": "soon"}) is None
