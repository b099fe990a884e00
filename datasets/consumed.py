"""What of a log file is new: files are recognised by the bytes that were read of them before, whatever their name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets.logfiles import LogFile, LogFileError, Unread

HEAD_BYTES = 1024
"""Bytes by which a file is looked up among those that were read before."""


@dataclass(frozen=True)
class Consumed:
    """How far a file was read by an earlier batch.

    Attributes:
        digest: SHA-256 of that prefix.
        n_bytes, n_lines: of that prefix.
        digest_seen: SHA-256 of all that the file held.
        head: SHA-256 of the prefix's first HEAD_BYTES, or of all of it if it is shorter.
    """

    digest: str
    n_bytes: int
    n_lines: int
    digest_seen: str
    head: str


class History:
    """The prefixes consumed so far, found by how they begin: a look-up does not grow with their number."""

    def __init__(self, consumed: Iterable[Consumed] = ()) -> None:
        self._by_head: dict[tuple[int, str], list[Consumed]] = {}
        self._lengths: set[int] = set()
        for prefix in consumed:
            self.add(prefix)

    def add(self, prefix: Consumed) -> None:
        """Remembers one more."""
        length = min(prefix.n_bytes, HEAD_BYTES)
        self._lengths.add(length)
        self._by_head.setdefault((length, prefix.head), []).append(prefix)

    def beginning_like(self, head: bytes) -> list[Consumed]:
        """The prefixes that begin as a file does, of which `head` are the first HEAD_BYTES."""
        found: list[Consumed] = []
        for length in self._lengths:
            if length <= len(head):
                found += self._by_head.get((length, hashlib.sha256(head[:length]).hexdigest()), [])
        return found


@dataclass(frozen=True)
class Look:
    """What a log file holds, and what of it is known.

    Attributes:
        unread: what is new; None if nothing is.
        known: the consumed prefix that it goes on from; None where it begins like no other.
        ends: how far it may count as consumed once it was read, whatever else is known of it: up to its last whole
            line, or whole.
    """

    unread: Unread | None
    known: Consumed | None
    ends: tuple[Consumed, ...]

    @property
    def digest_seen(self) -> str:
        """SHA-256 of the whole file."""
        return self.ends[0].digest_seen


def look_for_unread(log: LogFile, history: History) -> Unread | None:
    """What `log` holds beyond what `history` has consumed; None if nothing. See `look_at`."""
    return look_at(log, history).unread


def look_at(log: LogFile, history: History) -> Look:
    """What `log` holds beyond what `history` has consumed.

    A file is recognised by the digest of a consumed prefix, whatever its name: the same bytes are read once, and of a
    text file that grew only the tail is read. A last line without newline waits until the file is unchanged at the
    next look, because it may be half of a line that is still being written.

    Args:
        history: prefixes consumed so far, of any file.

    Raises:
        LogFileError: the file cannot be read.
    """
    try:
        size = log.path.stat().st_size
        complete = end_of_last_line(log.path, size) if log.grows else size
        with log.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        known = history.beginning_like(head)
        candidates = [c for c in known if c.n_bytes <= size and (log.grows or c.n_bytes == size)]
        prefixes = _prefixes(log.path, {c.n_bytes for c in candidates} | {complete, size})
    except OSError as error:
        raise LogFileError(f"{log.path} cannot be read: {error.strerror or error}. Nothing of it was taken.") from error
    seen = prefixes[size].digest
    matches = [c for c in candidates if prefixes[c.n_bytes].digest == c.digest]
    match = max(matches, key=lambda c: (c.n_bytes, c.digest_seen == seen), default=None)
    start, n_lines_before = (match.n_bytes, match.n_lines) if match else (0, 0)

    def head_of(end: int) -> str:
        return hashlib.sha256(head[:end]).hexdigest()

    ends = tuple(Consumed(prefixes[n].digest, n, prefixes[n].n_newlines, seen, head_of(n)) for n in {complete, size})
    if match and start == size:
        return Look(None, match, ends)
    unchanged = match is not None and match.digest_seen == seen
    end = size if unchanged else max(complete, start)
    unread = Unread(
        start=start,
        end=end,
        n_lines_before=n_lines_before,
        digest=prefixes[end].digest,
        digest_seen=seen,
        n_pending=int(end < size),
        n_lines=prefixes[end].n_newlines,
        head=head_of(end),
    )
    return Look(unread, match, ends)


def end_of_last_line(path: Path, size: int) -> int:
    """Offset behind the last newline; 0 where there is none."""
    with path.open("rb") as file:
        stop = size
        while stop > 0:
            start = max(0, stop - (1 << 16))
            file.seek(start)
            newline = file.read(stop - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            stop = start
    return 0


@dataclass(frozen=True)
class _Prefix:
    digest: str
    n_newlines: int


def _prefixes(path: Path, lengths: set[int]) -> dict[int, _Prefix]:
    """SHA-256 and number of newlines of the first n bytes for each n, in one pass."""
    digest, position, n_newlines, prefixes = hashlib.sha256(), 0, 0, {}
    with path.open("rb") as file:
        for length in sorted(lengths):
            while position < length:
                block = file.read(min(1 << 20, length - position))
                if not block:
                    raise LogFileError(
                        f"{path} became shorter while it was read. Ingest logs that are only appended to."
                    )
                digest.update(block)
                position += len(block)
                n_newlines += block.count(b"\n")
            prefixes[length] = _Prefix(digest.hexdigest(), n_newlines)
    return prefixes
