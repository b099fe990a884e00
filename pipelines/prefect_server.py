"""A Prefect server as a child of this process, on loopback: for one night, or for as long as the scheduler runs.

It ends with this process, also where that is killed; Prefect's own temporary server would stay.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from datasets.errors import OfflineDqnError
from pipelines import bound
from pipelines.prefect_database import one_migration

HOST = "127.0.0.1"
_STOP_S = 10.0


class ServerError(OfflineDqnError):
    """Prefect's server cannot be started or reached."""


@contextmanager
def prefect_server(
    app: str, *, port: int, log_path: Path, timeout_s: float, settings: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a server, waits until it answers, and stops it at the end.

    Args:
        app: factory of the application, as uvicorn names it.
        port: on loopback.
        log_path: where its output goes.
        settings: environment variables beside those of this process.

    Raises:
        ServerError: it does not come up.
        PrefectDatabaseError: its database in PostgreSQL does not answer.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    where = ("--host", HOST, "--port", port)
    with ExitStack() as started:
        with one_migration(timeout_s), log_path.open("wb") as log:
            server = subprocess.Popen(
                bound.command("uvicorn", "--factory", app, *where, "--log-level", "error", "--lifespan", "on"),
                env={**os.environ, "PREFECT__SERVER_FINAL": "1", **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for us; we stop it once it is not needed
            )
            started.callback(_stop, server)
            _wait_until_it_answers(server, port, log_path, timeout_s)
        yield server


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int, log_path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with httpx.Client(base_url=api_url(port), timeout=5) as client:  # one: each new one loads all certificates again
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise ServerError(
                    f"Prefect's server ended before it answered: {last_line(log_path)}. {log_path} says more."
                )
            try:
                if client.get("health").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
    raise ServerError(
        f"Prefect's server did not answer within {timeout_s:.0f} s: the machine may be too busy. Run it again, or "
        f"set PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS higher. {log_path} says what it printed."
    )


def api_url(port: int) -> str:
    """Where a server on loopback answers."""
    return f"http://{HOST}:{port}/api"


def free_port() -> int:
    """A port of loopback that nothing uses now."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def last_line(path: Path) -> str:
    """What a log ends with."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"
