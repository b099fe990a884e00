"""The log files of a batch, read into its stage one after the other: which are new, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.consumed import Consumed, History, Look, look_at
from datasets.logfiles import LogFile, LogFileError, Unread, source_name
from datasets.signing import Signatures
from datasets.staging import SAMPLED_LINES, ReadFile, Source, Stage
from datasets.suite_process import warm_up

GROUP_BYTES = 32 << 20
"""Bytes of the consecutive files that make a group, by the size of JSON Lines that takes as long to read."""

_LARGE_BYTES = 1 << 30
"""Bytes of logs from which what is read of them is staged on the disk."""

_UNPACKED, _EXACT = 10, 10
"""Compressed files are taken for so many times their size, and what the fast reader does not read for so many more."""


@dataclass(frozen=True)
class Logs:
    """The log files of a batch, in the order in which they count.

    Attributes:
        files: of them.
        sizes: bytes of each, unpacked.
        base: folder that file names are stored relative to.
        signatures: that they have to bear; None where none is asked for.
    """

    files: Sequence[LogFile]
    sizes: Sequence[int]
    base: Path
    signatures: Signatures | None = None

    @property
    def groups(self) -> list[range]:
        """Numbers of the files of each group, cut by the files alone: consecutive ones up to GROUP_BYTES, and each
        larger one by itself."""
        starts, n_bytes = [0], 0
        for number, log in enumerate(self.files):
            size = self.sizes[number] * (1 if log.format == "jsonl" else _EXACT)
            if n_bytes and n_bytes + size > GROUP_BYTES:
                starts.append(number)
                n_bytes = 0
            n_bytes += size
        return [range(start, end) for start, end in zip(starts, [*starts[1:], len(self.files)], strict=True)]

    def name(self, number: int) -> str:
        """How a file is called in the lake."""
        return source_name(self.files[number].path, self.base)

    def look(self, number: int, history: History) -> Look:
        """What a file holds beyond `history`.

        Raises:
            LogFileError: it cannot be read, or does not bear the signature that is asked for.
        """
        look = look_at(self.files[number], history)
        if look.unread is not None and self.signatures is not None:
            problem = self.signatures.problem(self.files[number], look.digest_seen)
            if problem is not None:
                raise LogFileError(problem)
        return look

    def source(self, number: int, unread: Unread, *, is_first: bool) -> Source:
        """The unread part of a file.

        Args:
            is_first: of its group, so that many small files cost one sample.
        """
        return Source(number, self.files[number], unread, self.name(number), SAMPLED_LINES if is_first else 1)


def logs_of(files: Sequence[LogFile], base: Path, signatures: Signatures | None = None) -> Logs:
    """The log files of a batch as they lie there now."""
    sizes = [log.path.stat().st_size * (_UNPACKED if log.compression else 1) for log in files]
    return Logs(files, sizes, base, signatures)


def stage_path(folder: Path, sizes: Iterable[int]) -> Path | None:
    """Where the database of a stage for files of these sizes lies; None for the memory.

    There a stage is faster; one that is larger than the memory has to lie on the disk to be built at all.
    """
    return folder / "stage.duckdb" if sum(sizes) > _LARGE_BYTES else None


@dataclass(frozen=True)
class Found:
    """What became of a log file.

    Attributes:
        source: its unread part; None where there is none, or a problem.
        read: what reading it brought; None where it was not read.
        problem: why nothing of it was taken.
    """

    source: Source | None = None
    read: ReadFile | None = None
    problem: str = ""


@dataclass(frozen=True)
class Taken:
    """A file whose rows are staged."""

    source: Source
    read: ReadFile

    @property
    def consumed(self) -> Consumed:
        """What is remembered of it, so that it is not read again."""
        return consumed_part(self.source, self.read.last_line)


def consumed_part(source: Source, last_line: int) -> Consumed:
    """What is remembered of a file that was read up to its last line that held a row."""
    unread = source.unread
    n_lines = unread.n_lines if source.log.grows else last_line
    return Consumed(unread.digest, unread.end, n_lines, unread.digest_seen, unread.head)


@dataclass(frozen=True)
class Reading:
    """What became of all log files, by name.

    Attributes:
        taken: those whose rows are staged.
        unchanged: that were read before.
        empty: without any row.
        damaged: with the problem of each.
    """

    taken: list[Taken]
    unchanged: list[str]
    empty: list[str]
    damaged: list[tuple[str, str]]


def read_logs(stage: Stage, logs: Logs, known: Iterable[Consumed], ahead: Mapping[int, Found]) -> Reading:
    """Reads what is new of all files into the stage. The same bytes are taken once, also within the batch.

    Args:
        known: what earlier batches have consumed.
        ahead: what is known already of some of the files.
    """
    history = History(known)
    firsts = {group.start for group in logs.groups}
    reading = Reading([], [], [], [])
    for number in range(len(logs.files)):
        found = ahead.get(number) or _look(logs, number, history, is_first=number in firsts)
        if found.source is not None and found.read is None and not found.problem:
            found = _read(stage, found.source)
        name, source, read = logs.name(number), found.source, found.read
        if found.problem:
            reading.damaged.append((name, found.problem))
        elif source is None or read is None:
            reading.unchanged.append(name)
        elif not read.n_rows and not source.unread.n_pending:  # it grew by blank lines, or never held a row
            (reading.unchanged if source.unread.start else reading.empty).append(name)
        else:
            reading.taken.append(Taken(source, read))
            history.add(reading.taken[-1].consumed)
    stage.finish_reading()
    for place, taken in reversed(list(enumerate(reading.taken))):
        again = stage.read_again.get(taken.source.name)
        if isinstance(again, LogFileError):
            reading.damaged.append((taken.source.name, str(again)))
            del reading.taken[place]
        elif again is not None:
            reading.taken[place] = replace(taken, read=again)
    return reading


def _look(logs: Logs, number: int, history: History, *, is_first: bool) -> Found:
    try:
        unread = logs.look(number, history).unread
    except LogFileError as error:
        return Found(problem=str(error))
    return Found(logs.source(number, unread, is_first=is_first) if unread is not None else None)


def _read(stage: Stage, source: Source) -> Found:
    warm_up()  # the suite's process loads its libraries while the log is read
    try:
        return Found(source, stage.read(source))
    except LogFileError as error:
        return Found(problem=str(error))
