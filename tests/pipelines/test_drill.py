"""Fault drills: moments are drawn by stage and repeatable, a night stops where it should, and what was lost is seen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets.journal import Retired
from datasets.lake import lake_lock
from pipelines import stages
from pipelines.drill.drill import Drill, run_drill
from pipelines.drill.faults import FAULTS
from pipelines.drill.moments import Change, Trial, draw_trials, read_changes
from pipelines.drill.night import DrillError
from pipelines.drill.page import BEGIN, END, figures_of, write_figures
from pipelines.drill.relay import relay
from pipelines.drill.remains import differences, look
from pipelines.drill.trial import Outcome, Stage, run_trial
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run

CHANGES = [Change(n, stage, "open", f"file-{n}") for n, stage in enumerate(["ingest"] * 40 + ["train"] * 2, start=1)]

STOPPING = """
import sys
from pathlib import Path
from pipelines.drill.subject import ChangeCounter
root = Path(sys.argv[1])
sys.addaudithook(ChangeCounter(root, Path(sys.argv[2]), int(sys.argv[3])))
(root / "one").write_text("1")
(root / "folder").mkdir()
(root / "folder").mkdir(exist_ok=True)
(root / ".night.json.part").write_text('{"under_way": "train"}')
(root / ".night.json.part").replace(root / "night.json")
(root / "one").read_text()
Path(sys.argv[2] + ".elsewhere").write_text("no change to the workspace")
(root / "two").write_text("2")
(root / "night.json").unlink()
(root / "three").write_text("3")
"""


def counted(root: Path, record: Path, stop_before: int) -> subprocess.Popen[bytes]:
    root.mkdir()
    return subprocess.Popen([sys.executable, "-c", STOPPING, str(root), str(record), str(stop_before)])


def test_changes_are_counted_with_the_stage_that_the_night_was_in(tmp_path: Path) -> None:
    assert counted(tmp_path / "w", tmp_path / "record", 0).wait(60) == 0

    assert [(c.n, c.stage, c.path) for c in read_changes(tmp_path / "record")] == [
        (1, "start", "one"),
        (2, "start", "folder"),  # once: the second time it is there
        (3, "start", ".night.json.part"),
        (4, "start", ".night.json.part"),  # renamed: from here on it trains
        (5, "train", "two"),
        (6, "train", "night.json"),
        (7, "after the record", "three"),
    ]


def test_a_process_stops_before_its_change_and_goes_on(tmp_path: Path) -> None:
    process = counted(tmp_path / "w", tmp_path / "record", 5)
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None
    assert found.si_code == os.CLD_STOPPED
    assert (tmp_path / "w" / "night.json").exists()
    assert not (tmp_path / "w" / "two").exists()

    process.send_signal(signal.SIGCONT)

    assert process.wait(60) == 0
    assert (tmp_path / "w" / "three").read_text() == "3"
    assert [c.path for c in read_changes(tmp_path / "record")] == ["two"]


def test_every_stage_is_met_before_one_is_met_twice() -> None:
    trials = draw_trials(CHANGES, ["kill", "disk"], 4, seed=3)

    assert [trial.number for trial in trials] == list(range(1, 9))
    for fault in ("kill", "disk"):
        stages = [trial.stage for trial in trials if trial.fault == fault]
        assert sorted(stages) == ["ingest", "ingest", "train", "train"]
    assert all(CHANGES[trial.change - 1].stage == trial.stage for trial in trials)
    assert draw_trials(CHANGES, ["kill", "disk"], 4, seed=3) == trials
    assert draw_trials(CHANGES, ["kill", "disk"], 4, seed=4) != trials
    with pytest.raises(ValueError, match="no moment to draw"):
        draw_trials([], ["kill"], 1, seed=0)


def test_a_server_behind_a_relay_goes_away_and_comes_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(connection.recv(10)[::-1])

        threading.Thread(target=answer, daemon=True).start()
        with relay(server.getsockname()[1]) as relayed:

            def asked() -> bytes:
                with socket.create_connection(("127.0.0.1", relayed.port), timeout=10) as client:
                    client.sendall(b"abc")
                    return client.recv(10)

            assert asked() == b"cba"
            relayed.take_away()
            with pytest.raises(OSError, match=r"refused|reset"):
                asked()
            relayed.give_back()
            assert asked() == b"cba"
        server.shutdown(socket.SHUT_RDWR)


def test_a_workspace_is_no_different_from_its_copy(workspace: Workspace, first_night: Path) -> None:
    found, wanted = look(workspace, first_night), look(open_workspace(first_night))

    assert differences(found, wanted) == []
    assert (found.lost, found.added, found.n_rows) == (0, 0, {"steps": 12000, "quarantine": 0})
    assert found.releases == (0, 1)


def test_lost_rows_a_second_release_and_unfinished_work_are_seen(workspace: Workspace, first_night: Path) -> None:
    lake = workspace.open_lake()
    with lake_lock(lake):
        gone = [file for file in lake.files("steps") if "columns-" not in file]
        lake.commit({}, {"steps": [Retired.at("steps", file) for file in gone]})
    shutil.copytree(workspace.release_path(1), workspace.release_path(2))
    (workspace.root / "night.json").write_text("{}")

    found = look(workspace, first_night)

    assert (found.lost, found.added) == (12000, 0)
    said = "\n".join(differences(found, look(open_workspace(first_night))))
    assert "the lake differs: 12,000 rows lost, 0 rows that should not be there" in said
    assert "the batches say that 12,000 rows are in the lake, and 0 are" in said
    assert "releases are 0, 1, 2 and should be 0, 1" in said
    assert "release 2: release.json is that of release 1" in said
    assert "night.json was left" in said


@pytest.mark.long
def test_a_night_that_is_killed_within_its_ingest_is_repeated_to_the_same_lake(
    first_night: Path, tmp_path: Path, prefect_server: str
) -> None:
    """The fast slice of `make drill`: nights that train nothing, killed at one change, with its real processes."""
    template, undisturbed = tmp_path / "template", tmp_path / "undisturbed"
    shutil.copytree(first_night, template)
    stages.simulate(open_workspace(template), n_episodes=48)
    shutil.copytree(template, undisturbed)
    stages.ingest(open_workspace(undisturbed))
    with relay(int(prefect_server.removesuffix("/api").rpartition(":")[2])) as server:
        stage = Stage(
            folder=tmp_path,
            template=template,
            undisturbed=undisturbed,
            wanted=look(open_workspace(undisturbed)),
            server=server,
            environment={"PREFECT_API_URL": f"http://127.0.0.1:{server.port}/api"},
            timeout_s=400,
            night=("nightly", "--json"),
        )

        outcome = run_trial(stage, Trial(1, "kill", change=18, stage="ingest", delay_s=0.0, seed=0, turn=0))

    assert outcome.wrong == ()
    assert (outcome.first, outcome.lost, outcome.added, outcome.n_new_releases) == (-9, 0, 0, 0)
    assert outcome.moment.startswith("ingest: ")
    assert outcome.resumed.startswith("start 2 of this night")
    assert not (tmp_path / "trial-1").exists()


def _outcome(fault: str, number: int, wrong: tuple[str, ...] = ()) -> Outcome:
    trial = replace(draw_trials(CHANGES, [fault], 1, seed=0)[0], number=number)
    resumed, lost = "start 2 of this night", 3 * len(wrong)
    return Outcome(trial, "", "train: open a|b", -9, "", resumed, lost, 0, 1, True, wrong, 1.0)


def test_figures_are_written_between_the_marks_of_a_page(tmp_path: Path) -> None:
    outcomes = (_outcome("kill", 1), _outcome("kill", 2, ("rows lost",)), _outcome("twice", 3))
    n_rows = {"steps": 12, "quarantine": 1}
    drill = Drill(7, outcomes, {"clock": "no library"}, {"ingest": 40, "train": 2}, n_rows, 90.0)
    page = tmp_path / "faults.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    write_figures(page, drill)
    write_figures(page, drill)

    text = page.read_text()
    assert text == f"before\n{BEGIN}\n{figures_of(drill)}\n{END}\nafter\n"
    assert "| SIGKILL of the night |  | 2 | 1 | 3 | 0 | 1 | 2 of 2 |" in text
    assert "| together |  | 3 | 2 | 3 | 0 | 1 | 3 of 3 |" in text
    assert "| 2 | kill | train: open a&#124;b | killed; start 2 of this night | rows lost |" in text
    assert "Left out: clock, no library." in text
    page.write_text("no marks")
    with pytest.raises(DrillError, match="does not have the marks"):
        write_figures(page, drill)
    json.dumps(drill.to_json())


def test_a_drill_refuses_a_folder_in_use_and_an_unknown_fault(tmp_path: Path) -> None:
    with pytest.raises(DrillError, match=r"There is no fault flood. Known: kill, disk, "):
        run_drill(tmp_path / "new", faults=("kill", "flood"))
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(DrillError, match="is not empty; nothing in it was touched"):
        run_drill(tmp_path, faults=("kill",))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_every_fault_that_can_make_a_night_fail_says_what_its_message_must_name() -> None:
    assert len(FAULTS) == 8
    assert {name for name, fault in FAULTS.items() if not fault.cause or not fault.remedy} == {"kill", "twice"}


@pytest.mark.parametrize(("wrong", "code"), [((), 0), (("12 rows lost",), 3)])
def test_the_command_shows_the_table_and_keeps_what_was_not_survived(
    wrong: tuple[str, ...], code: int, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drilled(folder: Path, **asked: Any) -> Drill:
        folder.mkdir()
        outcome = _outcome("kill", 1, wrong)
        asked["tell_outcome"](outcome)
        return Drill(asked["seed"], (outcome,), {}, {"ingest": 40}, {"steps": 12, "quarantine": 1}, 90.0)

    monkeypatch.setattr("pipelines.drill.drill.run_drill", drilled)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    page = tmp_path / "faults.md"
    page.write_text(f"{BEGIN}\n{END}\n")

    answer = run(None, "drill", "--fault", "kill", "--seed", "7", "--figures", page)

    assert answer.code == code
    assert "SIGKILL of the night" in answer.out
    assert ("NOT SURVIVED" in answer.err, "12 rows lost" in answer.err) == (bool(wrong), bool(wrong))
    assert [path.name for path in tmp_path.glob("offline-dqn-drill-*")] == [f"offline-dqn-drill-{os.getpid()}"] * len(
        wrong
    )
    assert page.read_text().startswith(f"{BEGIN}\nSeed 7, ")


def test_a_query_that_is_interrupted_ends_like_any_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Drill:
        raise RuntimeError("Query interrupted")  # DuckDB 2.0, where a KeyboardInterrupt came while it ran

    monkeypatch.setattr("pipelines.drill.drill.run_drill", interrupted)

    answer = run(None, "drill")

    assert answer.code == 130
    assert "interrupted. Nothing half-done was kept" in answer.err
