"""`offline-dqn` as a program that starts at once: a process that has loaded everything forks for each command.

A page has dozens of commands, and a process of its own spends seconds on loading torch, MLflow and Great Expectations.
The program put on PATH hands its arguments, folder, environment and streams to that process over a socket and waits
for the exit code; the fork runs the same `main` that the installed program runs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

_GRACE_S = 10.0
"""Seconds that a command has to end once nobody waits for it."""

SOCKET = "OFFLINE_DQN_FORKS"
"""The environment variable that tells the program where its process listens."""

PROGRAM = """\
#!{python} -ISE
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["OFFLINE_DQN_FORKS"])
asked = json.dumps({{"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}).encode()
socket.send_fds(s, [len(asked).to_bytes(8, "big")], [0, 1, 2])
s.sendall(asked)
sys.exit(int(s.recv(16) or b"1"))
"""

LOADED = (
    "datasets.minari_logs",
    "datasets.validation",
    "mlflow",
    "pipelines.cli",
    "pipelines.serving.app",
    "pipelines.stages",
    "pipelines.training",
    "reports.registry",
)
"""Loaded once, for every command; what is not among them loads in each command that wants it."""


def write_program(folder: Path) -> None:
    """Writes `offline-dqn` into a folder that goes to the front of PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "offline-dqn"
    program.write_text(PROGRAM.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)


def main() -> None:
    """Loads, says `ready` on stdout, and forks for whoever connects to the socket named by the first argument."""
    for name in LOADED:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that answer
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """Runs one command in a fork of its own and tells its exit code; ends it where the asker has gone."""
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    asked = b""
    while len(asked) < int.from_bytes(length, "big"):
        asked += connection.recv(1 << 16)
    command = os.fork()
    if command == 0:
        connection.close()
        _run(json.loads(asked), streams)
    for stream in streams:
        os.close(stream)
    gone_at: float | None = None
    while True:
        ended, status = os.waitpid(command, os.WNOHANG)
        if ended:
            break
        if select.select([] if gone_at else [connection], [], [], 0.01)[0]:  # it never writes: it has been killed
            gone_at = time.monotonic()
            os.kill(command, signal.SIGTERM)
        if gone_at is not None and time.monotonic() - gone_at > _GRACE_S:
            os.kill(command, signal.SIGKILL)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


def _run(asked: dict[str, object], streams: list[int]) -> None:
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
    os.chdir(str(asked["folder"]))
    os.environ.clear()
    os.environ.update(dict(asked["environment"]))  # type: ignore[call-overload]
    sys.argv = list(asked["arguments"])  # type: ignore[call-overload]
    from pipelines.cli import main as command_line

    try:
        command_line()  # ends the process with the command's exit code
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    main()
