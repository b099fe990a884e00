"""A lake in a bucket: its objects, and the journal whose next number decides which commit comes next.

What commits is one conditional write: the entry with the next number, put only if nobody has put that number. Its files
lie in the bucket before it, under keys that are never used again, so an entry that is there is whole, and what no entry
names was never part of the lake. No entry is ever deleted: a writer that slept for a day must find its number taken.

    origin.json            the lake's first state; putting it, if absent, makes the lake
    journal/NUMBER.json    one entry per commit
    checkpoints/NUMBER.json    the whole state at some commits, so that a new machine need not read every entry
    tables/TABLE/...       Parquet files
    beside/...             files beside the tables
    lease.json             who is at work, so that others wait instead of working in vain; nothing rests on it
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from datasets.journal import LakeError, StagedFile
from datasets.lake_state import Entry, LakeFile, LakeState, SideFile
from datasets.object_store import ObjectMissingError, ObjectStore, ObjectStoreError

FORMAT = 1
"""Of the journal. Another one is refused, never guessed at."""

_ORIGIN, _JOURNAL, _CHECKPOINTS, _TABLES, _BESIDE = "origin.json", "journal", "checkpoints", "tables", "beside"

_CHECKPOINT_EVERY = 20
"""Commits after which the whole state is written."""

_TRANSFERS = 8
"""Objects that travel at the same time."""

_CLOCKS = timedelta(seconds=60)
"""How far the clocks of a store's own machines may lie apart."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class CommitConflictError(LakeError):
    """Another machine has committed since this one last looked. Nothing of the commit is in the lake."""


class OtherLakeError(LakeError):
    """The bucket holds another lake than the one that a folder is a copy of, or none."""


@dataclass(frozen=True)
class News:
    """What a machine that knows an earlier state, or none, has to learn.

    Attributes:
        state: the lake now.
        tag: the store's mark of the entry that led to it.
        same_rows: whether the tables' rows are as they were.
        purge: tables of which what they no longer hold has to leave the disk.
        gone: names of files that left, by table; also of those that are no objects.
    """

    state: LakeState
    tag: str
    same_rows: bool
    purge: frozenset[str]
    gone: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class LakeBucket:
    """The objects of one lake."""

    store: ObjectStore

    def __str__(self) -> str:
        return str(self.store.address)

    def news(self, known: LakeState | None, tag: str, *, until: int | None = None) -> News | None:
        """What has happened since the known state; None where nothing has, or where there is no lake.

        Args:
            known: None for a machine that knows nothing.
            tag: of the known state.
            until: the last commit that is asked for.

        Raises:
            OtherLakeError: the bucket does not hold the commit that led to the known state.
            LakeError: an entry is missing.
        """
        if known is None:
            start, tag = self._start()
            if start is None:
                return None
        else:
            start = known
        listed = self.store.list(_JOURNAL, after=_journal_key(start.number - 1))
        if listed and listed[0].key == _journal_key(start.number):
            standing, *listed = listed
            self._check_same(known, tag, standing.tag)
        elif known is not None:
            origin = self.store.find(_ORIGIN)
            self._check_same(known, tag, origin.tag if origin and self._begins_at(start) else "")
        numbers = [int(Path(found.key).stem) for found in listed]
        numbers = [number for number in numbers if until is None or number <= until]
        if not numbers and known is not None:
            return None
        if numbers != list(range(start.number + 1, start.number + 1 + len(numbers))):
            raise LakeError(
                f"The journal of the lake {self} has a gap behind commit {start.number}: it goes on with "
                f"{', '.join(map(str, numbers[:5]))}. Somebody has deleted entries. Restore {_JOURNAL}/ in the bucket "
                "from a backup or the bucket's own versions."
            )
        entries = _at_once(self._entry, numbers)
        gone: dict[str, frozenset[str]] = {}
        for entry in entries:
            for table, names in entry.removed.items():
                gone[table] = gone.get(table, frozenset()) | frozenset(names)
        return News(
            state=start.after(entries),
            tag=listed[len(numbers) - 1].tag if numbers else tag,
            same_rows=known is not None and all(entry.same_rows for entry in entries),
            purge=frozenset(table for entry in entries for table in entry.purge),
            gone=gone,
        )

    def origin(self) -> News | None:
        """The lake at its first state, as whoever made it has learned it; None where there is no lake."""
        try:
            origin, tag = self.store.get_tagged(_ORIGIN)
        except ObjectMissingError:
            return None
        state = LakeState.from_json(_checked(json.loads(origin), f"{self}/{_ORIGIN}")["state"])
        return News(state, tag, same_rows=False, purge=frozenset(), gone={})

    def found(self, state: LakeState) -> None:
        """Makes the lake, at its first state.

        Raises:
            CommitConflictError: there is one.
            ObjectStoreError: the store does not keep the conditions of a write.
        """
        self.store.check_conditions()
        content = json.dumps({"format": FORMAT, "state": state.to_json()}).encode()
        if not self.store.put_if_absent(_ORIGIN, content):
            raise CommitConflictError(f"There is a lake in {self} since a moment ago. Run the same command again.")

    def publish(self, entry: Entry, before: LakeState) -> None:
        """Commits: from here on the entry is part of the lake, for every machine.

        Raises:
            CommitConflictError: another commit has that number. Nothing has happened.
            StoreUnreachableError: the store did not answer, and the entry may be there or not.
        """
        content = json.dumps({"format": FORMAT, "lake_id": before.lake_id, "entry": entry.to_json()}).encode()
        if not self.store.put_if_absent(_journal_key(entry.number), content):
            raise CommitConflictError(
                f"Another machine has made commit {entry.number} of the lake {self} meanwhile. Nothing was changed. "
                "Run the same command again."
            )
        if entry.number % _CHECKPOINT_EVERY == 0:
            with suppress(ObjectStoreError):  # the commit is made, and the next checkpoint serves as well
                self._write_checkpoint(before.after([entry]))

    def upload_files(self, staged: Mapping[str, Sequence[StagedFile]]) -> dict[str, tuple[LakeFile, ...]]:
        """Brings Parquet files into the bucket; they are part of nothing yet."""

        def upload(named: tuple[str, StagedFile]) -> tuple[str, LakeFile]:
            table, file = named
            key = f"{_TABLES}/{table}/{file.name.removesuffix('.parquet')}.{_nonce()}.parquet"
            self.store.put(key, file.path)
            size = file.path.stat().st_size
            return table, LakeFile(file.name, key, digest_of(file.path), size, file.n_rows, dict(file.partition))

        uploaded = _at_once(upload, [(table, file) for table, files in staged.items() for file in files])
        return {table: tuple(file for of, file in uploaded if of == table) for table in staged if staged[table]}

    def upload_side(self, path: str, content: bytes | Path) -> SideFile:
        """Brings a file that lies beside the tables into the bucket; it is part of nothing yet."""
        key = f"{_BESIDE}/{path}.{_nonce()}"
        self.store.put(key, content)
        if isinstance(content, Path):
            return SideFile(key, digest_of(content), content.stat().st_size)
        return SideFile(key, hashlib.sha256(content).hexdigest(), len(content))

    def download(self, wanted: Iterable[tuple[LakeFile | SideFile, Path]]) -> None:
        """Writes objects to files, each whole and with the bytes that were committed, or not at all.

        Raises:
            ObjectMissingError: one is gone: a later commit may have removed it.
            LakeError: one holds other bytes.
        """

        def fetch(of: tuple[LakeFile | SideFile, Path]) -> None:
            file, path = of
            beside = path.with_name(f".{path.name}.arriving")
            self.store.download(file.key, beside)
            found = digest_of(beside)
            if found != file.digest:
                beside.unlink()
                raise self._altered(file, found)
            beside.replace(path)

        _at_once(fetch, list(wanted))

    def content_of(self, file: SideFile) -> bytes:
        """The bytes of a small file, as they were committed.

        Raises:
            ObjectMissingError: it is gone: a later commit may have removed it.
            LakeError: it holds other bytes.
        """
        content = self.store.get(file.key)
        found = hashlib.sha256(content).hexdigest()
        if found != file.digest:
            raise self._altered(file, found)
        return content

    def _altered(self, file: LakeFile | SideFile, found: str) -> LakeError:
        return LakeError(
            f"{self}/{file.key} was altered: it has SHA-256 {found[:12]}…, and {file.digest[:12]}… was committed. "
            "Restore it from a backup or the bucket's own versions; nothing was taken from it."
        )

    def collect_garbage(self, now: LakeState, *, dry_run: bool = False) -> list[str]:
        """Deletes objects that no state will ever rest on again: of removed files, and of commits that came to nothing.

        Whoever prepares commit n+1 has seen commit n before it uploads. So what is older than commit n, and not part of
        it, belongs to nobody; nor does what an entry has named, since no key is used twice.

        Returns:
            Their keys.
        """
        latest = self.store.find(_journal_key(now.number)) or self.store.find(_ORIGIN)
        if latest is None:
            return []
        kept, before = now.keys(), latest.modified_at - _CLOCKS
        unnamed = [f for f in [*self.store.list(_TABLES), *self.store.list(_BESIDE)] if f.key not in kept]
        young = [found for found in unnamed if found.modified_at >= before]
        named = self._named_since(min(f.modified_at for f in young) - _CLOCKS, now.number) if young else set()
        garbage = [found.key for found in unnamed if found.modified_at < before or found.key in named]
        old = [found.key for found in self.store.list(_CHECKPOINTS)][
            :-2
        ]  # one is read, the newest may be in the making
        if not dry_run:
            self.store.delete([*garbage, *old])
        return garbage

    def _named_since(self, at: datetime, until: int) -> set[str]:
        """Keys that entries have named which were written at an instant or later."""
        young = [f for f in self.store.list(_JOURNAL) if f.modified_at >= at and int(Path(f.key).stem) <= until]
        entries = _at_once(self._entry, [int(Path(found.key).stem) for found in young])
        files = {file.key for entry in entries for of_table in entry.added.values() for file in of_table}
        return files | {side.key for entry in entries for side in entry.sides.values() if side is not None}

    def agree(self, name: str, content: bytes) -> bytes:
        """What all machines hold of a thing that is said once and never changes: this content, or that of the first."""
        self.store.put_if_absent(name, content)
        return self.store.get(name)

    def _start(self) -> tuple[LakeState | None, str]:
        """The newest state that is written down whole, and the tag of the entry that led to it."""
        checkpoints = self.store.list(_CHECKPOINTS)
        if checkpoints:
            state = LakeState.from_json(self._read(checkpoints[-1].key)["state"])
            entry = self.store.find(_journal_key(state.number))
            return state, entry.tag if entry else ""
        origin = self.origin()
        return (origin.state, origin.tag) if origin is not None else (None, "")

    def _begins_at(self, state: LakeState) -> bool:
        begins = self._read(_ORIGIN)["state"]
        return bool(begins["lake_id"] == state.lake_id and begins["number"] == state.number)

    def _check_same(self, known: LakeState | None, tag: str, standing: str) -> None:
        if known is not None and tag != standing:
            raise OtherLakeError(
                f"The bucket's lake {self} does not hold commit {known.number} of the lake that this machine has a "
                "copy of: the bucket was emptied, set back, or filled anew. Restore the bucket; or, to go on with what "
                "it holds, remove the copy."
            )

    def _entry(self, number: int) -> Entry:
        return Entry.from_json(self._read(_journal_key(number))["entry"])

    def _read(self, key: str) -> dict[str, Any]:
        return _checked(json.loads(self.store.get(key)), f"{self}/{key}")

    def _write_checkpoint(self, state: LakeState) -> None:
        content = json.dumps({"format": FORMAT, "state": state.to_json()}).encode()
        self.store.put(f"{_CHECKPOINTS}/{state.number:012d}.json", content)


def new_entry(number: int, **changes: Any) -> Entry:
    """An entry of this process, at this moment."""
    by = f"process {os.getpid()} on {socket.gethostname()}"
    return Entry(number, uuid.uuid4().hex, by, datetime.now(UTC).isoformat(), **changes)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(values: dict[str, Any], what: str) -> dict[str, Any]:
    if values.get("format") != FORMAT:
        raise LakeError(
            f"{what} has format {values.get('format')}, and this version of offline-dqn reads and writes {FORMAT}. "
            "Nothing was changed. Use the version that wrote it, or a newer one."
        )
    return values


def _journal_key(number: int) -> str:
    return f"{_JOURNAL}/{number:012d}.json" if number >= 0 else f"{_JOURNAL}/"


def _nonce() -> str:
    return uuid.uuid4().hex[:16]


def _at_once(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(_TRANSFERS) as workers:
        return list(workers.map(work, items))
