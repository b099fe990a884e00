"""One at a time: an exclusive lock on a file that the system frees when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from datasets.errors import OfflineDqnError


class LockedError(OfflineDqnError):
    """Another process is at work on the same thing."""


@contextmanager
def exclusive_lock(path: Path, what: str, *, wait_s: float) -> Iterator[None]:
    """Holds `path` locked; waits up to `wait_s` seconds for another holder.

    Raises:
        LockedError: the lock is still taken after the wait; names the holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "an unknown process"
                    raise LockedError(
                        f"{what} is in use by {holder}. Wait until it has ended, or end it: the lock goes with it."
                    ) from None
                time.sleep(0.05)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        yield
