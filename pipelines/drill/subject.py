"""Runs a command of ours as a user would, and stops the process just before its n-th change to a workspace.

    python -m pipelines.drill.subject WORKSPACE RECORD N COMMAND ARGUMENT ...

A change is a file opened for writing, renamed, removed or a new folder, as Python's audit hook sees it; what DuckDB,
Delta and SQLite write by themselves lies between two of these. Stopped is the whole process (SIGSTOP): whoever started
it injects a fault and lets it go on. N = 0 never stops and writes every change into RECORD.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

_RENAMES = ("os.rename",)
_OTHERS = ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "sqlite3.connect")
_WRITES = os.O_WRONLY | os.O_RDWR
_PROGRESS = ".night.json.part"

FIRST_STAGE = "start"
LAST_STAGE = "after the record"


class ChangeCounter:
    """An audit hook that counts changes below a folder, and stops the process before one of them.

    Attributes:
        n: changes so far.
        stage: of the night, as its own record says.
    """

    def __init__(self, root: Path, record: Path, stop_before: int) -> None:
        self._root = f"{root}{os.sep}"
        self._stop_before = stop_before
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.n = 0
        self.stage = FIRST_STAGE

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = _changed(event, arguments)
        if path is None or not path.startswith(self._root) or (event == "os.mkdir" and Path(path).is_dir()):
            return
        self.n += 1
        if self.n == self._stop_before or not self._stop_before:
            said = {"n": self.n, "stage": self.stage, "event": event, "path": path.removeprefix(self._root)}
            os.write(self._record, json.dumps(said).encode() + b"\n")
        if self.n == self._stop_before:
            os.kill(os.getpid(), signal.SIGSTOP)
        self._follow(event, path)

    def _follow(self, event: str, path: str) -> None:
        if event in _RENAMES and path == f"{self._root}{_PROGRESS}":
            self.stage = json.loads(Path(path).read_text())["under_way"] or FIRST_STAGE
        elif event == "os.remove" and path == f"{self._root}night.json":
            self.stage = LAST_STAGE


def _changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an audited event is about to change; None where it changes nothing by a path."""
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode) & set("wax+") if mode is not None else flags & _WRITES
        if not writes:
            return None
    elif event in _RENAMES or event in _OTHERS:
        path = arguments[0]
    else:
        return None
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else None


def _sleep(seconds: float) -> None:
    """As `time.sleep`, which asks the system to sleep until an instant: libfaketime 0.9.10 shifts that by the jump."""
    select.select([], [], [], seconds)


def main() -> None:
    """Runs the command in the arguments under the hook."""
    root, record, stop_before, *command = sys.argv[1:]
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        time.sleep = _sleep  # type: ignore[assignment]
    sys.addaudithook(ChangeCounter(Path(root), Path(record), int(stop_before)))
    from pipelines import cli

    sys.argv = ["offline-dqn", *command]
    cli.main()


if __name__ == "__main__":
    main()
