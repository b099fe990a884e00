"""A night as a process of its own, that can be stopped at a moment, disturbed, and let go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import OfflineDqnError
from pipelines.descent import descendants, end_all, is_alive

_LOOK_EVERY_S = 0.02
_ENDS_WITHIN_S = 20.0
"""Seconds that what a night started may need to end after it."""


class DrillError(OfflineDqnError):
    """The drill itself cannot go on."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative is a signal. None where it did not end in its time.
        out, err: what it printed.
        left_behind: processes that it started and that outlived it.
    """

    code: int | None
    out: str
    err: str
    left_behind: int = 0


class NightProcess:
    """A command of ours under `subject`.

    Args:
        root: the workspace.
        folder: for its output, outside of the workspace.
        name: of its files there.
        command: with its arguments.
        stop_before: the change before which it stops; 0 never.
        environment: variables beside those of this process; None takes one out.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        name: str,
        command: tuple[str, ...],
        *,
        stop_before: int = 0,
        environment: Mapping[str, str | None],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.record = folder / f"{name}.jsonl"
        self.record.unlink(missing_ok=True)
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        changed = {**os.environ, **environment}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pipelines.drill.subject", str(root), str(self.record), str(stop_before)),
                    *(*command, "--workspace", str(root)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={key: value for key, value in changed.items() if value is not None},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_stopped(self, timeout_s: float) -> bool:
        """Whether it has come to its moment; it has ended otherwise.

        Raises:
            DrillError: neither within the time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is not None:
                return found.si_code == os.CLD_STOPPED
            time.sleep(_LOOK_EVERY_S)
        self.end()
        raise DrillError(f"A night came neither to its moment nor to its end within {timeout_s:.0f} s: {self._said()}")

    def moment(self) -> str:
        """Where it stopped, in words."""
        said = json.loads(self.record.read_text().splitlines()[-1])
        path = re.sub(r"tfevents\..*", "tfevents.*", said["path"])  # the rest is a time and the machine's name
        return f"{said['stage']}: {said['event']} {path}"

    def go_on(self) -> None:
        """After a stop."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, as the kernel does where memory is short."""
        self.process.send_signal(signal.SIGKILL)

    def children(self) -> list[int]:
        """What it has started and what that has."""
        return descendants(self.pid)

    def ended(self, timeout_s: float) -> Ended:
        """Waits for its end and for that of what it started; what does not end in time is killed and told."""
        started, deadline = set(self.children()), time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            started |= set(self.children())
            time.sleep(0.1)
        code = self.process.poll()
        if code is None:
            self.end()
        deadline = time.monotonic() + _ENDS_WITHIN_S
        while any(map(is_alive, started)) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [pid for pid in started if is_alive(pid)]
        end_all(left, grace_s=0.0)
        return Ended(code, self._out.read_text(errors="replace"), self._said(), len(left))

    def end(self) -> None:
        """Ends it and all that it started."""
        end_all([*self.children(), self.pid], grace_s=0.0)
        self.process.wait()

    def _said(self) -> str:
        return self._err.read_text(errors="replace")
