"""The server of a drill: `offline-dqn serve` as a process of its own, on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.errors import OfflineDqnError

_STOP_S = 30.0


class DrillServerError(OfflineDqnError):
    """The server did not start or did not stop."""


class DrillServer:
    """A server on a workspace. Its stderr goes to `serve.log` there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """Where it listens now, such as "http://127.0.0.1:41234"."""
        return self._address

    def start(self) -> None:
        """Starts it and waits until it listens.

        Raises:
            DrillServerError: it ended instead; with what it said.
        """
        log_path = self._root / "serve.log"
        with log_path.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-c", "from pipelines.cli import main; main()",
                    "serve", "--port", "0", "--json", "--workspace", str(self._root),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            said = log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise DrillServerError(f"the server did not start; {log_path} ends with:\n{said}")
        self._address = json.loads(line)["address"]

    def kill(self) -> None:
        """Kills it as a crash would (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends it as an operator does (SIGTERM).

        Raises:
            DrillServerError: it did not end, or not well.
        """
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DrillServerError(f"the server did not end within {_STOP_S:g} s of SIGTERM and was killed") from None
        if code != 0:
            raise DrillServerError(f"the server ended with exit code {code}; see {self._root / 'serve.log'}")


@contextmanager
def running_server(root: Path) -> Iterator[DrillServer]:
    """A server that runs, and is gone at the end."""
    server = DrillServer(root)
    server.start()
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    server.stop()
