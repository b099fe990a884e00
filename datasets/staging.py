"""The stage of a batch: its rows between the log files and the lake, in a DuckDB database of its own.

JSON Lines go through the fast reader, text by text; its rows stay where it put them and are only read again on their
way into sorted Parquet. Lines in doubt, and all other formats, go through the exact reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa

from datasets.canonical import canonical_sql, json_structure
from datasets.contract import Contract
from datasets.duck import NO_ROOM, literal, quoted
from datasets.fast_read import DOUBTFUL, read_fast
from datasets.identities import identity_sql
from datasets.layouts import Layout, outcome_layout, step_layout, unmapped_columns
from datasets.logfiles import (
    LINE,
    PROBLEM,
    RAW,
    UNREADABLE,
    LogFile,
    LogFileError,
    Unread,
    read_chunks,
    text_chunk,
)
from datasets.long_lines import cut_long_lines
from datasets.privacy import PrivacyKey, install_key
from datasets.raw_text import Redaction
from datasets.samples import dotted_paths, json_objects, top_level_keys
from datasets.tables import table_columns
from datasets.texts import Text, TextCopy, text_in_place

_LINES_PER_FILE = 1 << 40
"""Ordinals order rows by file, then by line: file number times this, plus the line."""

DIGEST_DIGITS = 16
"""Of the SHA-256 of a file, as it stands in the names of rows that have none of their own."""

SAMPLED_LINES = 1000
"""First rows of a file, or of several that are read together, that are looked at for the columns that they hold."""

_GROUP_BYTES = 64 << 20
_CHUNK_ROWS = 100_000


@dataclass(frozen=True)
class ReadFile:
    """What reading one file brought: rows, good and bad, and the number of the last line that held one."""

    n_rows: int
    last_line: int


@dataclass(frozen=True)
class Source:
    """The unread part of a log file, as one of a batch.

    Attributes:
        number: orders the rows of the batch.
        name: how the file is called in the lake.
        n_sampled: rows of it that tell which of its columns the contract does not name, where it is copied together
            with others.
    """

    number: int
    log: LogFile
    unread: Unread
    name: str
    n_sampled: int = SAMPLED_LINES

    @property
    def digest(self) -> str:
        """What names the file in the place of a row."""
        return self.unread.digest[:DIGEST_DIGITS]


@dataclass(frozen=True)
class RawText:
    """A row as it was written: its place, its text, the header it belongs to (CSV), and what names its file."""

    source: str
    source_line: int
    raw: str
    header: list[str] | None
    file_digest: str


class Stage:
    """Rows of one batch. `dropped` are the log's columns that the contract does not name; `read_again` says, by file,
    what the exact reader found where it had to take the place of the fast one after all.

    The tables `exact` (rows that the exact reader took) and `bad` (rows that do not fit the contract, with their
    reason), and one table for each text of the fast reader; `rows_sql` brings the good ones together.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        contract: Contract,
        kind: str,
        folder: Path,
        *,
        latest: datetime | None = None,
        key: PrivacyKey | None = None,
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> None:
        """A stage for rows of `kind` ("steps" or "outcomes"); copies of texts lie in `folder`.

        Args:
            latest: rows with a later timestamp are bad, for they lie in the future; None lets every time pass.
            key: hashes what the contract hides; needed to read logs where it hides anything.
            on_rows: told how many rows were read, piece by piece.
        """
        self.connection = connection
        self.kind = kind
        self.dropped: set[str] = set()
        self.read_again: dict[str, ReadFile | LogFileError] = {}
        self._contract = contract
        self._folder = folder
        self._latest = latest
        self._on_rows = on_rows
        self._files: dict[int, Source] = {}
        self._texts: list[tuple[str, Text]] = []
        self._apart: list[Path] = []
        self._copy: TextCopy | None = None
        self._n_copies = 0
        self._taken_out = False
        self._redaction = Redaction(contract, key) if key is not None else None
        if key is not None:
            install_key(connection, key)
        columns = {**self.columns, "ordinal": "BIGINT"}
        connection.execute(f"CREATE TABLE exact ({', '.join(f'{quoted(n)} {t}' for n, t in columns.items())})")
        connection.execute(
            "CREATE TABLE bad (raw VARCHAR, source VARCHAR, source_line BIGINT, reason VARCHAR, episode_id VARCHAR, "
            "decision_id VARCHAR, identity VARCHAR, header VARCHAR[], file_digest VARCHAR)"
        )
        connection.execute("CREATE TABLE taken_out (ordinal BIGINT)")

    @property
    def columns(self) -> dict[str, str]:
        """Stored columns that are known before the batch has settled, with their types."""
        columns = table_columns(self._contract)[self.kind]
        return {name: type_ for name, type_ in columns.items() if name != "batch_id"}

    @property
    def rows_per_group(self) -> int | None:
        """Rows of a Parquet row group, which its writer holds in memory, where images make rows large."""
        image = self._contract.image
        return None if image is None else max(2048, _GROUP_BYTES // (2 * image[1].size))

    def _layout(self, *, textual: bool = False) -> Layout:
        layout = step_layout if self.kind == "steps" else outcome_layout
        return layout(self._contract, textual=textual, latest=self._latest)

    # --- reading

    def read(self, source: Source) -> ReadFile:
        """Reads the unread part of a file, or copies it to be read with others by `finish_reading`.

        Raises:
            LogFileError: the file is damaged; nothing of it stays.
        """
        number, log = source.number, source.log
        self._files[number] = source
        if log.format != "jsonl":
            return self._read_exactly(number)
        in_place = text_in_place(log, source.unread, number)
        if in_place is not None and self._take_text(in_place):
            return ReadFile(in_place.n_rows, in_place.n_rows)
        # What must not be stored as it is must not be copied either.
        return self._read_exactly(number) if self._contract.privacy.is_set else self._copy_text(number)

    def finish_reading(self) -> None:
        """Reads what was copied and still waits. To be called after the last file."""
        copy, self._copy = self._copy, None
        if copy is None or not copy.n_rows:
            return
        text = copy.finished()
        if self._take_text(text):
            return
        for number in sorted({segment.file for segment in text.segments}):
            try:
                # Its columns were looked for in the text; which files had to be read again must not add to them.
                self.read_again[self._files[number].name] = self._read_exactly(number, is_sampled=True)
            except LogFileError as error:
                self.read_again[self._files[number].name] = error

    def take_in(
        self, sources: Iterable[Source], rows: Sequence[Path], bad: Sequence[Path], dropped: Iterable[str]
    ) -> None:
        """Takes in what other stages of the batch have read and written as Parquet.

        Args:
            sources: the files that were read, for the raw text of their rows.
            rows: good rows with the stored columns and `ordinal`; the files stay where they are.
            bad: rows of the table `bad`.
            dropped: columns of the logs that the contract does not name.
        """
        self._files.update({source.number: source for source in sources})
        self._apart += rows
        self.dropped.update(dropped)
        for path in bad:
            self.connection.execute(f"INSERT INTO bad BY NAME SELECT * FROM {_parquet_sql([path])}")

    def _copy_text(self, number: int) -> ReadFile:
        source = self._files[number]
        if self._copy is None:
            self._copy = TextCopy(self._folder / f"text-{self._n_copies}.jsonl")
            self._n_copies += 1
        n_rows, last_line = self._copy.add(source.log, source.unread, number)
        if self._copy.is_full:
            self.finish_reading()
        return ReadFile(n_rows, last_line)

    def _take_text(self, text: Text) -> bool:
        """Reads a text fast; False where the exact reader must take all of it."""
        table = f"text_{len(self._texts)}"
        before = text.path.stat()
        found = self._sample_paths(text)
        try:
            # What must not be stored as it is must not be copied either.
            mended = None if self._contract.privacy.is_set else self._folder / f"{table}.jsonl"
            read_fast(self.connection, self._contract, self._layout(), text.path, table, found=found, mended=mended)
        except NO_ROOM:
            raise  # the disk's fault or the memory's, not the file's
        except duckdb.Error:
            return self._forget(table, text)
        after = text.path.stat()
        is_same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if self.count(table) != text.n_rows or not is_same:
            # Blank lines shift what follows them, and what was appended meanwhile belongs to the next batch.
            return self._forget(table, text if text.is_copy else None)
        self._texts.append((table, text))
        in_doubt = self.connection.execute(f"SELECT rowid FROM {table} WHERE {DOUBTFUL} ORDER BY 1")
        doubtful = in_doubt.fetchnumpy()["rowid"].tolist()
        lines = text.lines_at(doubtful)
        for start in range(0, len(doubtful), _CHUNK_ROWS):
            self._judge_lines(text, doubtful[start : start + _CHUNK_ROWS], lines)
        self._on_rows(text.n_rows)
        return True

    def _forget(self, table: str, text: Text | None) -> bool:
        self.connection.execute(f"DROP TABLE IF EXISTS {table}")
        if text is not None and text.is_copy:
            text.path.unlink(missing_ok=True)
        return False

    def _judge_lines(self, text: Text, rows: Sequence[int], lines: Iterator[bytes]) -> None:
        chunk = text_chunk(rows, islice(lines, len(rows)))
        self.judge(chunk, None, self._places(chunk, [text.place_of(row) for row in rows]))

    def _read_exactly(self, number: int, *, is_sampled: bool = False) -> ReadFile:
        source = self._files[number]
        n_rows, last_line = 0, source.unread.n_lines_before
        try:
            for chunk in read_chunks(source.log, source.unread):
                own = None
                if source.log.format != "jsonl":
                    own = [c for c in chunk.column_names if c not in {LINE, RAW, PROBLEM}]
                if not is_sampled:
                    sample = chunk[RAW].slice(0, SAMPLED_LINES)
                    self._note_dropped(top_level_keys(sample.to_pylist()) if own is None else own)
                lines = chunk[LINE].to_pylist()
                places = self._places(chunk, [(number, line) for line in lines])
                self.judge(chunk, own, places, textual=source.log.format == "csv")
                n_rows += len(chunk)
                last_line = lines[-1]
                self._on_rows(len(chunk))
        except NO_ROOM:
            raise  # the disk's fault or the memory's, not the file's
        except Exception as error:
            self.connection.execute(f"DELETE FROM exact WHERE ordinal // {_LINES_PER_FILE} = {number}")
            self.connection.execute("DELETE FROM bad WHERE source = ?", [source.name])
            if isinstance(error, duckdb.Error):
                raise LogFileError(f"{source.log.path} cannot be read: {error} Nothing of it was taken.") from error
            raise
        return ReadFile(n_rows, last_line)

    def _places(self, chunk: pa.Table, places: list[tuple[int, int]]) -> pa.Table:
        """The place of each row of a chunk, from file number and line."""
        files = [self._files[file] for file, _ in places]
        return places_table(
            chunk[LINE],
            sources=[file.name for file in files],
            lines=[line for _, line in places],
            ordinals=[file * _LINES_PER_FILE + line for file, line in places],
            digests=[file.digest for file in files],
        )

    def judge(self, chunk: pa.Table, own: list[str] | None, places: pa.Table, *, textual: bool = False) -> None:
        """Takes in a chunk by the exact reader's verdict.

        Args:
            own: the log's own columns in it; None for JSON Lines.
            places: of its rows, a `places_table`.
            textual: whether its values are text (CSV).
        """
        layout = self._layout(textual=textual)
        originals: dict[int, str] = {}
        if own is None:
            chunk, originals = cut_long_lines(chunk, json_structure(layout, lambda _: "JSON"))
        self.connection.register("chunk", chunk)
        self.connection.register("places", places)
        try:
            self.connection.execute(
                f"CREATE OR REPLACE TEMP TABLE judged AS SELECT j.* EXCLUDE (source_line), p.* EXCLUDE ({LINE}) "
                f"FROM ({canonical_sql(layout, own)}) j JOIN places p ON j.source_line = p.{LINE}"
            )
        finally:
            self.connection.unregister("chunk")
            self.connection.unregister("places")
        ordinals = dict(zip(places[LINE].to_pylist(), places["ordinal"].to_pylist(), strict=True)) if originals else {}
        for line, text in originals.items():
            self.connection.execute(
                "UPDATE judged SET raw = ? WHERE ordinal = ? AND reason IS NOT NULL", [text, ordinals[line]]
            )
        named = ", ".join([*map(quoted, self.columns), "ordinal"])
        self.connection.execute(
            f"INSERT INTO exact SELECT {named} FROM ({_placed('judged', layout)}) WHERE reason IS NULL"
        )
        header = own if textual and own is not None else None
        self._redact_judged(header)
        is_step = "episode_id" in layout.outputs
        known = f"episode_id, CASE WHEN is_placed THEN {identity_sql()} END AS identity, " if is_step else ""
        fields = f"CASE WHEN NOT starts_with(reason, {literal(UNREADABLE)}) THEN {_list_sql(header)} END"
        self.connection.execute(
            f"INSERT INTO bad BY NAME SELECT raw, source, source_line, reason, {known}decision_id, "
            f"{fields if header is not None else 'NULL'} AS header, digest AS file_digest FROM judged "
            "WHERE reason IS NOT NULL"
        )

    def _redact_judged(self, header: list[str] | None) -> None:
        """Takes out of the text of bad rows what must not be stored."""
        if self._redaction is None:
            return
        rows = self.connection.execute("SELECT rowid, raw FROM judged WHERE reason IS NOT NULL").fetchall()
        if not rows:
            return
        texts = pa.table(
            {
                "row": pa.array([row for row, _ in rows], pa.int64()),
                "raw": pa.array([self._storable(raw, header) for _, raw in rows], pa.string()),
            }
        )
        self.connection.register("redacted", texts)
        self.connection.execute("UPDATE judged SET raw = r.raw FROM redacted r WHERE judged.rowid = r.row")
        self.connection.unregister("redacted")

    def _storable(self, raw: str, header: list[str] | None) -> str:
        """Raw text as it may be stored."""
        if self._redaction is None:
            return raw
        return self._redaction.json_line(raw) if header is None else self._redaction.csv_record(raw, header)

    def _sample_paths(self, text: Text) -> set[str]:
        """Dotted paths in the first rows of a text and of the files in it.

        Columns that the contract does not name are looked for in rows that the file alone determines: with which
        others it was copied together must not be told from the account of the batch.
        """
        first = range(min(text.n_rows, SAMPLED_LINES))
        shown = {*first, *(segment.first_row for segment in text.segments)}
        telling = self._telling_rows(text) if text.is_copy else set(first)
        rows = sorted(shown | telling)
        paths: set[str] = set()
        keys: set[str] = set()
        for row, line in zip(rows, text.lines_at(rows), strict=False):  # a file that was cut meanwhile has fewer
            for document in json_objects([line]):
                paths.update(dotted_paths(document) if row in shown else ())
                keys.update(document if row in telling else ())
        self._note_dropped(keys)
        return paths

    def _telling_rows(self, text: Text) -> set[int]:
        """The first rows of each file of a text, as many as its source says."""
        left = {segment.file: self._files[segment.file].n_sampled for segment in text.segments}
        rows: set[int] = set()
        for segment in text.segments:
            n_rows = min(segment.n_rows, left[segment.file])
            left[segment.file] -= n_rows
            rows.update(range(segment.first_row, segment.first_row + n_rows))
        return rows

    def _note_dropped(self, keys: Iterable[str]) -> None:
        """Remembers the columns of the log that the contract does not name."""
        self.dropped.update(unmapped_columns(self._layout(), keys))

    def count(self, table: str) -> int:
        """Rows of a relation."""
        ((n_rows,),) = self.connection.execute(f"SELECT count(*) FROM {table}").fetchall()
        return int(n_rows)

    # --- what was read

    @property
    def rows_sql(self) -> str:
        """A SELECT of the good rows with their stored columns and `ordinal`; `log_date` is null without a timestamp."""
        layout = self._layout()
        named = ", ".join([*map(quoted, self.columns), "ordinal"])
        parts = [f"SELECT {named} FROM exact"]
        parts += [f"SELECT {named} FROM ({_placed(self._text_sql(*text), layout)})" for text in self._texts]
        parts += [f"SELECT {named} FROM {_parquet_sql(self._apart)}"] if self._apart else []
        return f"({' UNION ALL '.join(parts)})"

    @property
    def kept_sql(self) -> str:
        """`rows_sql` without the rows that were taken out."""
        if not self._taken_out:
            return self.rows_sql
        return f"(SELECT * FROM {self.rows_sql} ANTI JOIN taken_out USING (ordinal))"

    def take_out(self, ordinals: str) -> None:
        """Leaves out the rows whose ordinals a SELECT yields."""
        self.connection.execute(f"INSERT INTO taken_out {ordinals}")
        self._taken_out = self.count("taken_out") > 0

    def load(self, relation: str) -> None:
        """Takes in rows that stand in their stored form in a SQL relation, and puts them in order."""
        named = ", ".join(map(quoted, self.columns))
        self.connection.execute(
            f"INSERT INTO exact SELECT {named}, row_number() OVER (ORDER BY source, source_line) FROM {relation}"
        )

    def raw_text(self, ordinals: Iterable[int]) -> Iterator[RawText]:
        """The raw text of rows of JSON Lines and CSV files, as it may be stored."""
        by_file: dict[int, set[int]] = {}
        for ordinal in ordinals:
            by_file.setdefault(ordinal // _LINES_PER_FILE, set()).add(ordinal % _LINES_PER_FILE)
        in_text = {segment.file: text for _, text in self._texts for segment in text.segments}
        for file, lines in by_file.items():
            if file not in self._files:
                continue  # rows that were loaded in their stored form
            source = self._files[file]
            if file in in_text:
                text = in_text[file]
                rows = text.rows_of(file, lines)
                for row, line in zip(rows, text.lines_at(rows), strict=True):
                    raw = self._storable(line.decode("utf-8", "backslashreplace"), None)
                    yield RawText(source.name, text.place_of(row)[1], raw, None, source.digest)
            elif source.log.format in {"jsonl", "csv"}:
                for chunk in read_chunks(source.log, source.unread):
                    is_csv = source.log.format == "csv"
                    header = [c for c in chunk.column_names if c not in {LINE, RAW, PROBLEM}] if is_csv else None
                    texts = zip(chunk[LINE].to_pylist(), chunk[RAW].to_pylist(), strict=True)
                    for line, raw in ((line, raw) for line, raw in texts if line in lines):
                        yield RawText(source.name, line, self._storable(raw, header), header, source.digest)

    def _text_sql(self, table: str, text: Text) -> str:
        """The rows of a text that are not in doubt, each with its place."""
        rows = f"(SELECT * EXCLUDE ({DOUBTFUL}), rowid AS row FROM {table} WHERE NOT {DOUBTFUL})"
        if len(text.segments) == 1:
            (only,) = text.segments
            source, line = self._files[only.file], f"row + {only.first_line}"
            return (
                f"SELECT * EXCLUDE (row), {literal(source.name)} AS source, {line} AS source_line, "
                f"{only.file * _LINES_PER_FILE} + {line} AS ordinal, {literal(source.digest)} AS digest "
                f"FROM {rows}"
            )
        segments = f"segments_of_{table}"
        self._write_segments(segments, text)
        return (
            "SELECT r.* EXCLUDE (row), s.source, s.line + r.row AS source_line, s.ordinal + r.row AS ordinal, s.digest "
            f"FROM {rows} r ASOF JOIN {segments} s ON r.row >= s.first_row"
        )

    def _write_segments(self, table: str, text: Text) -> None:
        files = [self._files[segment.file] for segment in text.segments]
        lines = [segment.first_line - segment.first_row for segment in text.segments]
        starts = [s.file * _LINES_PER_FILE + line for s, line in zip(text.segments, lines, strict=True)]
        segments = pa.table(
            {
                "first_row": pa.array([s.first_row for s in text.segments], pa.int64()),
                "source": pa.array([file.name for file in files], pa.string()),
                "digest": pa.array([file.digest for file in files], pa.string()),
                "line": pa.array(lines, pa.int64()),
                "ordinal": pa.array(starts, pa.int64()),
            }
        )
        self.connection.register("segments", segments)
        self.connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT * FROM segments")
        self.connection.unregister("segments")


def places_table(
    numbers: pa.Array, *, sources: list[str], lines: list[int], ordinals: list[int], digests: list[str]
) -> pa.Table:
    """Where rows of a chunk come from, by their number in it.

    Args:
        numbers: the chunk's LINE column.
        sources, lines: file and line as the lake calls them.
        ordinals: place of each row in the order of the batch.
        digests: beginning of the SHA-256 of each file, which names rows that have no name of their own.
    """
    return pa.table(
        {
            LINE: numbers,
            "source": pa.array(sources, pa.string()),
            "source_line": pa.array(lines, pa.int64()),
            "ordinal": pa.array(ordinals, pa.int64()),
            "digest": pa.array(digests, pa.string()),
        }
    )


def _parquet_sql(files: Iterable[Path]) -> str:
    return f"read_parquet({_list_sql(map(str, files))}, hive_partitioning = false)"


def _list_sql(texts: Iterable[str] | None) -> str:
    return "[" + ", ".join(map(literal, texts or ())) + "]"


def _placed(relation: str, layout: Layout) -> str:
    """Rows that only their place in a file names get it as their episode: equal content is never taken for a repeat."""
    if "episode_id" not in layout.outputs:
        return f"SELECT * FROM ({relation})" if relation.startswith("SELECT") else f"SELECT * FROM {relation}"
    place = "digest || ':' || source_line"
    inner = f"({relation})" if relation.startswith("SELECT") else relation
    named = ", ".join(f"coalesce({column}, {place}) AS {column}" for column in ("episode_id", "cluster"))
    return f"SELECT * REPLACE ({named}) FROM {inner}"
