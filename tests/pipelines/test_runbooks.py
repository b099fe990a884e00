"""The runbooks: every command of every page is run, from the page, in the order in which an incident takes them."""

from __future__ import annotations

import json
import shlex
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipelines import stages
from pipelines.canary_state import read_canary
from pipelines.incident.captured import find_incident
from pipelines.nights import read_nights
from pipelines.serving.switch import read_switch
from pipelines.workspace import Workspace, open_workspace
from tests.docs.pages import ROOT, commands_on
from tests.pipelines.conftest import Answer, Run, edit
from tests.pipelines.serving.running import serving

PAGES = ("disable", "rollback", "capture", "reproduce", "poisoned-source", "re-evaluate", "postmortem")
"""In the order of an incident."""

OTHERWISE = {"offline-dqn evaluate 1 --again": 1}
"""Commands that end otherwise than well there: a verdict that still stands is not given again, and says so."""


@pytest.fixture(scope="module")
def misbehaving(first_night: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Release 1 acts since a night, and a second collector has sent a log that no ingest has read yet."""
    root = tmp_path_factory.mktemp("incident") / "workspace"
    shutil.copytree(first_night, root)
    edit(root / "offline_dqn.toml", "n_updates = 800", "n_updates = 40")
    contract = root / "contract.toml"
    contract.write_text(f'{contract.read_text()}\n[outcomes]\nattribution_window = "1h"\n')
    workspace = open_workspace(root)
    acted = stages.simulate(workspace, n_episodes=300)
    lines = [json.loads(line) for line in Path(acted.path).read_text().splitlines()]
    lies = [{**row, "episode_id": f"b-{row['episode_id']}", "reward": 0.0} for row in lines[:600]]
    lies = [{**row, **({"decision_id": f"b-{row['decision_id']}"} if "decision_id" in row else {})} for row in lies]
    (workspace.logs_path / "collector-b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lies))
    return open_workspace(root)


@pytest.fixture
def in_it(misbehaving: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The reader stands in the workspace's folder."""
    monkeypatch.chdir(misbehaving.root)
    return misbehaving


def ask(command: str, server: str) -> Answer:
    """What `curl` says, without needing it."""
    address = shlex.split(command.replace("$SERVER", server))[-1]
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return Answer(0, answer.read().decode(), "")
    except urllib.error.URLError as error:
        return Answer(22, "", str(error))


@pytest.mark.usefixtures("prefect_server")
def test_an_incident_is_worked_through_from_the_pages(in_it: Workspace, run: Run) -> None:
    said: dict[str, Answer] = {}
    with serving(in_it) as server:
        for page in PAGES:
            for command in commands_on(ROOT / "docs" / "runbooks" / f"{page}.md"):
                if command.bare.startswith("curl "):
                    time.sleep(1.2)  # within a second, it says above
                    answer = ask(command.bare, f"http://127.0.0.1:{server.port}")
                else:
                    program, *arguments = shlex.split(command.bare)
                    assert program == "offline-dqn", f"{page}: nobody runs `{command.bare}`"
                    answer = run(None, *arguments)
                assert answer.code == OTHERWISE.get(command.bare, 0), f"{page}: {command.bare}\n{answer.err}"
                said[f"{page}: {command.bare.split(' --')[0]}"] = answer
                if page == "disable" and command.bare.startswith("curl"):
                    ready = json.loads(answer.out)
                    assert (ready["release"], ready["disabled"]["by"]) == (0, "Ada")
                if command.bare == "offline-dqn nightly --force-train":
                    ((n_excluded,),) = in_it.query("SELECT count(excluded) FROM episodes").rows
                    assert n_excluded == 100
    workspace = open_workspace(in_it.root)
    assert workspace.registry.champion() == 0
    assert read_switch(workspace.serving_path) is None
    assert read_canary(workspace) is None
    (night,) = read_nights(workspace.nights_path)
    assert night.release == 2
    text = (find_incident(workspace, "first") / "postmortem.md").read_text()
    steps = ("the kill switch was thrown", "release 0 took over again", "release 2 was trained")
    for told in ("collector-b.jsonl", *steps):
        assert told in text, told
    assert "collector-b.jsonl" in " ".join(said["poisoned-source: offline-dqn exclude list"].out.split())


def test_every_page_is_worked_through() -> None:
    written = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")} - {"index"}
    assert written == set(PAGES)
    assert all(commands_on(ROOT / "docs" / "runbooks" / f"{page}.md") for page in PAGES)
