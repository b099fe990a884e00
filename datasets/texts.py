"""Texts of JSON Lines as the fast reader wants them: plain files without blank lines, whose rows know their place.

A large plain log is such a text as it lies. What is compressed, small, or the tail of a file that grew is copied
together into one, so that thousands of files cost one read.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets.logfiles import LogFile, LogFileError, Unread, container_errors, open_unread

IN_PLACE_BYTES = 32 << 20
"""A plain file from this size on is read where it lies."""
_COPY_BYTES = 512 << 20
"""About as large grows a text that is copied together: the copies of a batch are made and read one after another."""
_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n\v\f"


@dataclass(frozen=True)
class Segment:
    """Rows of a text that come from consecutive lines of one file.

    Attributes:
        first_row: of the text, from 0.
        file: number of the file in the batch.
        first_line: line in that file, from 1.
        n_rows: how many.
    """

    first_row: int
    file: int
    first_line: int
    n_rows: int


@dataclass(frozen=True)
class Text:
    """A plain text of JSON Lines without blank lines.

    Attributes:
        segments: where its rows come from, in order.
        is_copy: whether the file may be deleted once it has been read.
    """

    path: Path
    segments: Sequence[Segment]
    is_copy: bool

    @property
    def n_rows(self) -> int:
        """Lines, each of them one row."""
        return sum(segment.n_rows for segment in self.segments)

    def place_of(self, row: int) -> tuple[int, int]:
        """File number and line of a row."""
        segment = self.segments[bisect_right(self.segments, row, key=lambda s: s.first_row) - 1]
        return segment.file, segment.first_line + row - segment.first_row

    def rows_of(self, file: int, lines: Iterable[int]) -> list[int]:
        """Rows of some lines of a file."""
        wanted = np.array(sorted(lines))
        rows: list[int] = []
        for s in (s for s in self.segments if s.file == file):
            inside = wanted[(wanted >= s.first_line) & (wanted < s.first_line + s.n_rows)]
            rows += (inside - s.first_line + s.first_row).tolist()
        return rows

    def lines_at(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The lines of some rows (ascending), without their ending."""
        wanted = iter(rows)
        row = next(wanted, None)
        n_before = 0
        for block in _whole_lines(self.path.open("rb")):
            if row is None:
                return
            n_lines = block.count(b"\n")
            if row < n_before + n_lines:
                lines = block.split(b"\n")
                while row is not None and row < n_before + n_lines:
                    yield lines[row - n_before].rstrip(b"\r")
                    row = next(wanted, None)
            n_before += n_lines


def text_in_place(log: LogFile, unread: Unread, number: int) -> Text | None:
    """The log itself as a text; None where it must be copied: compressed, read in part, small, or begun by a BOM."""
    if not log.grows or unread.start or unread.end < max(IN_PLACE_BYTES, log.path.stat().st_size):
        return None
    with log.path.open("rb") as file:
        if file.read(len(_BOM)) == _BOM:
            return None
        file.seek(-1, io.SEEK_END)
        n_lines = unread.n_lines + (file.read(1) != b"\n")
    return Text(log.path, (Segment(0, number, 1, n_lines),), is_copy=False)


@dataclass
class TextCopy:
    """A text that is being copied together from the unread parts of files."""

    path: Path
    segments: list[Segment] = field(default_factory=list)
    n_rows: int = 0
    n_bytes: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is time to read it."""
        return self.n_bytes >= _COPY_BYTES

    def add(self, log: LogFile, unread: Unread, number: int) -> tuple[int, int]:
        """Appends the unread lines of a file; returns how many rows, and the number of the last line that held one.

        Raises:
            LogFileError: the file is damaged; nothing of it was added.
        """
        before = (len(self.segments), self.n_rows, self.n_bytes)
        line, last_line = unread.n_lines_before, unread.n_lines_before
        try:
            with self.path.open("ab") as copy, container_errors(log):
                for block in _whole_lines(open_unread(log, unread), is_start=not unread.start):
                    if _may_hold_blank_lines(block):
                        line, last_line = self._add_line_by_line(copy, block, number, line, last_line)
                    else:
                        copy.write(block)
                        n_lines = block.count(b"\n")
                        self._extend(number, line + 1, n_lines)
                        line = last_line = line + n_lines
                self.n_bytes = copy.tell()
        except LogFileError:
            del self.segments[before[0] :]
            _, self.n_rows, self.n_bytes = before
            with self.path.open("r+b") as copy:
                copy.truncate(self.n_bytes)
            raise
        return self.n_rows - before[1], last_line

    def _add_line_by_line(self, copy: BinaryIO, block: bytes, number: int, line: int, last: int) -> tuple[int, int]:
        kept = []
        for text in block.removesuffix(b"\n").split(b"\n"):
            line += 1
            if text.strip(_SPACE):
                kept.append(text + b"\n")
                last = line
                self._extend(number, line, 1)
        copy.write(b"".join(kept))
        return line, last

    def _extend(self, number: int, first_line: int, n_rows: int) -> None:
        previous = self.segments[-1] if self.segments else None
        follows = previous and previous.file == number and previous.first_line + previous.n_rows == first_line
        if previous and follows:
            self.segments[-1] = Segment(previous.first_row, number, previous.first_line, previous.n_rows + n_rows)
        else:
            self.segments.append(Segment(self.n_rows, number, first_line, n_rows))
        self.n_rows += n_rows

    def finished(self) -> Text:
        """The text as it stands."""
        return Text(self.path, tuple(self.segments), is_copy=True)


def copy_with_other_lines(path: Path, target: Path, others: Mapping[int, bytes]) -> None:
    """Copies a text with other lines in place of some, by row (ascending)."""
    wanted = iter(others)
    row = next(wanted, None)
    n_before = 0
    with target.open("wb") as copy:
        for block in _whole_lines(path.open("rb")):
            n_lines = block.count(b"\n")
            if row is not None and row < n_before + n_lines:
                lines = block.split(b"\n")
                while row is not None and row < n_before + n_lines:
                    lines[row - n_before] = others[row]
                    row = next(wanted, None)
                block = b"\n".join(lines)
            copy.write(block)
            n_before += n_lines


def _may_hold_blank_lines(block: bytes) -> bool:
    return block[:1] in _SPACE or any(b"\n" + bytes([space]) in block for space in _SPACE)


def _whole_lines(source: BinaryIO, *, is_start: bool = False) -> Iterator[bytes]:
    """Blocks that end at line ends, the last line's newline added where it lacks one."""
    rest: list[bytes] = []
    with source:
        while block := source.read(_BLOCK):
            if is_start:
                block, is_start = block.removeprefix(_BOM), False
            cut = block.rfind(b"\n") + 1
            if cut:
                yield b"".join([*rest, block[:cut]])
                rest = [block[cut:]] if block[cut:] else []
            else:
                rest.append(block)
    if any(rest):
        yield b"".join([*rest, b"\n"])
