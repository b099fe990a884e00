"""The scheduler: Prefect's server and one worker on loopback, started together and stopped together.

Not to be confused with `offline-dqn serve`, the policy server that answers to decisions: this one runs nights.
Both children end with this process, also where that is killed; what a run has started ends with its worker.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from datasets.locking import exclusive_lock
from pipelines import bound
from pipelines.descent import descendants, end_all
from pipelines.prefect_database import in_postgres, one_scheduler
from pipelines.prefect_server import HOST, ServerError, api_url, last_line, prefect_server
from pipelines.scheduler_app import PAGES_URL, PREFIX, WORKSPACE
from pipelines.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[1]
POOL = "offline-dqn"

_START_S = 300.0
_STOP_S = 30.0
"""Seconds that a run has to end cleanly; a night that does not is taken up where it stopped."""

_LOOK_EVERY_S = 0.5


class SchedulerError(ServerError):
    """The scheduler cannot be started, or one of its two halves has ended."""


def run_scheduler(
    workspace: Workspace, *, port: int, on_step: Callable[[str], None], on_ready: Callable[[str, Path], None]
) -> None:
    """Runs until it is told to stop by Ctrl-C or SIGTERM; then nothing that it started is left.

    Args:
        workspace: whose nights it runs. Prefect's database and the logs lie in its `.prefect`, unless PREFECT_HOME is
            set.
        port: on loopback.
        on_step: told what is being done before each step of the start, which takes up to a minute.
        on_ready: told the address of the UI and the folder of the logs once runs can be started.

    Raises:
        SchedulerError: the port is taken, there is no prefect.yaml, or server or worker ended by themselves.
        LockedError: a scheduler of this workspace runs already.
        PrefectDatabaseError: another scheduler works on the same PostgreSQL database, or that does not answer.
    """
    root = workspace.root.resolve()
    if not (PROJECT / "prefect.yaml").is_file():
        raise SchedulerError(f"{PROJECT} holds no prefect.yaml: the scheduler runs from a checkout of the project.")
    with ExitStack() as running, _stopping():
        try:
            running.enter_context(exclusive_lock(root / ".scheduler.lock", f"The scheduler of {root}", wait_s=0.0))
            refuse_taken(port)
            home = Path(os.environ["PREFECT_HOME"])
            os.environ.update(_settings(root, port))
            running.enter_context(one_scheduler(_START_S))
            is_new = not in_postgres() and not (home / "prefect.db").exists()
            on_step(f"starting Prefect's server{' and making its database' if is_new else ''} ...")
            server = running.enter_context(
                prefect_server(
                    "pipelines.scheduler_app:create_app",
                    port=port,
                    log_path=home / "scheduler-server.log",
                    timeout_s=_START_S,
                    settings={},
                )
            )
            on_step("deploying prefect.yaml ...")
            _prepare()
            _deploy(home / "scheduler-deploy.log")
            on_step("starting the worker ...")
            worker = running.enter_context(_worker(home / "scheduler-worker.log"))
            on_ready(f"http://{HOST}:{port}", home)
            _watch({"server": server, "worker": worker}, home)
        except KeyboardInterrupt:
            return


def refuse_taken(port: int) -> None:
    """Raises where something listens on the port already, and says what."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
            return
        except PermissionError as error:
            raise SchedulerError(f"Port {port} needs rights that this user lacks; choose one above 1023.") from error
        except OSError as error:
            raise SchedulerError(
                f"Port {port} of {HOST} is in use by {_who(port)}. Stop that, or choose another port: "
                f"`offline-dqn scheduler --port {port + 1}`, `make serve PORT={port + 1}`."
            ) from error


def _who(port: int) -> str:
    try:
        is_prefect = httpx.get(f"{api_url(port)}/health", timeout=2).text.strip() == "true"
    except httpx.HTTPError:
        is_prefect = False
    return "a Prefect server, perhaps another scheduler" if is_prefect else "another program"


def _settings(root: Path, port: int) -> dict[str, str]:
    """Environment variables for server, worker and runs."""
    here = f"http://{HOST}:{port}"
    found = {
        "PREFECT_API_URL": api_url(port),
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": f"{here}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": here,  # by default every page that a browser shows could ask the API
        "PREFECT_LOGGING_LEVEL": "INFO",  # the command line silences what runs at its terminal
        WORKSPACE: str(root),
        "OFFLINE_DQN_PROJECT": str(PROJECT),
        PAGES_URL: f"{here}{PREFIX}",
    }
    if "PREFECT_SERVER_API_AUTH_STRING" in os.environ:
        found["PREFECT_API_AUTH_STRING"] = os.environ["PREFECT_SERVER_API_AUTH_STRING"]
    return found


def _prepare() -> None:
    """The work pool; and runs of a worker that is gone no longer count as running, so that none waits for them."""
    # Prefect reads its settings when it is imported.
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterDeploymentId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    # Of runs that a worker started. A night at a shell that uses this server may well be alive.
    of_worker = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(is_null_=False),
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
        ),
    )
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        for run in client.read_flow_runs(flow_run_filter=of_worker):
            gone: Any = Crashed(
                message=f"The scheduler ended while it ran; seen on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
            )
            client.set_flow_run_state(run.id, gone, force=True)


def _deploy(log_path: Path) -> None:
    """The deployments of prefect.yaml."""
    command = bound.command("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", PROJECT / "prefect.yaml")
    with log_path.open("wb") as log:
        code = subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
    if code.returncode:
        raise SchedulerError(f"prefect.yaml could not be deployed: {last_line(log_path)}. {log_path} says more.")


@contextmanager
def _worker(log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, which at the end is stopped with the runs that it has started, while the server still listens."""
    command = bound.command("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", POOL)
    with log_path.open("wb") as log:
        worker = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield worker
    finally:
        end_all([*descendants(worker.pid), worker.pid], grace_s=_STOP_S)
        worker.wait()


def _watch(halves: dict[str, subprocess.Popen[bytes]], home: Path) -> None:
    while True:
        for name, half in halves.items():
            if half.poll() is not None:
                log = home / f"scheduler-{name}.log"
                raise SchedulerError(
                    f"The scheduler's {name} ended by itself with code {half.returncode}: {last_line(log)}. The other "
                    f"half was stopped; {log} says more. A night that ran is taken up by the next one."
                )
        time.sleep(_LOOK_EVERY_S)


@contextmanager
def _stopping() -> Iterator[None]:
    """Ctrl-C and SIGTERM become one exception, so that all is stopped in order; a second one changes nothing."""

    def stop(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
