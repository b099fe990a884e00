"""Log files: which there are, what is new in them, and their rows in bounded chunks with the raw text kept."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from datasets.errors import OfflineDqnError

Format = Literal["jsonl", "csv", "parquet", "arrow"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSIONS = {".gz", ".zst"}
_CHUNK_ROWS = 100_000
_CHUNK_BYTES = 64 << 20
LONGEST_LINE = 16 << 20
"""Bytes; a longer line of JSON is cut down to what is read of it, because SQL would copy it many times."""
_MAX_RECORD_LINES = 1000
"""Physical lines of one CSV record; a quote that stays open for longer is taken for a stray one."""

LINE, RAW, PROBLEM = "__line", "__raw", "__problem"
"""Columns of a chunk beside the log's own: line or row number from 1, raw text, and why the row cannot be read."""


UNREADABLE = "the line "
"""How the reason begins of a row that no contract could read."""

_NOT_UTF8 = f"{UNREADABLE}is not UTF-8 text"


class LogFileError(OfflineDqnError):
    """A path that holds no log, or a log whose container is damaged."""


@dataclass(frozen=True)
class LogFile:
    """One file of decision logs.

    Attributes:
        path: absolute path.
        format: how rows are written.
        compression: "" or the file's compressing suffix.
    """

    path: Path
    format: Format
    compression: str

    @property
    def grows(self) -> bool:
        """Whether rows may still be appended: an uncompressed text file."""
        return self.format in {"jsonl", "csv"} and not self.compression


@dataclass(frozen=True)
class Unread:
    """The part of a file that is to be read now.

    Attributes:
        start: bytes to skip, consumed by an earlier batch.
        end: byte to stop at; a last line without its newline may stay behind.
        n_lines_before: lines in the skipped part.
        digest: SHA-256 of the bytes up to `end`.
        digest_seen: SHA-256 of the whole file.
        n_pending: 1 where a last line without newline waits for its rest, else 0.
        n_lines: lines that end before `end`, blank ones included.
        head: SHA-256 of the first HEAD_BYTES, or of all bytes up to `end` if they are fewer.
    """

    start: int
    end: int
    n_lines_before: int
    digest: str
    digest_seen: str
    n_pending: int
    n_lines: int
    head: str


def find_log_files(paths: Iterable[Path]) -> list[LogFile]:
    """The log files at and below `paths`, sorted; hidden files and files of other kinds in folders are passed over.

    A folder may be a link itself; a link in it that leads out of it is refused. Whoever may put logs there could
    otherwise have any file read that this process can read, and find its rows in lake or quarantine.

    Raises:
        LogFileError: a path does not exist, is a file of an unknown kind, is a folder without any log, or holds a link
            that leads out of it.
    """
    found: dict[Path, LogFile] = {}
    for path in paths:
        if path.is_dir():
            below = [p for p in sorted(path.rglob("*")) if p.is_file() and not _is_hidden(p, path)]
            _refuse_leading_out(below, path)
            logs = [log for log in map(_as_log_file, below) if log is not None]
            if not logs:
                raise LogFileError(
                    f"{path} holds no log: looked for files ending in {', '.join(_FORMATS)} (text also with .gz, .zst) "
                    f"and found {len(below)} other files. Put logs there or name another path."
                )
        elif path.is_file():
            log = _as_log_file(path)
            if log is None:
                raise LogFileError(f"{path} is no log that can be read: it ends in none of {', '.join(_FORMATS)}.")
            logs = [log]
        else:
            raise LogFileError(f"{path} does not exist. Name a log file or a folder of log files.")
        found.update({log.path: log for log in logs})
    return list(found.values())


def _refuse_leading_out(files: Sequence[Path], folder: Path) -> None:
    """`rglob` enters no linked folder, so the links among the files are all there are."""
    inside = folder.resolve()
    out = [p for p in files if p.is_symlink() and not p.resolve().is_relative_to(inside)]
    if out:
        listed = ", ".join(str(p) for p in out[:5]) + (f" and {len(out) - 5} more" if len(out) > 5 else "")
        raise LogFileError(
            f"{listed}: {'a link leads' if len(out) == 1 else 'links lead'} out of {folder}, and whoever may put logs "
            "there shall not choose what else is read. Nothing was taken. Put the file itself there, or name it: "
            "offline-dqn ingest PATH."
        )


def other_files(paths: Iterable[Path]) -> list[Path]:
    """Files in the folders among `paths` that are passed over because they end in no kind of log; hidden ones aside."""
    folders = [path for path in paths if path.is_dir()]
    below = (p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file() and not _is_hidden(p, folder))
    return [path for path in below if _as_log_file(path) is None]


def holds_logs(folder: Path) -> bool:
    """Whether `find_log_files` would find a log in this folder."""
    return any(p.is_file() and not _is_hidden(p, folder) and _as_log_file(p) is not None for p in folder.rglob("*"))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def log_format(path: Path) -> Format | None:
    """How rows are written in a file of this name; None where it is no log."""
    log = _as_log_file(path)
    return log.format if log is not None else None


def _as_log_file(path: Path) -> LogFile | None:
    suffixes = [s.lower() for s in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None or (compression and kind not in {"jsonl", "csv"}):
        return None
    return LogFile(path.absolute(), kind, compression)


def read_chunks(log: LogFile, unread: Unread) -> Iterator[pa.Table]:
    """The unread rows in chunks of bounded size.

    JSON Lines chunks have the columns LINE, RAW and PROBLEM. The others have the log's own columns too: CSV as text
    (null where empty), Parquet and Arrow as typed; there RAW is null, since the row itself can be written out.

    Raises:
        LogFileError: the container (gzip, zstd, Parquet, Arrow) is damaged or ends early.
    """
    with container_errors(log):
        if log.format == "jsonl":
            yield from _json_lines(log, unread)
        elif log.format == "csv":
            yield from _csv_rows(log, unread)
        else:
            yield from _typed_rows(log)


@contextmanager
def container_errors(log: LogFile) -> Iterator[None]:
    """Turns what a damaged container raises into an error that names the file.

    Raises:
        LogFileError: in place of the errors of gzip, zstd, Parquet, Arrow and the system.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # the disk's fault, not the file's
        raise _damaged(log, error) from error
    except (EOFError, zlib.error, pa.ArrowException) as error:
        raise _damaged(log, error) from error


def _damaged(log: LogFile, error: Exception) -> LogFileError:
    return LogFileError(
        f"{log.path} is damaged: {error}. Nothing of it was taken; put the whole file there and run it again."
    )


def open_unread(log: LogFile, unread: Unread) -> BinaryIO:
    """The unread part of a text file, decompressed."""
    if log.compression == ".gz":
        return gzip.open(log.path)  # type: ignore[return-value]  # a GzipFile reads like any binary file
    if log.compression == ".zst":
        import zstandard  # part of the extra `pipeline`; needed for .zst alone

        return io.BufferedReader(_CompleteZstd(log.path, zstandard))
    return io.BufferedReader(_Part(log.path, unread.start, unread.end))


class _Part(io.RawIOBase):
    """The bytes of a file from `start` to `end`."""

    def __init__(self, path: Path, start: int, end: int) -> None:
        self._file = path.open("rb")
        self._file.seek(start)
        self._left = end - start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader passes a memoryview
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _CompleteZstd(io.RawIOBase):
    """A zstd file as a stream that fails where a frame is cut short, which the library's own reader passes over."""

    def __init__(self, path: Path, zstandard: object) -> None:
        self._file = path.open("rb")
        self._new = zstandard.ZstdDecompressor().decompressobj  # type: ignore[attr-defined]  # typed as object: optional
        self._error = zstandard.ZstdError  # type: ignore[attr-defined]  # likewise
        self._frame = self._new()
        self._started = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader passes a memoryview
        while not self._ready:
            data = self._file.read(1 << 17)
            if not data:
                if self._started and not self._frame.eof:
                    raise EOFError("the compressed data end in the middle of a frame")
                return 0
            while data:
                if self._frame.eof:
                    self._frame = self._new()
                self._started = True
                try:
                    self._ready += self._frame.decompress(data)
                except self._error as error:
                    raise OSError(f"the compressed data are not valid: {error}") from error
                data = self._frame.unused_data
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def _lines(log: LogFile, unread: Unread) -> Iterator[tuple[str, bool]]:
    """Each line's text without its ending, and whether it was valid UTF-8 (if not, bad bytes show as \\xNN)."""
    with open_unread(log, unread) as file:
        for n, line in enumerate(file):
            body = line.rstrip(b"\r\n")
            if n == 0 and unread.start == 0:
                body = body.removeprefix(b"\xef\xbb\xbf")  # byte-order mark
            yield _decoded(body)


def _json_lines(log: LogFile, unread: Unread) -> Iterator[pa.Table]:
    numbers: list[int] = []
    texts: list[str] = []
    problems: list[str | None] = []
    n_bytes = 0
    for number, (text, valid) in enumerate(_lines(log, unread), start=unread.n_lines_before + 1):
        if not text.strip(" \t\r\n\v\f"):
            continue  # a blank line holds no row
        numbers.append(number)
        texts.append(text)
        problems.append(None if valid else _NOT_UTF8)
        n_bytes += len(text)
        if len(numbers) >= _CHUNK_ROWS or n_bytes >= _CHUNK_BYTES:
            yield _text_table(numbers, texts, problems)
            numbers, texts, problems, n_bytes = [], [], [], 0
    if numbers:
        yield _text_table(numbers, texts, problems)


def text_chunk(numbers: Sequence[int], lines: Iterable[bytes]) -> pa.Table:
    """A chunk of lines that are known by number."""
    decoded = [_decoded(line) for line in lines]
    problems = [None if valid else _NOT_UTF8 for _, valid in decoded]
    return _text_table(list(numbers), [text for text, _ in decoded], problems)


def _decoded(line: bytes) -> tuple[str, bool]:
    """A line's text, and whether it is valid UTF-8 (if not, bad bytes show as \\xNN)."""
    try:
        return line.decode("utf-8"), True
    except UnicodeDecodeError:
        return line.decode("utf-8", "backslashreplace"), False


def _text_table(numbers: list[int], texts: list[str], problems: list[str | None]) -> pa.Table:
    return pa.table(
        {
            LINE: pa.array(numbers, pa.int64()),
            RAW: pa.array(texts, pa.large_string()),
            PROBLEM: pa.array(problems, pa.string()),
        }
    )


def _csv_rows(log: LogFile, unread: Unread) -> Iterator[pa.Table]:
    header = _csv_header(log)
    if not header:
        return
    lines = _CsvLines(log, unread)
    if unread.start == 0:
        lines.next_record()
    rows: list[list[str | None]] = []
    numbers, raws, problems, n_bytes = [], [], [], 0
    while (record := lines.next_record()) is not None:
        first_line, raw, valid, fields, problem = record
        if not fields and problem is None:
            continue  # a blank line holds no row
        if not valid:
            problem = _NOT_UTF8
        elif problem is None and len(fields) != len(header):
            problem = f"{UNREADABLE}has {len(fields)} fields and the header has {len(header)}"
        rows.append([None] * len(header) if problem else [field or None for field in fields])
        numbers.append(first_line)
        raws.append(raw)
        problems.append(problem)
        n_bytes += len(raw)
        if len(rows) >= _CHUNK_ROWS or n_bytes >= _CHUNK_BYTES:
            yield _csv_table(header, rows, numbers, raws, problems)
            rows, numbers, raws, problems, n_bytes = [], [], [], [], 0
    if rows:
        yield _csv_table(header, rows, numbers, raws, problems)


class _CsvLines:
    """The physical lines of a CSV file, read record by record.

    A stray quote opens a field that runs to the next one, however far: such a line alone is bad, and what it would have
    swallowed is read again. A field may hold newlines, up to a record of _MAX_RECORD_LINES lines.
    """

    def __init__(self, log: LogFile, unread: Unread) -> None:
        self._source = enumerate(_lines(log, unread), start=unread.n_lines_before + 1)
        self._waiting: deque[tuple[int, tuple[str, bool]]] = deque()
        self._taken: list[tuple[int, tuple[str, bool]]] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._source, None)
        if line is None or len(self._taken) >= _MAX_RECORD_LINES:
            if line is not None:
                self._waiting.appendleft(line)
            raise StopIteration
        self._taken.append(line)
        return line[1][0] + "\n"

    def next_record(self) -> tuple[int, str, bool, list[str], str | None] | None:
        """Number of its first line, raw text, whether it is UTF-8, fields and problem; None at the end."""
        self._taken = []
        fields: list[str] = []
        problem = None
        try:
            fields = next(csv.reader(self, strict=True))
        except StopIteration:
            return None
        except csv.Error as error:
            self._waiting.extendleft(reversed(self._taken[1:]))
            del self._taken[1:]
            problem = f"{UNREADABLE}is not valid CSV: {error}"
        raw = "\n".join(text for _, (text, _) in self._taken)
        return self._taken[0][0], raw, all(valid for _, (_, valid) in self._taken), fields, problem


def _csv_header(log: LogFile) -> list[str]:
    whole = Unread(0, log.path.stat().st_size, 0, "", "", 0, 0, "")
    try:
        return _distinct(next(csv.reader(text + "\n" for text, _ in _lines(log, whole)), []))
    except csv.Error as error:
        raise LogFileError(f"{log.path} has no readable CSV header: {error}. Nothing of it was taken.") from error


def _distinct(header: Iterable[str]) -> list[str]:
    """Column names that SQL can tell apart, though it does not see their case: an index column, which has no name, and
    a name that is taken get one of their own."""
    names: list[str] = []
    taken = {LINE, RAW, PROBLEM}
    for name in header:
        names.append(f"{name}__column_{len(names) + 1}" if not name or name.lower() in taken else name)
        taken.add(names[-1].lower())
    return names


def _csv_table(
    header: list[str], rows: list[list[str | None]], numbers: list[int], raws: list[str], problems: list[str | None]
) -> pa.Table:
    columns = {
        name: pa.array(values, pa.string()) for name, values in zip(header, zip(*rows, strict=True), strict=True)
    }
    text = _text_table(numbers, raws, problems)
    return pa.table({**columns, **{name: text[name] for name in text.column_names}})


def _typed_rows(log: LogFile) -> Iterator[pa.Table]:
    number = 1
    if log.format == "parquet":
        file = pq.ParquetFile(log.path)
        batches: Iterable[pa.RecordBatch] = file.iter_batches(batch_size=_rows_per_chunk(file.metadata))
    else:
        batches = _arrow_batches(log.path)
    for batch in batches:
        table = pa.Table.from_batches([batch])
        table = table.rename_columns(_distinct(table.column_names))
        if len(table):
            table = table.append_column(LINE, pa.array(range(number, number + len(table)), pa.int64()))
            table = table.append_column(RAW, pa.nulls(len(table), pa.large_string()))
            yield table.append_column(PROBLEM, pa.nulls(len(table), pa.string()))
        number += len(table)


def _rows_per_chunk(metadata: pq.FileMetaData) -> int:
    n_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    n_fitting: int = _CHUNK_BYTES * metadata.num_rows // max(1, n_bytes)
    return max(256, min(_CHUNK_ROWS, n_fitting))


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as file:
        magic = file.read(6)
    with pa.memory_map(str(path)) as source:
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(source)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)
        else:
            yield from pa.ipc.open_stream(source)


def source_name(path: Path, base: Path) -> str:
    """How a file is named in the lake: relative to the workspace where it lies inside, so that it can be moved."""
    return os.path.relpath(path, base) if path.is_relative_to(base) else str(path)
