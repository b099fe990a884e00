"""Who descends from a process, and how all of them are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, parents first; of a process that is gone, none."""
    children = defaultdict[int, list[int]](list)
    for child, parent in _parents():
        children[parent].append(child)
    found, ahead = list[int](), [pid]
    while ahead:
        ahead = [child for parent in ahead for child in children[parent]]
        found += ahead
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """Every process with its parent."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        yield from ((int(pid), int(parent)) for pid, parent in (line.split() for line in listed.splitlines()))
        return
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            yield int(path.parent.name), int(fields[1])


def is_alive(pid: int) -> bool:
    """Whether it still runs; one that has ended and only waits to be asked how does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    return True


def end_all(pids: Iterable[int], *, grace_s: float) -> None:
    """Asks all to end, waits, and ends those that have not."""
    left = list(pids)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (left := [pid for pid in left if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
