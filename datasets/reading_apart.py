"""Log files of a batch read apart: each group of files into a stage of its own, wherever pieces are worked out.

What is read of a file hangs on what becomes of the files before it: the same bytes are taken once, and those of a
damaged file not at all. So all files are looked at first, as if each will be read well; those that go on from an
earlier one of the batch wait for it and are read afterwards, as if nothing had been spread. The rows of the others are
written as Parquet beside each other into the folder of the batch, from where its stage takes them in with the ordinals
that they would have had. The lake is therefore the same, byte by byte.

The privacy key does not travel: a worker takes it from its own environment.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from datasets.consumed import Consumed, History, Look
from datasets.contract import Contract
from datasets.duck import duck, literal
from datasets.logfiles import LogFileError
from datasets.privacy import KEY_VARIABLE, PrivacyError, PrivacyKey, privacy_key
from datasets.reading import Found, Logs, consumed_part, stage_path
from datasets.spreading import NotSharedError, Spread
from datasets.staging import ReadFile, Source, Stage
from datasets.suite_process import warm_up

_BLOCK_BYTES = 1 << 20
"""Bytes of a log that are held at once while its digest is taken."""

_REMEDY = (
    "Workers read logs where they lie and write their rows into the folder of the lake: mount the workspace, and logs "
    "that lie elsewhere, under the same path on every machine, or leave [engine] address out. Nothing was taken in."
)


@dataclass(frozen=True)
class Group:
    """Files that one piece reads.

    Attributes:
        sources: their unread parts.
        n_bytes: of all of them, by which the stage is placed.
    """

    sources: tuple[Source, ...]
    n_bytes: int


@dataclass(frozen=True)
class ReadApart:
    """What reading one file of a group brought.

    Attributes:
        read: its rows; None where nothing of it was taken.
        problem: why not: the file is damaged.
        unseen: why not: this is not the file that was looked at.
    """

    read: ReadFile | None = None
    problem: str = ""
    unseen: str = ""


@dataclass(frozen=True)
class GroupRead:
    """What reading a group brought.

    Attributes:
        host: where it was read.
        files: in the order of the group.
        rows, bad: Parquet files with their sizes in bytes; none where there is no such row.
        dropped: columns of the logs that the contract does not name.
    """

    host: str
    files: tuple[ReadApart, ...]
    rows: tuple[tuple[Path, int], ...]
    bad: tuple[tuple[Path, int], ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class GroupReader:
    """Reads a group of files; can be pickled, and holds no secret.

    Attributes:
        contract, kind, latest: of the stage.
        folder: of the batch.
        memory: limit of the memory of one stage.
        key_check: tells the privacy key from others; None where the contract hides nothing.
    """

    contract: Contract
    kind: str
    folder: Path
    latest: datetime | None
    memory: str
    key_check: str | None

    def __call__(self, group: Group) -> GroupRead:
        """What the files hold, its rows written into a folder of their own.

        Raises:
            NotSharedError: the folder of the batch is not seen here.
            PrivacyError: the privacy key is missing here, or another one.
        """
        key = self._key()
        folder = self.folder / f"group-{secrets.token_hex(8)}"  # a piece may be begun anew by another worker
        try:
            folder.mkdir()
        except (FileNotFoundError, PermissionError) as error:
            raise NotSharedError(
                f"The worker on {_host()} cannot write to {self.folder}: {error.strerror}. {_REMEDY}"
            ) from error
        kept = folder / "rows"
        kept.mkdir()
        try:
            return self._read(group, folder, kept, key)
        finally:
            for left in folder.iterdir():
                if left != kept:
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def _read(self, group: Group, folder: Path, kept: Path, key: PrivacyKey | None) -> GroupRead:
        database = stage_path(folder, [group.n_bytes])
        with duck(database, memory=self.memory, spill=folder / "spill") as connection:
            connection.execute("SET threads = 1")  # as every piece: the others are at work beside it
            stage = Stage(connection, self.contract, self.kind, folder, latest=self.latest, key=key)
            files = [_read_one(stage, source) for source in group.sources]
            stage.finish_reading()
            again = [stage.read_again.get(source.name) for source in group.sources]
            files = [_replaced(file, other) for file, other in zip(files, again, strict=True)]
            return GroupRead(
                host=_host(),
                files=tuple(files),
                rows=_written(stage, stage.rows_sql, kept / "rows.parquet"),
                bad=_written(stage, "bad", kept / "bad.parquet"),
                dropped=tuple(sorted(stage.dropped)),
            )

    def _key(self) -> PrivacyKey | None:
        if self.key_check is None:
            return None
        try:
            key = privacy_key()
        except PrivacyError as error:
            raise PrivacyError(f"On the worker on {_host()}: {error}") from error
        if key.check != self.key_check:
            raise PrivacyError(
                f"The worker on {_host()} has another key in {KEY_VARIABLE} than the command that ingests: the same "
                "subject would get two hashes. Nothing was taken in. Start its workers with the same key."
            )
        return key


def read_ahead(
    stage: Stage,
    logs: Logs,
    known: Iterable[Consumed],
    reader: Callable[[Group], GroupRead],
    spread: Spread,
    on_rows: Callable[[int], None],
    *,
    elsewhere: bool,
) -> dict[int, Found]:
    """Reads files into the stage that hang on no other file of the batch, by groups.

    Args:
        known: what earlier batches have consumed.
        reader: a `GroupReader` for this stage.
        spread: works out the groups.
        on_rows: told how many rows were read.
        elsewhere: whether other machines do so. On this one plain JSON Lines are left out: DuckDB reads them with every
            core already, and to write their rows down for it would cost more.

    Returns:
        What became of files, by number; the others are to be read one after the other, with what is known then.

    Raises:
        NotSharedError: a worker does not see a file, or its rows are not seen here.
    """
    if len(logs.groups) < 2:
        return {}
    found = _look_ahead(logs, known)
    groups = [_group(logs, numbers, found, elsewhere) for numbers in logs.groups]
    groups = [group for group in groups if group.sources]
    if len(groups) < 2:  # one by itself is read faster here, by every core
        return found
    warm_up()  # the suite's process loads its libraries while the logs are read
    for group, read in zip(groups, spread("group", reader, groups), strict=True):
        for source, file in zip(group.sources, read.files, strict=True):
            found[source.number] = _found(source, file, read.host)
        rows, bad = ([_seen(path, size, read.host) for path, size in files] for files in (read.rows, read.bad))
        stage.take_in(group.sources, rows, bad, read.dropped)
        on_rows(sum(file.read.n_rows for file in read.files if file.read is not None))
    return found


def _look_ahead(logs: Logs, known: Iterable[Consumed]) -> dict[int, Found]:
    """What is new in each file that goes on from no other file of the batch, whatever becomes of those."""
    history, batch = History(known), set[Consumed]()
    found: dict[int, Found] = {}
    for group in logs.groups:
        for number in group:
            try:
                look = logs.look(number, history)
            except LogFileError as error:
                found[number] = Found(problem=str(error))
                continue
            if _hangs_on(look, batch):
                possible = look.ends  # where it ends hangs on those before it
            elif look.unread is None:
                found[number] = Found()
                continue
            else:
                source = logs.source(number, look.unread, is_first=number == group.start)
                found[number] = Found(source)
                possible = (consumed_part(source, look.unread.n_lines),)
            for end in possible:
                history.add(end)
                batch.add(end)
    return found


def _hangs_on(look: Look, batch: set[Consumed]) -> bool:
    """Whether what is new in a file hangs on one of the batch: to go on from nothing is to begin, but for a file of
    the same bytes, whose last line is then whole."""
    known = look.known
    return known is not None and known in batch and (known.n_bytes > 0 or known.digest_seen == look.digest_seen)


def _group(logs: Logs, numbers: Iterable[int], found: Mapping[int, Found], elsewhere: bool) -> Group:
    sources = [found[number].source for number in numbers if number in found]
    chosen = [s for s in sources if s is not None and (elsewhere or s.log.format != "jsonl" or s.log.compression)]
    return Group(tuple(chosen), sum(logs.sizes[source.number] for source in chosen))


def _read_one(stage: Stage, source: Source) -> ReadApart:
    unseen = _unseen(source)
    if unseen:
        return ReadApart(unseen=unseen)
    try:
        return ReadApart(stage.read(source))
    except LogFileError as error:
        return ReadApart(problem=str(error))


def _replaced(file: ReadApart, again: ReadFile | LogFileError | None) -> ReadApart:
    if again is None:
        return file
    return ReadApart(problem=str(again)) if isinstance(again, LogFileError) else ReadApart(again)


def _written(stage: Stage, relation: str, path: Path) -> tuple[tuple[Path, int], ...]:
    group = f", ROW_GROUP_SIZE {stage.rows_per_group}" if stage.rows_per_group else ""
    copied = f"COPY (SELECT * FROM {relation}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION lz4{group})"
    ((n_rows,),) = stage.connection.execute(copied).fetchall()
    return ((path, path.stat().st_size),) if n_rows else ()


def _unseen(source: Source) -> str:
    """How the bytes that would be read here differ from those that were looked at; "" where they do not.

    A signature was asked of those, so no byte of a file goes unseen: the part of it that is read, or all of one that is
    read whole.
    """
    end, digest = source.unread.end, hashlib.sha256()
    try:
        with source.log.path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            is_long_enough = n_bytes >= end if source.log.grows else n_bytes == end
            left = end if is_long_enough else 0
            while left and (block := file.read(min(_BLOCK_BYTES, left))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        return error.strerror or str(error)
    if not is_long_enough or digest.hexdigest() != source.unread.digest:
        return f"it is another file there, of {n_bytes} bytes"
    return ""


def _found(source: Source, file: ReadApart, host: str) -> Found:
    if not file.unseen:
        return Found(source, file.read, file.problem)
    here = _unseen(source)
    if here:
        return Found(problem=f"{source.log.path} cannot be read: {here}. Nothing of it was taken.")
    raise NotSharedError(f"The worker on {host} cannot read {source.log.path}: {file.unseen}. {_REMEDY}")


def _seen(path: Path, size: int, host: str) -> Path:
    try:
        n_bytes = path.stat().st_size
    except OSError:
        n_bytes = -1
    if n_bytes != size:
        raise NotSharedError(f"What the worker on {host} wrote to {path} is not seen here. {_REMEDY}")
    return path


def _host() -> str:
    return os.uname().nodename
