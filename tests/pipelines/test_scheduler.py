"""Prefect's server and worker, started and stopped as a user does it; and that no child outlives a killed parent."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from datasets.locking import exclusive_lock
from pipelines.descent import descendants, end_all, is_alive
from pipelines.prefect_server import free_port
from pipelines.scheduler import SchedulerError, refuse_taken
from pipelines.scheduler_app import pages_route
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run, finish, start_command
from tests.planted import found_in

PARENT = """
import subprocess, sys, time
from pipelines import bound
child = subprocess.Popen(bound.command("tests.pipelines.sleeper"), start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def wait_for(happened: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.1)


def listening(pid: int) -> set[str]:
    """The addresses that a process listens on."""
    sockets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # LISTEN
                address = bytes.fromhex(fields[1].partition(":")[0])
                found.add(socket.inet_ntoa(address[::-1]) if len(address) == 4 else f"IPv6 {address.hex()}")
    return found


def test_what_a_killed_process_started_ends_with_it_and_so_does_what_that_started() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        wait_for(lambda: len(descendants(child)) == 1)
        grandchild = descendants(child)[0]
        assert descendants(parent.pid) == [child, grandchild]
        parent.kill()
        parent.wait()
        wait_for(lambda: not is_alive(child) and not is_alive(grandchild), 30)
    finally:
        end_all([parent.pid, child], grace_s=0)


def test_what_does_not_end_when_asked_is_ended() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()

    end_all([stubborn.pid], grace_s=0.3)

    assert stubborn.wait(10) == -signal.SIGKILL
    assert not is_alive(stubborn.pid)
    assert descendants(stubborn.pid) == []


def test_a_port_in_use_is_told_with_a_way_out(fresh: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(fresh.root / ".prefect"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        answer = run(fresh, "scheduler", "--port", port)

    assert answer.code == 1
    assert f"Port {port} of 127.0.0.1 is in use by another program." in answer.err
    assert f"`offline-dqn scheduler --port {port + 1}`, `make serve PORT={port + 1}`" in answer.err
    refuse_taken(free_port())
    if os.geteuid() != 0:
        with pytest.raises(SchedulerError, match="needs rights"):
            refuse_taken(80)


def test_a_second_scheduler_of_a_workspace_is_told_of_the_first(
    fresh: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(fresh.root / ".prefect"))
    with exclusive_lock(fresh.root / ".scheduler.lock", "it", wait_s=0):
        answer = run(fresh, "scheduler", "--port", free_port())

    assert answer.code == 1
    assert f"The scheduler of {fresh.root} is in use by process {os.getpid()}" in answer.err


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("releases/1/report.html", 200),
        ("drift/2026-01-05.html", 200),
        ("releases/2/report.html", 404),
        ("releases/1/policy.json", 404),
        ("offline_dqn.toml", 404),
        ("releases/1/..%2f..%2foffline_dqn.toml", 404),
        ("releases/3/report.html", 404),  # a link that leads out of the workspace
    ],
)
def test_reports_are_shown_and_nothing_else(tmp_path: Path, path: str, status: int) -> None:
    root = tmp_path / "workspace"
    for page in ("releases/1/report.html", "drift/2026-01-05.html", "releases/1/policy.json", "offline_dqn.toml"):
        (root / page).parent.mkdir(parents=True, exist_ok=True)
        (root / page).write_text("<!doctype html>page")
    (tmp_path / "report.html").write_text("outside")
    (root / "releases" / "3").mkdir()
    (root / "releases" / "3" / "report.html").symlink_to(tmp_path / "report.html")
    client = TestClient(Starlette(routes=[pages_route(root)]))

    answer = client.get(f"/offline-dqn/{path}")

    assert answer.status_code == status
    if status == 200:
        assert answer.headers["content-security-policy"].startswith("sandbox")


def run_deployment(client: httpx.Client, name: str, **parameters: object) -> dict[str, Any]:
    """Starts a run as the form in the UI does, and waits for its last state."""
    deployment = client.get(f"deployments/name/{name}").raise_for_status().json()["id"]
    asked = client.post(f"deployments/{deployment}/create_flow_run", json={"parameters": parameters})
    run = asked.raise_for_status().json()["id"]
    ended: list[dict[str, Any]] = []

    def is_over() -> bool:
        state = client.get(f"flow_runs/{run}").raise_for_status().json()["state"]
        ended[:] = [state] if state["type"] in {"COMPLETED", "FAILED", "CRASHED"} else []
        return bool(ended)

    wait_for(is_over, 180)
    return ended[0]


def test_it_asks_for_the_login_runs_what_is_asked_for_and_leaves_nothing_behind(workspace: Workspace) -> None:
    """As `make serve` does it: about half a minute of Prefect's own start."""
    port, login = free_port(), ("ada", "hunter2-of-prefect")
    page = workspace.root / "drift" / "2026-01-05.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text("<!doctype html>page")
    own = {"PREFECT_API_URL": None, "PREFECT_HOME": None, "PREFECT_SERVER_API_AUTH_STRING": ":".join(login)}
    scheduler = start_command(workspace, "scheduler", "--port", port, **own)
    started: list[int] = []
    try:
        assert scheduler.stdout is not None
        lines = [scheduler.stdout.readline() for _ in range(7)]
        started = descendants(scheduler.pid)
        assert f"http://127.0.0.1:{port}" in "".join(lines)
        assert len(started) >= 2  # server and worker
        assert {address for pid in started for address in listening(pid)} == {"127.0.0.1"}
        for path in ("/api/deployments/filter", "/offline-dqn/drift/2026-01-05.html"):
            ask = httpx.post if "filter" in path else httpx.get
            answers = [
                ask(f"http://127.0.0.1:{port}{path}", auth=auth, timeout=30) for auth in (None, ("ada", "x"), login)
            ]
            assert [answer.status_code for answer in answers] == [401, 401, 200], path
        assert httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=30).status_code == 200

        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api", auth=login, timeout=30) as client:
            state = run_deployment(client, "rollback/rollback", reviewer="Ada", note="it harms")
        assert (state["type"], state["message"]) == (
            "COMPLETED",
            "Release 0 is champion instead of release 1: rollback by Ada.",
        )
        assert workspace.registry.champion() == 0
        scheduler.terminate()
        stopped = finish(scheduler, 60)
    finally:
        end_all([*started, scheduler.pid], grace_s=0)

    assert (stopped.code, [pid for pid in started if is_alive(pid)]) == (0, [])
    assert re.sub(r" +\n", "\n", stopped.err).splitlines() == [
        "starting Prefect's server and making its database ...",
        "deploying prefect.yaml ...",
        "starting the worker ...",
        "stopped: nothing of it is left running",
    ]
    assert found_in([workspace.root], [login[1]]) == []
    refuse_taken(port)
