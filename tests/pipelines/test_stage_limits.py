"""What hangs is stopped, what will not stop ends with its process, and a person hears of both."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from datasets.locking import exclusive_lock
from pipelines import stages
from pipelines.night_progress import read_progress
from pipelines.notify.telling import read_open
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, edit

HANGS = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from pipelines import flow
from pipelines.cli import quiet_libraries
from pipelines.workspace import open_workspace

quiet_libraries()
flow._GRACE_S = 1.0

def deaf(*_):
    while True:  # as a library's own loop, which swallows whatever is raised in it
        try:
            time.sleep(60)
        except BaseException:
            pass

workspace = open_workspace(Path(sys.argv[1]))
stage = SimpleNamespace(name="drift", retries=0, with_options=lambda timeout_seconds: deaf)
flow._limited(flow._Running(workspace), stage)()
"""


def limit(workspace: Workspace, stage: str, hours: float) -> Workspace:
    settings = workspace.root / "offline_dqn.toml"
    edit(settings, "[snapshot]\n", f"[nightly.timeout_hours]\n{stage} = {hours}\n\n[snapshot]\n")
    return open_workspace(workspace.root)


@pytest.mark.usefixtures("prefect_server")
def test_a_stage_that_takes_too_long_is_stopped_and_the_night_says_which(
    workspace: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = limit(workspace, "drift", 0.0005)  # 1.8 s
    began = time.monotonic()

    def slow(*_: object, **__: object) -> None:
        while time.monotonic() < began + 60:
            time.sleep(0.02)

    monkeypatch.setattr(stages, "measure", slow)
    answer = run(limited, "nightly")

    assert answer.code == 1
    assert "The stage drift was stopped after 0.0005 hours, its time in [nightly.timeout_hours]." in answer.err
    assert "`offline-dqn nightly` goes on from there" in " ".join(answer.err.split())
    progress = read_progress(limited)
    assert progress is not None
    assert progress.under_way == "drift"
    assert progress.found("ingest") is not None  # which the next start takes over
    opened = read_open(limited)
    assert [cause.notice.level for cause in opened if cause.notice.cause == "night"] == ["page"], opened

    monkeypatch.undo()
    again = run(limit_again(limited), "nightly")
    assert again.code == 0, again.err


def limit_again(workspace: Workspace) -> Workspace:
    """More time, which does not make it another night."""
    edit(workspace.root / "offline_dqn.toml", "drift = 0.0005", "drift = 2")
    return open_workspace(workspace.root)


def test_a_stage_that_hears_nothing_ends_with_its_process(fresh: Workspace) -> None:
    limit(fresh, "drift", 0.0001)
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, str(fresh.root)], capture_output=True, text=True, timeout=120, check=False
    )

    assert ended.returncode == 1
    assert "The stage drift was stopped after 0.0001 hours" in ended.stderr
    assert "It did not stop when told to, so the process ends." in ended.stderr
    with exclusive_lock(fresh.root / ".lock", "the workspace", wait_s=0):
        pass  # nobody holds it


def test_the_living_tell_of_a_night_whose_process_died(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.flow import nightly, tell_of_crash

    monkeypatch.delenv("OFFLINE_DQN_SENTRY_DSN", raising=False)
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(f'{settings.read_text()}\n[sentry]\ndsn = "OFFLINE_DQN_SENTRY_DSN"\n')
    died = SimpleNamespace(message="Flow run process exited with non-zero status code -9.")
    tell_of_crash(None, SimpleNamespace(id="7", parameters={"workspace": str(workspace.root)}), died)

    [cause] = [cause for cause in read_open(workspace) if cause.notice.cause == "night"]
    assert cause.notice.level == "page"
    assert "non-zero status code -9" in cause.notice.text
    assert nightly.on_crashed_hooks == [tell_of_crash]
    said = " ".join(capsys.readouterr().err.split())
    assert "not everybody was told of this failure: [sentry] dsn names OFFLINE_DQN_SENTRY_DSN, which is not set" in said
