"""Ingest: log files into the lake, every row in `steps` or in `quarantine` with its reason, and the account of it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb

from datasets.batches import Batch, BatchCounts, FileRecord, commit_batch, consumed_files, hold_batch
from datasets.contract import Contract
from datasets.duck import duck, literal
from datasets.lake import Lake, changing, lake_lock
from datasets.logfiles import (
    LINE,
    RAW,
    Consumed,
    LogFile,
    LogFileError,
    Unread,
    find_log_files,
    look_for_unread,
    read_chunks,
)
from datasets.settings import Settings
from datasets.staging import ReadFile, create_stage, source_name, stage_file, take_out_repeats, write_parts
from datasets.validation import BatchSummary, ValidateConfig, ValidationResult, validate_steps


class IngestConfig(Settings):
    """How logs are taken in."""

    as_of: Literal["now", "newest"] = "now"
    """What "now" means for idleness and age: the clock, or the newest timestamp of the lake for simulated and
    back-filled logs."""
    memory: str = "1500MB"
    """Limit of the memory that DuckDB may use while it sorts and joins; the rest goes to the staging folder."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        batch: the batch that was made; None where nothing new was found.
        unchanged: files that earlier batches have consumed whole.
        empty: files without any row.
        damaged: files that could not be read, with the cause; nothing of them was taken.
        reasons: the most frequent reasons of quarantined rows, with their counts.
    """

    batch: Batch | None
    unchanged: tuple[str, ...]
    empty: tuple[str, ...]
    damaged: tuple[tuple[str, str], ...]
    reasons: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "batch": self.batch.to_json() if self.batch else None,
            "unchanged": list(self.unchanged),
            "empty": list(self.empty),
            "damaged": [{"file": file, "cause": cause} for file, cause in self.damaged],
            "reasons": [{"reason": reason, "n_rows": n} for reason, n in self.reasons],
        }


def ingest_logs(
    lake: Lake,
    paths: Iterable[Path],
    config: IngestConfig,
    validate: ValidateConfig,
    *,
    as_of: datetime | None = None,
    base: Path,
    on_rows: Callable[[int], None] = lambda _: None,
) -> IngestReport:
    """Takes the unread part of every log file at `paths` into the lake as one batch.

    The same bytes are taken once, whatever the file is called. If the suite fails, the batch is held whole and the
    lake's rows are as they were. Killed anywhere, it leaves either nothing or the whole batch: what is committed is
    written down in the lake's journal first, and the next command that opens the lake finishes it.

    Args:
        as_of: recorded with the batch; the log_date of rows without a timestamp. By default what `config.as_of` says.
        base: folder that file names are stored relative to.
        on_rows: told how many rows were read, chunk by chunk.

    Raises:
        LogFileError: a path does not exist, or holds no log.
        LockedError: another ingest has held the lake for ten minutes.
        LakeError: the disk is full, or the memory too small; says how the lake stands.
    """
    logs = find_log_files(paths)
    with lake_lock(lake.root), changing(lake):
        lake.finish_commit()
        shutil.rmtree(lake.staging_path, ignore_errors=True)  # left by a process that died: the lock was free
        now = datetime.now(UTC)
        batch_id = f"b-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        folder = lake.staging_path / batch_id
        folder.mkdir(parents=True)
        try:
            return _Ingest(lake, config, validate, batch_id, now, as_of, base, folder, on_rows).run(logs)
        finally:
            if not lake.journal_path.exists():  # an unfinished commit still needs its files
                shutil.rmtree(lake.staging_path, ignore_errors=True)


@dataclass(frozen=True)
class _Taken:
    """A file whose rows are staged."""

    log: LogFile
    unread: Unread
    source: str
    read: ReadFile


@dataclass(frozen=True)
class _Ingest:
    """One run of `ingest_logs`."""

    lake: Lake
    config: IngestConfig
    validate: ValidateConfig
    batch_id: str
    now: datetime
    given_as_of: datetime | None
    base: Path
    folder: Path
    on_rows: Callable[[int], None]

    def run(self, logs: list[LogFile]) -> IngestReport:
        with duck(self.folder / "stage.duckdb", memory=self.config.memory, spill=self.folder / "spill") as connection:
            create_stage(connection, self.lake.contract)
            taken, unchanged, empty, damaged = self._stage(connection, logs)
            if not taken:
                return IngestReport(None, tuple(unchanged), tuple(empty), tuple(damaged), ())
            as_of = self.given_as_of or self._as_of(connection)
            n_duplicates = take_out_repeats(connection, self.lake)
            _find_raw_text(connection, taken)
            parts = write_parts(
                connection,
                self.lake.contract,
                self.folder / "parts",
                batch_id=self.batch_id,
                default_date=str(as_of.astimezone(UTC).date()),
                at=self.now.isoformat(),
            )
            reasons = _frequent_reasons(connection)
        n_steps, n_bad = (sum(file.n_rows for file in parts[table]) for table in ("steps", "quarantine"))
        counts = BatchCounts(
            n_in=sum(t.read.n_rows + t.unread.n_pending for t in taken),
            n_lake=n_steps,
            n_quarantined=n_bad,
            n_duplicates=n_duplicates,
            n_pending=sum(t.unread.n_pending for t in taken),
        )
        validation = self._validation(counts, [str(file.path) for file in parts["steps"]]) if n_steps + n_bad else None
        held = validation is not None and not validation.success
        if held:
            counts = BatchCounts(
                n_in=counts.n_in, n_duplicates=n_duplicates, n_held=n_steps + n_bad, n_pending=counts.n_pending
            )
        batch = Batch(
            batch_id=self.batch_id,
            kind="steps",
            status="held" if held else "lake",
            settled_at=self.now,
            as_of=as_of,
            n_files=len(taken),
            counts=counts,
            dropped_columns=tuple(sorted({column for t in taken for column in t.read.dropped})),
            note=_why_held(validation, reasons) if validation and held else "",
            validation=validation.to_json() if validation else None,
        )
        files = [_file_record(t, self.lake.contract, batch.status) for t in taken]
        if held:
            counts.check()
            hold_batch(self.lake, batch, files, self.folder / "parts", self.folder / "records")
        else:
            commit_batch(self.lake, batch, files, parts, self.folder / "records")
        return IngestReport(batch, tuple(unchanged), tuple(empty), tuple(damaged), tuple(reasons))

    def _stage(
        self, connection: duckdb.DuckDBPyConnection, logs: list[LogFile]
    ) -> tuple[list[_Taken], list[str], list[str], list[tuple[str, str]]]:
        history = [_as_consumed(f) for f in consumed_files(self.lake) if self._still_counts(f)]
        taken: list[_Taken] = []
        unchanged, empty, damaged = list[str](), list[str](), list[tuple[str, str]]()
        for number, log in enumerate(logs):
            source = source_name(log.path, self.base)
            try:
                unread = look_for_unread(log, history)
                if unread is None:
                    unchanged.append(source)
                    continue
                read = stage_file(
                    connection, self.lake.contract, log, unread, source=source, number=number, on_rows=self.on_rows
                )
            except LogFileError as error:
                damaged.append((source, str(error)))
                continue
            if not read.n_rows and not unread.n_pending:
                (unchanged if unread.start else empty).append(source)  # it grew by blank lines, or never held a row
                continue
            taken.append(_Taken(log, unread, source, read))
            history.append(_as_consumed(_file_record(taken[-1], self.lake.contract, "lake")))
        return taken, unchanged, empty, damaged

    def _as_of(self, connection: duckdb.DuckDBPyConnection) -> datetime:
        if self.config.as_of == "now":
            return self.now
        row = connection.execute("SELECT max(timestamp) FROM rows").fetchone()
        newest = [t for t in (newest_timestamp(self.lake), row[0] if row else None) if t is not None]
        return max(newest, default=self.now)

    def _still_counts(self, file: FileRecord) -> bool:
        """A rejected file may be read again, but only under another contract: the same one would reject it again."""
        return file.status != "rejected" or file.contract_digest == self.lake.contract.digest

    def _validation(self, counts: BatchCounts, paths: list[str]) -> ValidationResult:
        summary = BatchSummary(
            n_in=counts.n_in,
            n_lake=counts.n_lake,
            n_quarantined=counts.n_quarantined,
            n_duplicates=counts.n_duplicates,
            n_pending=counts.n_pending,
        )
        return validate_steps(paths, self.lake.contract, summary=summary, config=self.validate)


def newest_timestamp(lake: Lake) -> datetime | None:
    """The newest timestamp in the lake; None where there is none."""
    with duck() as connection:
        row = connection.execute(f"SELECT max(timestamp) FROM {lake.scan('steps')}").fetchone()
    return row[0] if row else None


def _as_consumed(file: FileRecord) -> Consumed:
    return Consumed(file.digest, file.n_bytes, file.n_lines, file.digest_seen)


def _file_record(taken: _Taken, contract: Contract, status: str) -> FileRecord:
    return FileRecord(
        path=taken.source,
        kind="steps",
        digest=taken.unread.digest,
        n_bytes=taken.unread.end,
        n_lines=taken.unread.n_lines if taken.log.grows else taken.read.last_line,
        digest_seen=taken.unread.digest_seen,
        status=status,
        contract_digest=contract.digest,
    )


def _find_raw_text(connection: duckdb.DuckDBPyConnection, taken: list[_Taken]) -> None:
    """Replaces the canonical form of conflicting repeats by their raw text, read again from text files."""
    conflicts = connection.execute(
        "SELECT source, list(source_line) FROM repeats WHERE NOT is_duplicate GROUP BY source"
    ).fetchall()
    by_source = {t.source: t for t in taken}
    for source, lines in conflicts:
        file = by_source[source]
        if file.log.format not in {"jsonl", "csv"}:
            continue  # the canonical form is all the text there is
        wanted = set(lines)
        for chunk in read_chunks(file.log, file.unread):
            texts = zip(chunk[LINE].to_pylist(), chunk[RAW].to_pylist(), strict=True)
            for line, raw in ((line, raw) for line, raw in texts if line in wanted):
                connection.execute("UPDATE bad SET raw = ? WHERE source = ? AND source_line = ?", [raw, source, line])


def _why_held(validation: ValidationResult, reasons: list[tuple[str, int]]) -> str:
    """The failed expectations, and the reasons of bad rows: while a batch is held, no table shows them."""
    return " ".join([validation.summary(), *(f"{n} rows: {reason}." for reason, n in reasons)])


def _frequent_reasons(connection: duckdb.DuckDBPyConnection, n: int = 5) -> list[tuple[str, int]]:
    """The most frequent reasons, numbers in them left out so that like goes with like."""
    pattern = literal(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
    return connection.execute(
        f"""SELECT any_value(reason), count(*) AS n FROM bad
        GROUP BY regexp_replace(reason, {pattern}, '#', 'g') ORDER BY n DESC, 1 LIMIT {n}"""
    ).fetchall()
