"""A server's log on its way into the lake, whatever goes on with the server: exactly once, with nothing lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datasets.batches import list_batches
from datasets.ingest import IngestReport
from datasets.lake import Lake
from pipelines import stages
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog, mend_log
from pipelines.workspace import open_workspace, write_workspace
from tests.datasets.builders import ask, counts_of, lake_at, step_row, take_in, tiny
from tests.datasets.test_outcome_ingest import outcome_row

pytestmark = pytest.mark.usefixtures("quick_suite")

CONFIG = ServeConfig(min_free_mb=0, rotate_mb=1)
CONTRACT = tiny(outcomes={"attribution_window": "30m"})

WRITER = """
import json, sys
from pathlib import Path
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog
folder, first, row = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
log = DecisionLog(folder, ServeConfig(min_free_mb=0, rotate_mb=1))
for number in range(first, first + 10**6):
    row |= {"decision_id": f"d{number}", "episode_id": f"e{number}"}
    log.append([json.dumps(row).encode()])
    print(number, flush=True)
"""


@pytest.fixture
def quick_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.datasets.builders import suite_says

    suite_says(monkeypatch, True)


def served(number: int, **changes: Any) -> bytes:
    """A decision as the server logs it: nothing is known yet of its reward, or whether it is the last one."""
    row = step_row("e", number, reward=None, terminated=None, truncated=None, decision_id=f"d{number}", **changes)
    return json.dumps(row).encode()


def taken(lake: Lake, folder: Path, kind: Any = "steps") -> IngestReport:
    report = take_in(lake, folder, kind=kind)
    assert ask(lake, "SELECT reason FROM {quarantine}") == []
    return report


def ids_in(lake: Lake) -> list[str]:
    return [name for (name,) in ask(lake, "SELECT decision_id FROM {steps}")]


def test_a_log_that_is_written_to_rotated_and_killed_is_in_the_lake_once(tmp_path: Path) -> None:
    lake, folder = lake_at(tmp_path, CONTRACT), tmp_path / "logs"
    row = step_row("e", 0, reward=None, terminated=None, truncated=None, fill="x" * 20_000)
    acknowledged: set[str] = set()
    for run in range(2):
        first = run * 1_000_000
        command = [sys.executable, "-c", WRITER, str(folder), str(first), json.dumps(row)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        numbers = [int(writer.stdout.readline()) for _ in range(40)]
        taken(lake, folder)  # while it is written to
        numbers += [int(writer.stdout.readline()) for _ in range(40)]
        writer.send_signal(signal.SIGKILL)
        numbers += [int(number) for number in writer.stdout.read().split("\n")[:-1]]
        writer.wait()
        acknowledged |= {f"d{number}" for number in numbers}
        if run == 1:
            mend_log(folder)  # before, the next server does it, and ingest has seen the torn line
        taken(lake, folder)
    taken(lake, folder)
    found = ids_in(lake)
    assert len(list(folder.glob("served-*"))) > 2
    assert len(found) == len(set(found))
    assert acknowledged <= set(found)
    assert len(found) - len(acknowledged) <= 2  # a line under way at a kill may be whole, though nobody was told
    assert sum(batch.counts.n_lake for batch in list_batches(lake)) == len(found)
    assert [batch.counts.n_duplicates for batch in list_batches(lake)] == [0] * len(list_batches(lake))


def test_a_line_that_is_under_way_waits_and_is_taken_once_it_is_whole(tmp_path: Path) -> None:
    lake, folder = lake_at(tmp_path, CONTRACT), tmp_path / "logs"
    with DecisionLog(folder, CONFIG) as log:
        log.append([served(0), served(1)])
        (path,) = folder.glob("served-*")
        line = served(2) + b"\n"
        with path.open("ab") as file:
            file.write(line[:30])
        assert counts_of(taken(lake, folder)) == {"in": 3, "lake": 2, "pending": 1}
        with path.open("ab") as file:
            file.write(line[30:])
        assert counts_of(taken(lake, folder)) == {"in": 1, "lake": 1}
    assert sorted(ids_in(lake)) == ["d0", "d1", "d2"]


def test_the_last_line_of_a_server_that_runs_needs_no_second_night(tmp_path: Path) -> None:
    lake, folder = lake_at(tmp_path, CONTRACT), tmp_path / "logs"
    with DecisionLog(folder, CONFIG) as log:
        log.append([served(0)])
        assert counts_of(taken(lake, folder)) == {"in": 1, "lake": 1}
        assert taken(lake, folder).batch is None
        log.append([served(1)])
        assert counts_of(taken(lake, folder)) == {"in": 1, "lake": 1}


@pytest.mark.parametrize("n_looks", [0, 1])
def test_a_torn_line_that_earlier_nights_saw_is_gone_when_the_server_starts(tmp_path: Path, n_looks: int) -> None:
    lake, folder = lake_at(tmp_path, CONTRACT), tmp_path / "logs"
    with DecisionLog(folder, CONFIG) as log:
        log.append([served(0)])
    (path,) = folder.glob("served-*")
    with path.open("ab") as file:
        file.write(served(1)[:25])
    for _ in range(n_looks):
        assert counts_of(taken(lake, folder)) == {"in": 2, "lake": 1, "pending": 1}
    with DecisionLog(folder, CONFIG) as log:
        assert log.lag.mended_bytes == 25
        log.append([served(2)])
        taken(lake, folder)
    assert taken(lake, folder).batch is None
    assert sorted(ids_in(lake)) == ["d0", "d2"]


def test_a_torn_line_that_was_taken_for_a_bad_one_makes_nothing_come_twice(tmp_path: Path) -> None:
    lake, folder = lake_at(tmp_path, CONTRACT), tmp_path / "logs"
    with DecisionLog(folder, CONFIG) as log:
        log.append([served(0)])
    (path,) = folder.glob("served-*")
    with path.open("ab") as file:
        file.write(served(1)[:25])
    # Ingest by path, which mends nothing: a line that stays as it is counts as a bad one.
    assert counts_of(take_in(lake, path)) == {"in": 2, "lake": 1, "pending": 1}
    assert counts_of(take_in(lake, path)) == {"in": 1, "quarantined": 1}
    with DecisionLog(folder, CONFIG) as log:
        log.append([served(2)])
    assert counts_of(take_in(lake, folder)) == {"in": 1, "lake": 1}
    assert sorted(ids_in(lake)) == ["d0", "d2"]


def test_a_removed_file_that_is_written_again_is_not_taken_twice(tmp_path: Path) -> None:
    lake, folder = lake_at(tmp_path, CONTRACT), tmp_path / "logs"
    with DecisionLog(folder, CONFIG) as log:
        log.append([served(0)])
        taken(lake, folder)
        (path,) = folder.glob("served-*")
        path.unlink()
        log.append([served(1)])
        with log._write_lock:
            log._leave_disturbed()
        log.append([served(2)])
        assert counts_of(taken(lake, folder)) == {"in": 2, "lake": 2}
    assert sorted(ids_in(lake)) == ["d0", "d1", "d2"]


def test_a_night_mends_takes_both_logs_in_and_sees_the_end(tmp_path: Path) -> None:
    workspace = write_workspace(tmp_path / "w", "blank")
    (workspace.root / "contract.toml").write_text(
        'name = "t"\ngamma = 0.9\n[features.cpu]\ntype = "numeric"\n[actions]\nnames = ["down", "hold", "up"]\n'
        '[outcomes]\nattribution_window = "30m"\n'
    )
    workspace = open_workspace(workspace.root)
    with (
        DecisionLog(workspace.logs_path, CONFIG) as steps,
        DecisionLog(workspace.outcome_logs_path, CONFIG) as outcomes,
    ):
        steps.append([served(0), served(1)])
        outcomes.append([json.dumps({**outcome_row("d1", "10:05"), "terminated": True}).encode()])
    for folder in (workspace.logs_path, workspace.outcome_logs_path):
        (path,) = folder.glob("served-*")
        with path.open("ab") as file:
            file.write(b'{"torn')
    report = stages.ingest(workspace)

    assert (counts_of(report), report.outcomes and counts_of(report.outcomes)) == (
        {"in": 2, "lake": 2},
        {"in": 1, "lake": 1},
    )
    sql = "SELECT n_steps, terminated, complete, damage, (SELECT count(*) FROM quarantine) FROM episodes"
    assert workspace.query(sql).rows == ((2, True, True, None, 0),)
