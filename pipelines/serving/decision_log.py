"""The log that a server writes: append-only JSON Lines, in which every answered decision is found after a kill.

Lines go to `served-DAY-NUMBER.jsonl` in the workspace's `logs/steps` (or `logs/outcomes`), where the next night finds
them. A line is either whole or not there: one whose writing failed is taken back at once, one whose writer was killed
when the folder is next opened. Nothing that was acknowledged is ever changed.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from datasets.consumed import end_of_last_line
from datasets.errors import OfflineDqnError
from datasets.locking import LockedError, ReadOnlyError, exclusive_lock
from pipelines.serving.config import ServeConfig

LOCK_FILE = ".served.lock"
"""Held by the one process that writes to a folder; hidden, so that no reader takes it for a log."""

_NAME = re.compile(r"served-(\d{8})-(\d{6})\.jsonl")
_LOCK_WAIT_S = 5.0
"""Longer than a nightly run holds the lock to mend a torn line."""
_SPACE_CHECK_S, _SPACE_CHECK_BYTES = 0.25, 1 << 20
"""Free space is looked at again after so many seconds or bytes."""
_FAILED_S = 5.0
"""How long a failed write tells that the next one would fail too."""


class LogFullError(OfflineDqnError):
    """The lines could not be written, or not be brought to the disk: what they tell of must not be answered."""


class LogUnsureError(LogFullError):
    """The lines are in the log, and perhaps not on the disk: they must not be answered, nor contradicted."""


@dataclass(frozen=True)
class LogLag:
    """How a log stands, for metrics.

    Attributes:
        n_lines: acknowledged since the log was opened.
        n_bytes: of them.
        unsynced_bytes: written and not yet flushed to the disk.
        unsynced_s: how long the oldest of them has waited; 0 where there are none.
        n_refused: lines that a LogFullError met.
        n_sync_failures: flushes that failed: with `process`, lines acknowledged before one may not outlive the machine.
        n_disturbed: files that were moved, removed or cut by somebody else while they were written to.
        mended_bytes: of torn last lines, taken out when the folder was opened.
    """

    n_lines: int
    n_bytes: int
    unsynced_bytes: int
    unsynced_s: float
    n_refused: int
    n_sync_failures: int
    n_disturbed: int
    mended_bytes: int


class DecisionLog:
    """Appends lines to the log in one folder; the only process that may. All methods may be called from any thread.

    Args:
        directory: made if there is none.
        clock: the instant that names a new file's day; only tests give another.

    Raises:
        LockedError: another process writes to the folder; names it.
        LogFullError: the folder cannot be made or read.
    """

    def __init__(
        self, directory: Path, config: ServeConfig, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._directory, self._config, self._clock = directory, config, clock
        self._write_lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._file: _OpenFile | None = None
        # Positions count the bytes of all files together, so that they only grow.
        self._written = self._synced = 0
        self._lost: deque[tuple[int, int]] = deque(maxlen=64)
        self._unsynced_since = 0.0
        self._space_checked_at, self._space_checked_bytes = float("-inf"), 0
        self._n_lines = self._n_refused = self._n_sync_failures = self._n_disturbed = 0
        self._must_rotate = self._is_lost = False
        self._failed: tuple[float, str] | None = None
        self._closed = threading.Event()
        self._held = ExitStack()
        try:
            self._held.enter_context(
                exclusive_lock(directory / LOCK_FILE, f"The log folder {directory}", wait_s=_LOCK_WAIT_S)
            )
            self._mended_bytes = _mend(directory)
        except OSError as error:
            self._held.close()
            raise LogFullError(
                f"{directory} cannot hold a log: {error.strerror or error}. Make room or mend its rights; nothing was "
                "answered."
            ) from error
        self._syncer = threading.Thread(target=self._sync_regularly, name=f"sync {directory.name}", daemon=True)
        self._syncer.start()

    def append(self, lines: Sequence[bytes]) -> None:
        """Writes lines, all or none of them; when it returns they are as safe as the configured durability says.

        Args:
            lines: each one JSON object without a line break; the line's end is added here.

        Raises:
            LogFullError: they are not in the log. What they tell of must not be answered.
            LogUnsureError: with `disk`, they are in the log and not surely on the disk. The same lines may be written
                again: ingest takes exact repeats once.
            ValueError: a line is empty, or holds a line break.
        """
        if not lines:
            return
        for line in lines:
            if not line or b"\n" in line:
                raise ValueError(f"a line of the log must be one line of JSON, found {line[:80]!r}")
        data = b"\n".join(lines) + b"\n"
        with self._write_lock:
            try:
                position = self._write(data)
            except OSError as error:
                self._n_refused += len(lines)
                full = self._full(error)
                self._failed = (time.monotonic(), str(full))
                raise full from error
            except LogFullError:
                self._n_refused += len(lines)
                raise
        if self._config.durability == "disk":
            try:
                self._sync_up_to(position)
            except LogFullError:
                self._n_refused += len(lines)
                raise
        with self._write_lock:
            self._n_lines += len(lines)
            self._failed = None

    def sync(self) -> None:
        """Flushes to the disk what is written.

        Raises:
            LogFullError: the disk did not take it.
        """
        self._sync_up_to(self._written)

    def close(self) -> None:
        """Flushes, closes and frees the folder. A second call does nothing.

        Raises:
            LogFullError: the disk did not take the last lines; the folder is free all the same.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self._syncer.join()
        try:
            self.sync()
        finally:
            with self._write_lock, self._sync_lock:
                if self._file is not None:
                    os.close(self._file.descriptor)
                    self._file = None
                self._held.close()

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """The folder that it writes to."""
        return self._directory

    @property
    def problem(self) -> str | None:
        """Why a line could not be written now, as far as is known without one; None where nothing is in its way.

        A failed write is believed for a few seconds only: who is told of a problem sends no line, and nothing else
        would show that it is over.
        """
        try:
            self._look_at_space()
        except LogFullError as error:
            return str(error)
        except OSError as error:
            return str(self._full(error))
        failed = self._failed
        return failed[1] if failed is not None and time.monotonic() - failed[0] < _FAILED_S else None

    @property
    def lag(self) -> LogLag:
        """How it stands now."""
        unsynced = self._written - self._synced
        return LogLag(
            n_lines=self._n_lines,
            n_bytes=self._written,
            unsynced_bytes=unsynced,
            unsynced_s=time.monotonic() - self._unsynced_since if unsynced else 0.0,
            n_refused=self._n_refused,
            n_sync_failures=self._n_sync_failures,
            n_disturbed=self._n_disturbed,
            mended_bytes=self._mended_bytes,
        )

    def _write(self, data: bytes) -> int:
        if self._closed.is_set():
            raise LogFullError(f"The log in {self._directory} is closed; nothing more is written to it.")
        self._check_space(len(data))
        if self._is_lost:
            self._leave_disturbed()
            self._is_lost = False
        file = self._file_for(len(data))
        file.take_back_torn()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(file.descriptor, rest) :]
        except OSError:
            file.is_torn = True
            with suppress(OSError):  # tried again before the next line
                file.take_back_torn()
            raise
        file.n_bytes += len(data)
        if self._written == self._synced:
            self._unsynced_since = time.monotonic()
        self._written += len(data)
        return self._written

    def _check_space(self, n_bytes: int) -> None:
        """Looks at the room now and then."""
        now = time.monotonic()
        self._space_checked_bytes += n_bytes
        if now - self._space_checked_at < _SPACE_CHECK_S and self._space_checked_bytes < _SPACE_CHECK_BYTES:
            return
        self._space_checked_at = float("-inf")  # where there is none it is looked at with every line
        self._look_at_space()
        self._space_checked_at, self._space_checked_bytes = now, 0

    def _look_at_space(self) -> None:
        """Full is what has less than the configured room, so that a line is seldom cut by the disk's end."""
        disk = os.statvfs(self._directory)
        free_mb = disk.f_bavail * disk.f_frsize / 1e6
        if free_mb < self._config.min_free_mb:
            raise LogFullError(
                f"The disk of {self._directory} has {free_mb:.0f} MB left and serve.min_free_mb is "
                f"{self._config.min_free_mb}: nothing was written. Make room; the server goes on by itself."
            )

    def _full(self, error: OSError) -> LogFullError:
        return LogFullError(
            f"The log in {self._directory} cannot be written: {error.strerror or error}. Nothing of these lines is in "
            "it. Make room or mend the disk; the server goes on by itself."
        )

    # --- files

    def _file_for(self, n_bytes: int) -> _OpenFile:
        """The file that the next bytes belong to; a new one where the day, the size or a failure asks for it."""
        day = f"{self._clock():%Y%m%d}"
        file = self._file
        if file is not None:
            is_large = file.n_bytes and file.n_bytes + n_bytes > self._config.rotate_mb * 1_000_000
            # A clock that goes back begins no file: names stay in the order of writing.
            if not is_large and day <= file.day and not self._must_rotate:
                return file
            day = max(day, file.day)
        opened = _open_next(self._directory, day)
        with self._sync_lock:
            if file is not None:
                self._flush(file)
                os.close(file.descriptor)
            self._file, self._must_rotate = opened, False
        return opened

    # --- flushes

    def _sync_up_to(self, position: int) -> None:
        """Whoever comes first flushes for all who have written by then; those who waited find it done."""
        with self._sync_lock:
            if self._synced < position and self._file is not None:
                self._flush(self._file)
            if any(start < position <= end for start, end in self._lost):
                raise LogUnsureError(
                    f"The disk of {self._directory} did not take the last lines; they may be lost. Look at the disk's "
                    "health (dmesg); the server goes on in a new file."
                )

    def _flush(self, file: _OpenFile) -> None:
        """Brings the file's lines to the disk; where that fails they are lost for good. The caller syncs alone."""
        written = self._written
        try:
            os.fdatasync(file.descriptor)
        except OSError:
            # A second try would say that all is well: the system has dropped the pages that it could not write.
            self._lost.append((self._synced, written))
            self._n_sync_failures += 1
            self._must_rotate = True
        self._synced = written
        self._unsynced_since = time.monotonic()

    def _sync_regularly(self) -> None:
        while not self._closed.wait(self._config.sync_every_s):
            if self._synced < self._written:
                with suppress(LogFullError):  # counted; there is nobody to be told
                    self.sync()
            with self._write_lock:
                try:
                    self._leave_disturbed()
                except OSError:
                    self._is_lost = True  # tried again before the next line, which is refused if that fails

    def _leave_disturbed(self) -> None:
        """Goes on in a new file where somebody moved, removed or cut the open one; the lines of a removed one are
        written again."""
        file = self._file
        if file is None or file.is_undisturbed():
            return
        removed = os.fstat(file.descriptor).st_nlink == 0
        opened = _open_next(self._directory, file.day)
        rest = memoryview(file.content() if removed else b"")
        try:
            while rest:
                opened.n_bytes += (n := os.write(opened.descriptor, rest))
                rest = rest[n:]
            os.fdatasync(opened.descriptor)
        except OSError:
            os.close(opened.descriptor)
            opened.path.unlink()  # the removed file still holds them: tried again
            raise
        with self._sync_lock:
            self._flush(file)
            os.close(file.descriptor)
            self._file = opened
        self._n_disturbed += 1


@dataclass
class _OpenFile:
    """A file that is written to.

    Attributes:
        n_bytes: of whole lines.
        is_torn: whether it may hold a part of a line behind them.
    """

    path: Path
    descriptor: int
    day: str
    n_bytes: int
    is_torn: bool = False

    def take_back_torn(self) -> None:
        """Cuts off what was written of lines that failed."""
        if self.is_torn:
            if os.fstat(self.descriptor).st_size > self.n_bytes:
                os.ftruncate(self.descriptor, self.n_bytes)
            self.is_torn = False

    def is_undisturbed(self) -> bool:
        """Whether its path still leads to it, and all its lines are there."""
        opened = os.fstat(self.descriptor)
        try:
            return opened.st_size >= self.n_bytes and os.path.samestat(self.path.stat(), opened)
        except FileNotFoundError:
            return False

    def content(self) -> bytes:
        """All its whole lines."""
        return os.pread(self.descriptor, self.n_bytes, 0)  # a system reads up to 2 GB at once, more than a file has


def served_files(directory: Path) -> list[tuple[str, int, Path]]:
    """Day, number and path of each file, in the order in which they were written."""
    found = ((_NAME.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted((match[1], int(match[2]), path) for match, path in found if match)


def _open_next(directory: Path, day: str) -> _OpenFile:
    """A new file behind all others; its name is on the disk before a line is in it."""
    files = served_files(directory)
    last_day, last_number = files[-1][:2] if files else ("", 0)
    day = max(day, last_day)
    number = last_number + 1 if day == last_day else 1
    path = directory / f"served-{day}-{number:06d}.jsonl"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return _OpenFile(path, descriptor, day, 0)


def mend_log(directory: Path) -> int | None:
    """Takes torn last lines out of a folder that no server writes to; returns their bytes, None where one does.

    A line is torn where its writer was killed while it wrote: what it tells of was never answered. A folder that cannot
    be written to stays as it is.
    """
    try:
        if not directory.is_dir() or not served_files(directory):
            return 0
        with exclusive_lock(directory / LOCK_FILE, f"The log folder {directory}", wait_s=0):
            return _mend(directory)
    except LockedError:
        return None
    except (ReadOnlyError, OSError):
        return 0


def _mend(directory: Path) -> int:
    """Takes torn last lines out. The caller holds the folder's lock."""
    n_torn = 0
    for _, _, path in served_files(directory):
        size = path.stat().st_size
        end = end_of_last_line(path, size)
        if end < size:
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
            n_torn += size - end
    return n_torn
