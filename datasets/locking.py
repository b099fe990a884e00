"""One at a time: an exclusive lock on a file that the system frees when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from datasets.errors import OfflineDqnError


class LockedError(OfflineDqnError):
    """Another process is at work on the same thing."""


class ReadOnlyError(OfflineDqnError):
    """What should be changed lies where nothing can be written."""


_CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def exclusive_lock(path: Path, what: str, *, wait_s: float) -> Iterator[None]:
    """Holds `path` locked; waits up to `wait_s` seconds for another holder.

    Raises:
        LockedError: the lock is still taken after the wait; names the holder.
        ReadOnlyError: it lies where nothing can be written.
    """
    deadline = time.monotonic() + wait_s
    with _opened(path, what) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().decode().strip() or "an unknown process"
                    raise LockedError(
                        f"{what} is in use by {holder}. Wait until it has ended, or end it: the lock goes with it."
                    ) from None
                time.sleep(0.05)
        with suppress(OSError):  # a full disk: the lock holds all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC".encode())
        yield


def _opened(path: Path, what: str) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+b", buffering=0)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise ReadOnlyError(
            f"{what} cannot be changed here: {error.strerror} ({path.parent}). It can be asked; to change it, mount it "
            "writable, or run as a user who may write there."
        ) from error
