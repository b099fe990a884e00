"""The night as a whole: what it decides, what it records, and that it can be stopped anywhere and repeated."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from datasets.locking import LockedError, exclusive_lock
from datasets.logfiles import LogFileError
from datasets.replay import GATE
from datasets.snapshot import open_snapshot
from pipelines import stages
from pipelines.markdown import as_markdown
from pipelines.nights import NightRecord, append_night, read_nights
from pipelines.notify.telling import read_open
from pipelines.pieces import pack
from pipelines.readings import ledger_of
from pipelines.running import run_night
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, chatter, edit, finish, start_command
from tests.pipelines.test_batches import spoil

pytestmark = pytest.mark.usefixtures("prefect_server")


def newest_artifact(key: str) -> Any:
    """The data of the newest artefact of that key, read through Prefect's own client."""
    from prefect.artifacts import Artifact

    artifact = asyncio.run(Artifact.aget(key))
    assert artifact is not None
    return artifact.data


def n_steps(workspace: Workspace) -> int:
    return int(workspace.query("SELECT count(*) FROM steps").rows[0][0])


def test_three_nights(fresh: Workspace) -> None:
    stages.simulate(fresh)
    first = run_night(fresh, force_train=False)

    assert (first.status, first.decision, first.release, first.gate) == ("lake", "no champion", 1, "passed")
    assert first.n_in == 12000
    assert first.value is not None
    assert first.low is not None
    assert first.baseline is not None
    assert first.low > first.baseline
    assert set(first.seconds) == {"ingest", "drift", "snapshot", "train", "evaluate", "total"}
    assert (fresh.root / str(first.report)).read_text().startswith("<!doctype html>")
    assert as_markdown(first.reason) in newest_artifact("verdict-autoscaler")
    assert json.loads(newest_artifact("night-autoscaler"))[0]["gate"] == "passed"
    assert str(first.review).startswith("offline-dqn promote 1 --reviewer NAME, or offline-dqn reject 1")
    assert as_markdown(str(first.review)) in newest_artifact("verdict-autoscaler")

    fresh.registry.promote(1, reviewer="Ada")
    stages.simulate(fresh)
    second = run_night(fresh, force_train=False)

    assert (second.drift, second.decision, second.release, second.gate) == ("stable", "none", None, None)
    assert set(second.seconds) == {"ingest", "drift", "total"}
    assert second.reason.startswith("Keep the champion: ")
    assert as_markdown(second.reason) in newest_artifact("verdict-autoscaler")

    stages.simulate(fresh, traffic=1.6)
    third = run_night(fresh, force_train=False)

    assert (third.drift, third.decision, third.release) == ("drifted", "drift", 2)
    assert third.gate in {"passed", "refused"}
    assert third.drift_page == "drift/2026-01-07.html"
    assert "2026-01-06: kept the champion (none)" in (fresh.root / third.drift_page).read_text()  # the night before
    report = (fresh.root / str(third.report)).read_text()
    assert "The night of 2026-01-07" in report  # the check that led to the training
    assert "2026-01-06: kept the champion (none)" in report
    assert "request_rate" in str(stages.measure(fresh).decision.sentence)
    snapshot, summary = open_snapshot(fresh.snapshots_path / _training(fresh, 2)["snapshot"])
    assert summary.judge_since == "2026-01-07"
    assert set(snapshot.of_split(GATE).nights.astype(str)) == {"2026-01-07"}
    assert summary.n_before_change > 0
    assert [record.to_json() for record in read_nights(fresh.nights_path)] == [
        record.to_json() for record in (first, second, third)
    ]

    again = run_night(fresh, force_train=False)

    assert (again.status, again.n_in) == ("nothing new", 0)
    assert (again.decision, again.release, again.gate) == ("drift", 2, third.gate)  # the same candidate, as recorded
    assert fresh.releases_on_disk() == [0, 1, 2]


def _training(workspace: Workspace, release: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.release_path(release) / "training.json").read_text())
    return found


def test_a_night_with_nothing_new_keeps_the_champion(workspace: Workspace, run: Run) -> None:
    answer = run(workspace, "nightly", "--json")

    assert answer.code == 0
    found = {key: answer.json[key] for key in ("status", "n_in", "decision", "release", "gate")}
    assert found == {"status": "nothing new", "n_in": 0, "decision": "not enough data", "release": None, "gate": None}
    assert "no complete episode has begun since 2026-01-05 23:50 UTC" in answer.json["reason"]
    page = workspace.root / answer.json["drift_page"]
    assert page == workspace.drift_path / "2026-01-05.html"
    assert "Keep the champion: too little data to judge drift" in page.read_text()
    assert str(page) in newest_artifact("verdict-autoscaler")
    assert str(page) in "".join(run(workspace, "nights").out.split())


def test_a_forced_night_trains_with_the_new_settings(workspace: Workspace, run: Run) -> None:
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 20")

    answer = run(workspace, "nightly", "--force-train", "--json")

    assert (answer.code, answer.json["decision"], answer.json["release"]) == (0, "forced", 2)
    assert answer.json["gate"] in {"passed", "refused"}


def test_a_night_whose_year_is_spent_ends_and_leaves_the_candidate_waiting(workspace: Workspace, run: Run) -> None:
    settings = workspace.root / "offline_dqn.toml"
    edit(settings, "n_updates = 800", "n_updates = 20")
    edit(settings, "alpha = 0.05", "alpha = 0.05\nyearly_error = 0.06")

    answer = run(workspace, "nightly", "--force-train", "--json")

    found = {key: answer.json[key] for key in ("decision", "release", "gate", "value", "report", "review")}
    assert answer.code == 0
    assert found == {
        "decision": "forced", "release": 2, "gate": "not read", "value": None, "report": None, "review": None,
    }  # fmt: skip
    assert "`gate` was not read: 1 reading since" in answer.json["reason"]
    assert stages.recorded_evaluation(workspace, 2) is None


def test_a_night_with_too_few_gate_episodes_ends_and_spends_nothing(workspace: Workspace, run: Run) -> None:
    settings = workspace.root / "offline_dqn.toml"
    edit(settings, "n_updates = 800", "n_updates = 20")
    edit(settings, "alpha = 0.05", "alpha = 0.05\nmin_episodes = 5000")

    answer = run(workspace, "nightly", "--force-train", "--json")

    assert (answer.code, answer.json["release"], answer.json["gate"]) == (0, 2, "not read")
    assert "gate episodes, at least 5,000 decide; nothing was read and nothing spent" in answer.json["reason"]
    assert len(ledger_of(workspace).readings()) == 1  # of release 1


def test_a_held_batch_stops_the_night_and_says_why(workspace: Workspace, run: Run) -> None:
    spoil(stages.simulate(workspace, n_episodes=48).path, share=2)

    answer = run(workspace, "nightly")

    (record,) = read_nights(workspace.nights_path)
    assert answer.code == 0
    assert (record.status, record.decision, record.drift, record.release) == (
        "held",
        "batch held",
        "not measured",
        None,
    )
    assert str(record.batch) in record.reason
    assert "offline-dqn batches" in record.reason
    assert record.reason in " ".join(answer.out.split())
    assert "144 rows: reward is missing" in record.reason
    assert list(record.warnings) == []  # no row is in quarantine yet
    assert n_steps(workspace) == 12000
    assert as_markdown(record.reason) in newest_artifact("verdict-autoscaler")


def test_a_file_that_cannot_be_read_is_a_warning_of_the_night(workspace: Workspace, run: Run) -> None:
    good = stages.simulate(workspace, n_episodes=48).path
    whole = gzip.compress(good.read_bytes())
    (good.parent / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])

    answer = run(workspace, "nightly")

    (record,) = read_nights(workspace.nights_path)
    assert (answer.code, record.status, n_steps(workspace)) == (0, "lake", 12288)
    assert any("cut.jsonl.gz" in warning for warning in record.warnings)
    assert "cut.jsonl.gz" in answer.err


def test_no_logs_at_all_is_a_failure_at_once(fresh: Workspace, run: Run) -> None:
    began = time.monotonic()
    answer = run(fresh, "nightly", "--json")

    assert (answer.code, answer.out) == (1, "")
    assert "logs/steps holds no log: looked for files ending in .jsonl" in answer.err
    assert "Put logs there or name another path." in answer.err
    assert time.monotonic() - began < 20  # a retry would have waited 35 s for what time does not heal
    assert not fresh.nights_path.exists()
    assert [cause.notice.title for cause in read_open(fresh)] == ["the night failed in ingest"]


def test_only_what_may_pass_is_tried_again() -> None:
    from prefect.client.schemas.objects import TaskRun
    from prefect.states import Failed

    from datasets.journal import LakeError
    from pipelines.flow import _may_pass, ingest_logs

    def asked(error: Exception) -> bool:
        return _may_pass(ingest_logs, TaskRun.model_construct(), Failed(data=error))

    assert [asked(e) for e in (LakeError("full"), OSError("gone"), RuntimeError("?"))] == [True, True, True]
    assert [asked(e) for e in (LogFileError("no such file"), LockedError("busy"))] == [False, False]


def test_a_second_night_at_once_is_told_who_is_at_work(workspace: Workspace, run: Run) -> None:
    with exclusive_lock(workspace.root / ".lock", "the workspace", wait_s=0):
        answer = run(workspace, "nightly", "--json")

    assert (answer.code, answer.out) == (1, "")
    assert f"The workspace {workspace.root} is in use by process {os.getpid()} since" in answer.err
    assert "Wait until it has ended, or end it: the lock goes with it." in answer.err
    assert read_nights(workspace.nights_path) == []


@pytest.mark.parametrize("stage", ["train", pytest.param("evaluate", marks=pytest.mark.long)])
def test_a_night_that_was_killed_goes_on_from_there(stage: str, fresh: Workspace, prefect_server: str) -> None:
    edit(
        fresh.root / "offline_dqn.toml",
        "n_updates = 800",
        "n_updates = 3000" if stage == "train" else "n_updates = 200",
    )
    stages.simulate(fresh, n_episodes=600)
    process = start_command(fresh, "nightly", PREFECT_API_URL=prefect_server)
    try:
        _wait_for(lambda: _has_come_to(fresh, stage), process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = fresh.releases_on_disk()
    assert read_nights(fresh.nights_path) == []

    answer = finish(start_command(fresh, "nightly", "--json", PREFECT_API_URL=prefect_server))

    assert answer.code == 0, answer.err
    record = answer.json
    assert (record["decision"], record["release"]) == ("no champion", 1)
    assert record["gate"] in {"passed", "refused"}
    assert record["resumed"].startswith("start 2 of this night; taken over from before: ingest, drift, snapshot")
    assert record["n_in"] == 3600  # read by the first start
    assert {"ingest", "drift", "snapshot", "train", "evaluate"} < set(record["seconds"])
    assert not (fresh.root / "night.json").exists()
    assert before == ([0] if stage == "train" else [0, 1])
    assert fresh.releases_on_disk() == [0, 1]
    reopened = open_workspace(fresh.root)
    assert n_steps(reopened) == 3600
    assert reopened.query("SELECT count(*) FROM (SELECT DISTINCT episode_id, step FROM steps)").rows == ((3600,),)
    assert [r["step"] for r in _training(fresh, 1)["history"]][-1] == (3000 if stage == "train" else 200)


def _has_come_to(workspace: Workspace, stage: str) -> bool:
    if stage == "train":
        return any(path.is_file() for path in (workspace.root / "checkpoints").rglob("*"))
    return (workspace.release_path(1) / "release.json").exists()


def _wait_for(happened: Any, process: Any, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.02)


def test_a_night_of_its_own_prints_nothing_of_the_libraries(workspace: Workspace, tmp_path: Path) -> None:
    """As a user runs it: no Prefect server, no home, everything in the workspace."""
    environment = {"PREFECT_HOME": None, "PREFECT_API_URL": None, "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    stages.simulate(workspace, n_episodes=48)
    good = finish(start_command(workspace, "nightly", "--json", **environment))
    for log in workspace.logs_path.iterdir():
        log.unlink()
    edit(workspace.root / "contract.toml", "max = 16.0", "max = 8.0")
    bad = finish(start_command(workspace, "nightly", "--json", **environment))

    assert (good.code, good.json["n_in"]) == (0, 288), good.err
    assert good.out.count("\n") == 1
    assert (bad.code, bad.out) == (1, "")
    assert "features.replicas: range max was 16.0 and is 8.0" in bad.err
    assert chatter(good) == chatter(bad) == []
    assert set(good.err.splitlines()) <= {"ingest ...", "drift ..."}
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_night_that_is_stopped_or_killed_leaves_no_server_behind(workspace: Workspace, how: signal.Signals) -> None:
    """A scheduler's SIGTERM, or a kill, in which no code of ours runs: the temporary server ends with the night."""
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 100000")
    process = start_command(workspace, "nightly", "--force-train", PREFECT_HOME=None, PREFECT_API_URL=None)
    try:
        _wait_for(lambda: _has_come_to(workspace, "train"), process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(how)
        stopped = finish(process)
    finally:
        process.kill()

    assert children, "there was no server to leave behind"
    assert (stopped.code, stopped.out) == (143 if how is signal.SIGTERM else -how, "")
    if how is signal.SIGTERM:
        assert "stopped by a signal. Nothing half-done was kept; the same command goes on from there." in stopped.err
    assert chatter(stopped) == []
    deadline = time.monotonic() + 30
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [child for child in children if _runs(child)] == []
    assert read_nights(workspace.nights_path) == []


def _runs(pid: str) -> bool:
    """Whether a process is there and not only the entry of one that ended, which some first processes never clear."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nights_are_listed_and_a_line_that_a_crash_cut_off_did_not_happen(workspace: Workspace, run: Run) -> None:
    record = NightRecord(
        as_of="2026-01-05T23:50:00+00:00", batch="b-1", status="lake", n_in=12000, n_quarantined=3, drift="stable",
        decision="none", release=None, value=None, low=None, high=None, baseline=None, gate=None,
        reason="Keep the champion.", report=None, seconds={"total": 3.0}, warnings=("x.jsonl is empty",),
    )  # fmt: skip
    append_night(workspace.nights_path, record)
    with workspace.nights_path.open("a") as file:
        file.write('{"as_of": "2026-01-0')

    assert [r.to_json() for r in read_nights(workspace.nights_path)] == [record.to_json()]
    append_night(workspace.nights_path, record)

    listed = run(workspace, "nights", "--json")
    assert listed.json == {"nights": [record.to_json(), record.to_json()]}
    shown = run(workspace, "nights")
    assert "12,000" in shown.out
    assert "Keep the champion." in shown.out
    assert "x.jsonl is empty" in shown.err


def test_before_the_first_night_there_are_none(fresh: Workspace, run: Run) -> None:
    assert run(fresh, "nights", "--json").json == {"nights": []}
    assert run(fresh, "nights").code == 0


def test_the_tasks_of_a_night_can_travel_with_pieces_of_it_to_other_processes() -> None:
    # What runs is part of the context that Prefect sends along; a ContextVar in it could not be sent.
    from pipelines import flow

    found = [each for each in vars(flow).values() if type(each).__name__ in {"Task", "Flow"}]
    assert len(found) > 5
    for each in found:
        assert pickle.loads(pack(each)).name == each.name
