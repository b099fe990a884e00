"""`make databases`: two nights at once in one pair of PostgreSQL databases, which are taken away in the middle.

Some minutes; the suite runs test_databases.py.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from pipelines import stages
from pipelines.prefect_database import DATABASE_URL
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run, edit, finish, start_command, write_small_workspace
from tests.pipelines.test_databases import VARIABLE, use_tracking
from tests.planted import found_in
from tests.postgres_server import PASSWORD, postgres_server


def made(root: Path) -> Workspace:
    workspace = write_small_workspace(root)
    edit(root / "offline_dqn.toml", "n_updates = 800", "n_updates = 100")
    use_tracking(workspace)
    stages.simulate(workspace)
    return workspace


def under_way(workspace: Workspace) -> str:
    path = workspace.root / "night.json"
    return str(json.loads(path.read_text())["under_way"]) if path.exists() else ""


def wait_for_stage(night: subprocess.Popen[str], workspace: Workspace, stages_: tuple[str, ...]) -> None:
    deadline = time.monotonic() + 900
    while under_way(workspace) not in stages_:
        assert night.poll() is None, f"the night ended before: {finish(night).err}"
        assert time.monotonic() < deadline, f"{workspace.root.name} never came to {stages_}"
        time.sleep(0.1)


@pytest.mark.parametrize("away_s", [5.0, 0.0])
def test_two_nights_at_once_survive_the_databases_going_away(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, away_s: float
) -> None:
    """Away for 5 s, both nights wait and end. Away for good (0), both say what to do, and the repeat ends them."""
    with postgres_server() as server:
        monkeypatch.setenv(VARIABLE, server.create("mlflow"))
        own = {DATABASE_URL: server.create("prefect"), "PREFECT_API_URL": None, "PREFECT_HOME": None}
        spaces = [made(tmp_path / name) for name in ("a", "b")]
        if not away_s:
            for workspace in spaces:
                edit(workspace.root / "offline_dqn.toml", "wait_s = 60", "wait_s = 2")
        nights = [start_command(workspace, "nightly", "--json", **own) for workspace in spaces]
        wait_for_stage(nights[0], spaces[0], ("train", "evaluate"))
        server.stop()
        if away_s:
            time.sleep(away_s)
            server.start()
        answers = [finish(night, 900) for night in nights]
        if not away_s:
            for answer in answers:
                assert answer.code == 1
                assert "Bring it back and run the" in answer.err or "bring it back and run the" in answer.err, (
                    answer.err
                )
            server.start()
            answers += [finish(start_command(workspace, "nightly", "--json", **own), 900) for workspace in spaces]
            ended = answers[2:]
        else:
            ended = answers
        assert [answer.code for answer in ended] == [0, 0], [answer.err for answer in ended]
        for workspace in spaces:
            listed = run(workspace, "releases", "--json").json["releases"]
            assert [(release["release"], release["damage"]) for release in listed] == [(0, ""), (1, "")]
            assert workspace.query("SELECT count(*) FROM steps").rows == ((12000,),)
        ((n_models,),) = server.rows("mlflow", "SELECT count(*) FROM registered_models")
        assert n_models == 2
        assert PASSWORD not in "".join(answer.out + answer.err for answer in answers)
        assert found_in([tmp_path / "a", tmp_path / "b"], [PASSWORD]) == []
