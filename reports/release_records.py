"""The records beside the releases: history, rejections, lapses, error ledger, and which releases there are.

Where releases lie in a folder, each record is a file of JSON lines there, and who appends holds a lock. Where they lie
in a bucket, every line of every record is a line of one object, `journal.jsonl`: whoever appends must have seen the
last line (If-Match), else nothing is written and the decision is taken anew on what has come in between. So all
machines agree on one order of decisions, as if each had been alone. The records in the folder are then a copy that is
made from the journal.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from datasets.bucket_folder import BucketFolder
from datasets.durable import append_record, write_durably
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock
from datasets.object_store import ObjectMissingError

HISTORY, REJECTIONS, LAPSES, LEDGER = "history", "rejections", "lapses", "ledger"
RELEASES = "releases"
"""The lines that say which upload is a release; only where releases lie in a bucket."""

JOURNAL = "journal.jsonl"
"""The object that all records are lines of."""
_COPY = ".journal.jsonl"
_MARK = ".journal.tag"
_LOCK_WAIT_S = 60.0
_TRIES = 50

T = TypeVar("T")


class RecordsError(OfflineDqnError):
    """Records of the releases that cannot be read, or that are not what they were."""


class OvertakenError(OfflineDqnError):
    """Somebody else has decided something since this decision was begun."""


@dataclass(frozen=True)
class Seen:
    """The state on which a decision is taken.

    Attributes:
        content: the whole journal.
        tag: of the object; None where there is none yet.
    """

    content: bytes = b""
    tag: str | None = None


@dataclass(frozen=True)
class _Mark:
    """What the journal was when it was last read, kept beside its copy: the copy's own bytes may be altered later.

    Attributes:
        sha256: of its content, in hexadecimal.
        n_bytes: of its content.
        tag: of the object.
    """

    sha256: str = ""
    n_bytes: int = 0
    tag: str = ""

    @staticmethod
    def of(seen: Seen) -> _Mark:
        return _Mark(hashlib.sha256(seen.content).hexdigest(), len(seen.content), seen.tag or "")

    def begins(self, content: bytes) -> bool:
        """Whether what was read then is the beginning of `content`."""
        return hashlib.sha256(content[: self.n_bytes]).hexdigest() == self.sha256


class Records(Protocol):
    """Where records are read from and appended to."""

    def refresh(self) -> Seen:
        """Brings the folder up to what stands, and returns that."""

    def append(self, record: str, line: Mapping[str, Any], seen: Seen) -> None:
        """Adds a line to a record, through to the disk, where nothing was decided since `seen`.

        Raises:
            OvertakenError: something was. Nothing is written.
        """


@dataclass(frozen=True)
class FolderRecords:
    """Files of JSON lines; the caller holds the lock that keeps others from appending."""

    folder: Path

    def refresh(self) -> Seen:
        """The files are what stands."""
        return Seen()

    def append(self, record: str, line: Mapping[str, Any], seen: Seen) -> None:
        """Adds a line to a file."""
        del seen  # nobody else can have decided anything
        append_record(self.folder / f"{record}.jsonl", line)


@dataclass(frozen=True)
class SharedRecords:
    """The journal in a bucket, and its copy in a folder."""

    behind: BucketFolder
    follow: Callable[[BucketFolder, list[dict[str, Any]]], None]
    """Brings the releases in the folder up to the lines about them, before the records name them."""

    def refresh(self) -> Seen:
        """Fetches what is new.

        Raises:
            RecordsError: the journal lacks lines that this machine has seen, or cannot be read.
            ObjectStoreError: the bucket cannot be asked.
        """
        with self._copying():
            return self._refresh()

    def _refresh(self) -> Seen:
        folder = self.behind.folder
        copy, mark = _copy_in(folder)
        known = Seen(copy, mark.tag or None)
        if _Mark.of(known) != mark:
            known = Seen()
        found = self.behind.store.find(JOURNAL)
        if found is None or found.tag != known.tag:
            known = self._fetched()
            self._refuse_rewritten(copy, mark, known)
        lines = _parsed(known.content, self.behind.name_of(JOURNAL))
        self.follow(self.behind, [line for line in lines if line["record"] == RELEASES])
        for record in (REJECTIONS, LAPSES, LEDGER, HISTORY):
            content = "".join(f"{json.dumps(line['line'])}\n" for line in lines if line["record"] == record)
            path = folder / f"{record}.jsonl"
            if content.encode() != (path.read_bytes() if path.exists() else b""):
                write_durably(path, content)
        if known.content:
            write_durably(folder / _COPY, known.content)
            # Last: with an older one, everything is done again.
            write_durably(folder / _MARK, json.dumps(asdict(_Mark.of(known))))
        return known

    def append(self, record: str, line: Mapping[str, Any], seen: Seen) -> None:
        """Adds a line to the journal."""
        added = entry(record, line)
        own = str(added["id"])
        content = seen.content + json.dumps(added).encode() + b"\n"
        store = self.behind.store
        if seen.tag is None:
            done = store.put_if_absent(JOURNAL, content)
        else:
            done = store.put_if_match(JOURNAL, content, seen.tag)
        with self._copying():
            # An answer may have been lost on its way, and others have appended behind our line since.
            if not done and own.encode() not in self._fetched().content:
                raise OvertakenError("Something else was decided at the same moment; nothing was written.")
            self._refresh()

    def _fetched(self) -> Seen:
        try:
            return Seen(*self.behind.store.get_tagged(JOURNAL))
        except ObjectMissingError:
            return Seen()

    def _refuse_rewritten(self, copy: bytes, mark: _Mark, found: Seen) -> None:
        # Either of the two may be gone or altered, which is no fault of the bucket: the other one says what was read.
        by_copy = bool(copy or mark == _Mark()) and found.content.startswith(copy)
        if not by_copy and not mark.begins(found.content):
            raise RecordsError(
                f"{self.behind.name_of(JOURNAL)} lacks decisions that this machine has seen in it: it was deleted, "
                "altered or set back. Nothing is decided on it. Bring its newest version back, if the bucket keeps "
                f"versions: {self.behind.folder / _COPY} holds what this machine has seen of it. If it was set back on "
                f"purpose, delete the folder {self.behind.folder}: it is a copy, and fills again."
            )

    def _copying(self) -> AbstractContextManager[None]:
        folder = self.behind.folder
        return exclusive_lock(folder / ".copy.lock", f"The copy of the releases in {folder}", wait_s=_LOCK_WAIT_S)


def entry(record: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a record as the journal has it, under an id of its own."""
    return {"record": record, "line": dict(line), "id": uuid.uuid4().hex, "appended_at": datetime.now(UTC).isoformat()}


def decide(act: Callable[[], T]) -> T:
    """Takes a decision, again from its beginning whenever somebody else was faster.

    Raises:
        OvertakenError: after fifty times.
    """
    for _ in range(_TRIES - 1):
        try:
            return act()
        except OvertakenError:
            continue
    return act()


def _parsed(content: bytes, where: str) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in content.splitlines()]
        for line in lines:
            line["record"], line["line"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordsError(
            f"{where} cannot be read ({type(error).__name__}: {error}). It says what was decided, and nothing is "
            "decided without it: bring its former version back, if the bucket keeps versions, or restore it."
        ) from error
    return lines


def seen_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of the journal that this machine has seen.

    Raises:
        RecordsError: the copy is not what was read from the bucket.
    """
    copy, mark = _copy_in(folder)
    if copy and _Mark.of(Seen(copy, mark.tag)) != mark:
        raise RecordsError(
            f"{folder / _COPY} is not what this machine has read from the bucket: it was altered, or a crash cut off "
            "its renewal. Run `offline-dqn releases`: it fetches the journal again."
        )
    return _parsed(copy, str(folder / _COPY))


def _copy_in(folder: Path) -> tuple[bytes, _Mark]:
    """The copy of the journal in a folder, and the mark beside it; empty ones where there are none."""
    copy = (folder / _COPY).read_bytes() if (folder / _COPY).exists() else b""
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
        return copy, _Mark(str(mark["sha256"]), int(mark["n_bytes"]), str(mark["tag"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return copy, _Mark()
