"""Ingest: log files into the lake, every row in `steps` or in `quarantine` with its reason, and the account of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Literal

import duckdb

from datasets.batches import Batch, BatchCounts, FileRecord, commit_batch, consumed_files, hold_batch, new_batch_id
from datasets.clocks import NightTimes, latest_believable, newest_plausible, refuse_clock_set_back
from datasets.consumed import Consumed
from datasets.contract import Contract
from datasets.duck import duck, literal
from datasets.erased import refuse_erased
from datasets.lake import Lake, changing, lake_lock, until_committed
from datasets.logfiles import find_log_files, other_files, source_name
from datasets.nights import recent_facts
from datasets.outcome_account import OutcomeAccount, account_of_batch
from datasets.parts import write_parts
from datasets.privacy import PrivacyKey
from datasets.reading import Logs, Reading, Taken, logs_of, read_logs, stage_path
from datasets.reading_apart import GroupReader, read_ahead
from datasets.repeats import take_out_repeats
from datasets.settings import Settings
from datasets.signing import Signatures, signing_key
from datasets.spreading import Spread, one_by_one
from datasets.staging import Stage
from datasets.tables import COLUMNS_FILE, scan_files
from datasets.validation import BatchSummary, ValidateConfig, ValidationResult, validate_outcomes, validate_steps

_NIGHTS_LOOKED_AT = 30
"""Newest nights of the lake among which the newest instant is looked for; enough to tell a stray one."""


class IngestConfig(Settings):
    """How logs are taken in."""

    as_of: Literal["now", "newest"] = "now"
    """What "now" means for idleness and age: the clock, or the newest timestamp of the lake for simulated and
    back-filled logs."""
    memory: str = "1100MB"
    """Limit of the memory that DuckDB may use while it sorts and joins; the rest goes to the staging folder. Each group
    of files that an engine reads has as much of its own."""
    require_signature: bool = False
    """Take only log files whose bytes bear the writer's signature (`offline-dqn sign`); others are reported and left
    where they are."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        batch: the batch that was made; None where nothing new was found.
        unchanged: files that earlier batches have consumed whole.
        empty: files without any row.
        damaged: files that could not be read, with the cause; nothing of them was taken.
        passed_over: files in the folders that end in no kind of log.
        reasons: the most frequent reasons of quarantined rows, with their counts.
        account: what became of the outcomes of the batch; None where it holds steps, or is held.
        outcomes: what the ingest of outcomes did that went with this one of steps; None where there was none.
        not_merged: why the lake's files were not merged afterwards, where bytes of one had changed; "" else.
    """

    batch: Batch | None
    unchanged: tuple[str, ...]
    empty: tuple[str, ...]
    damaged: tuple[tuple[str, str], ...]
    reasons: tuple[tuple[str, int], ...]
    account: OutcomeAccount | None = None
    passed_over: tuple[str, ...] = ()
    outcomes: IngestReport | None = None
    not_merged: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "batch": self.batch.to_json() if self.batch else None,
            "unchanged": list(self.unchanged),
            "empty": list(self.empty),
            "damaged": [{"file": file, "cause": cause} for file, cause in self.damaged],
            "reasons": [{"reason": reason, "n_rows": n} for reason, n in self.reasons],
            "passed_over": list(self.passed_over),
            "account": self.account.to_json() if self.account else None,
            "outcomes": self.outcomes.to_json() if self.outcomes else None,
            "not_merged": self.not_merged,
        }


def ingest_logs(
    lake: Lake,
    paths: Iterable[Path],
    config: IngestConfig,
    validate: ValidateConfig,
    *,
    kind: Literal["steps", "outcomes"] = "steps",
    as_of: datetime | None = None,
    base: Path,
    on_rows: Callable[[int], None] = lambda _: None,
    spread: Spread = one_by_one,
    elsewhere: bool = False,
) -> IngestReport:
    """Takes the unread part of every log file at `paths` into the lake as one batch.

    The same bytes are taken once, whatever the file is called. If the suite fails, the batch is held whole and the
    lake's rows are as they were. Killed anywhere, it leaves either nothing or the whole batch: what is committed is
    written down in the lake's journal first, and the next command that opens the lake finishes it.

    Args:
        kind: what the rows are.
        as_of: recorded with the batch; the log_date of rows without a timestamp. By default what `config.as_of` says.
        base: folder that file names are stored relative to.
        on_rows: told how many rows were read, chunk by chunk.
        spread: reads groups of files. By default DuckDB reads file by file, with every core.
        elsewhere: whether it does so on other machines; else plain JSON Lines are left to this process.

    Raises:
        LogFileError: a path does not exist, or holds no log.
        ClockError: rows are judged by a clock that is earlier than their files.
        PrivacyError: the contract hides columns, and the key is missing or not the lake's.
        SigningError: signatures are required, and the key is missing.
        LockedError: another ingest, here or on another machine, has held the lake for ten minutes.
        LakeError: the disk is full, or the memory too small; says how the lake stands.
        NotSharedError: a worker of `spread` does not see the logs or the lake's folder; nothing was taken in.
    """
    paths = list(paths)
    logs = find_log_files(paths)
    passed_over = tuple(source_name(path.absolute(), base) for path in other_files(paths))
    key = lake.privacy_key()
    signatures = Signatures(signing_key()) if config.require_signature else None

    def take_in() -> IngestReport:
        with lake_lock(lake), changing(lake):
            lake.finish_commit()
            shutil.rmtree(lake.staging_path, ignore_errors=True)  # left by a process that died: the lock was free
            now = datetime.now(UTC)
            if as_of is None and config.as_of == "now":
                refuse_clock_set_back((log.path for log in logs), now)
            batch_id = new_batch_id(now)
            folder = lake.staging_path / batch_id
            folder.mkdir(parents=True)
            try:
                run = _Ingest(
                    lake, kind, config, validate, batch_id, now, as_of, folder, on_rows, key, spread, elsewhere
                )
                return replace(run.run(logs_of(logs, base, signatures)), passed_over=passed_over)
            finally:
                if not lake.journal_path.exists():  # an unfinished commit still needs its files
                    shutil.rmtree(lake.staging_path, ignore_errors=True)

    return until_committed(take_in)


@dataclass(frozen=True)
class _Ingest:
    """One run of `ingest_logs`."""

    lake: Lake
    kind: str
    config: IngestConfig
    validate: ValidateConfig
    batch_id: str
    now: datetime
    given_as_of: datetime | None
    folder: Path
    on_rows: Callable[[int], None]
    key: PrivacyKey | None
    spread: Spread
    elsewhere: bool

    def run(self, logs: Logs) -> IngestReport:
        database = stage_path(self.folder, logs.sizes)
        with duck(database, memory=self.config.memory, spill=self.folder / "spill") as connection:
            stage = Stage(
                connection,
                self.lake.contract,
                self.kind,
                self.folder,
                latest=self._latest(),
                key=self.key,
                on_rows=self.on_rows,
            )
            reading = self._read(stage, logs)
            taken = reading.taken
            not_taken = (tuple(reading.unchanged), tuple(reading.empty), tuple(reading.damaged))
            if not taken:
                return IngestReport(None, *not_taken, ())
            as_of = self.given_as_of or self._as_of(stage)
            n_erased = refuse_erased(stage, self.lake)
            n_duplicates = take_out_repeats(stage, self.lake) if self.kind == "steps" else 0
            parts = write_parts(
                stage,
                self.folder / "parts",
                batch_id=self.batch_id,
                default_date=str(as_of.astimezone(UTC).date()),
                at=self.now.isoformat(),
            )
            reasons = _frequent_reasons(stage)
        n_steps, n_bad = (sum(file.n_rows for file in parts[table]) for table in (self.kind, "quarantine"))
        counts = BatchCounts(
            n_in=sum(t.read.n_rows + t.source.unread.n_pending for t in taken),
            n_lake=n_steps,
            n_quarantined=n_bad,
            n_duplicates=n_duplicates,
            n_pending=sum(t.source.unread.n_pending for t in taken),
            n_erased=n_erased,
        )
        validation = (
            self._validation(counts, [str(file.path) for file in parts[self.kind]], as_of) if n_steps + n_bad else None
        )
        held = validation is not None and not validation.success
        if held:
            counts = replace(counts, n_lake=0, n_quarantined=0, n_held=n_steps + n_bad)
        batch = Batch(
            batch_id=self.batch_id,
            kind=self.kind,
            status="held" if held else "lake",
            settled_at=self.now,
            as_of=as_of,
            n_files=len(taken),
            counts=counts,
            dropped_columns=tuple(sorted(stage.dropped)),
            note=_why_held(validation, reasons, n_steps, n_bad) if validation and held else "",
            validation=validation.to_json() if validation else None,
        )
        files = [_file_record(t, self.kind, self.lake.contract, batch.status) for t in taken]
        if held:
            counts.check()
            hold_batch(self.lake, batch, files, self.folder / "parts", self.folder / "records")
        else:
            commit_batch(self.lake, batch, files, parts, self.folder / "records")
        account = None
        if self.kind == "outcomes" and self.lake.contract.outcomes is not None and not held:
            account = account_of_batch(self.lake, self.batch_id, memory=self.config.memory)
        return IngestReport(batch, *not_taken, tuple(reasons), account)

    def _latest(self) -> datetime | None:
        """Rows behind it lie in the future. Simulated logs may do so, and those whose now is given."""
        by_clock = self.given_as_of is None and self.config.as_of == "now"
        return latest_believable(self.now) if by_clock else None

    def _read(self, stage: Stage, logs: Logs) -> Reading:
        consumed = (f for f in consumed_files(self.lake) if f.kind == self.kind and self._still_counts(f))
        known = [Consumed(f.digest, f.n_bytes, f.n_lines, f.digest_seen, f.head) for f in consumed]
        if self.spread is one_by_one:
            return read_logs(stage, logs, known, {})
        check = self.key.check if self.key is not None else None
        reader = GroupReader(
            self.lake.contract, self.kind, self.folder.absolute(), self._latest(), self.config.memory, check
        )
        ahead = read_ahead(stage, logs, known, reader, self.spread, self.on_rows, elsewhere=self.elsewhere)
        return read_logs(stage, logs, known, ahead)

    def _as_of(self, stage: Stage) -> datetime:
        if self.config.as_of == "now":
            return self.now
        return _newest(stage.connection, self.lake, {self.kind: stage.rows_sql}) or self.now

    def _still_counts(self, file: FileRecord) -> bool:
        """A rejected file may be read again, but only under another contract: the same one would reject it again."""
        return file.status != "rejected" or file.contract_digest == self.lake.contract.digest

    def _validation(self, counts: BatchCounts, paths: list[str], as_of: datetime) -> ValidationResult:
        summary = BatchSummary(
            n_in=counts.n_in - counts.n_erased,
            n_lake=counts.n_lake,
            n_quarantined=counts.n_quarantined,
            n_duplicates=counts.n_duplicates,
            n_pending=counts.n_pending,
        )
        recent = recent_facts(self.lake, self.kind)
        if self.kind == "outcomes":
            return validate_outcomes(paths, summary=summary, config=self.validate, recent=recent, as_of=as_of)
        return validate_steps(
            paths, self.lake.contract, summary=summary, config=self.validate, recent=recent, as_of=as_of
        )


def newest_timestamp(lake: Lake) -> datetime | None:
    """The newest timestamp of the lake's steps and outcomes, stray ones left aside; None where there is none."""
    with duck() as connection:
        return _newest(connection, lake, {})


def _newest(connection: duckdb.DuckDBPyConnection, lake: Lake, staged: Mapping[str, str]) -> datetime | None:
    """As `newest_timestamp`, with the rows of relations that are staged, by kind."""
    found = []
    for kind in ("steps", "outcomes"):
        stored = _newest_nights_sql(lake) if kind == "steps" else lake.scan(kind)
        relations = [stored, *([staged[kind]] if kind in staged else [])]
        times = " UNION ALL ".join(f"SELECT timestamp FROM {relation}" for relation in relations)
        nights = connection.execute(
            f"SELECT count(*), min(timestamp), max(timestamp) FROM ({times}) WHERE timestamp IS NOT NULL "
            "GROUP BY epoch_us(timestamp) // 86400000000"
        ).fetchall()
        found.append(newest_plausible(NightTimes(*night) for night in nights))
    return max((newest for newest in found if newest is not None), default=None)


def _newest_nights_sql(lake: Lake) -> str:
    """The rows of the newest nights: what is newest does not hang on how much history there is."""
    stored = [PurePath(file) for file in lake.files("steps")]
    nights = sorted({file.parent.name for file in stored if not file.name.startswith(COLUMNS_FILE)})
    looked_at = {*nights[-_NIGHTS_LOOKED_AT:]}
    files = [str(f) for f in stored if f.parent.name in looked_at or f.name.startswith(COLUMNS_FILE)]
    return scan_files(files, by_date=True)


def _file_record(taken: Taken, kind: str, contract: Contract, status: str) -> FileRecord:
    consumed = taken.consumed
    return FileRecord(
        path=taken.source.name,
        kind=kind,
        digest=consumed.digest,
        n_bytes=consumed.n_bytes,
        n_lines=consumed.n_lines,
        digest_seen=consumed.digest_seen,
        head=consumed.head,
        status=status,
        contract_digest=contract.digest,
    )


def _why_held(validation: ValidationResult, reasons: list[tuple[str, int]], n_left: int, n_bad: int) -> str:
    """The failed expectations, and the reasons of bad rows: while a batch is held, no table shows them.

    Where no row is left the expectations say nothing of their own: what is wrong is wrong with every row.
    """
    listed = [f"{n:,} {'row' if n == 1 else 'rows'}: {reason}." for reason, n in reasons]
    lost = any(record.column == "unaccounted rows" for record in validation.failures)
    said = validation.summary() if n_left or lost else f"None of {n_bad:,} new rows keeps the contract."
    return " ".join([said, *listed])


def _frequent_reasons(stage: Stage, n: int = 5) -> list[tuple[str, int]]:
    """The most frequent reasons, each as it was first given, numbers left out so that like goes with like."""
    pattern = literal(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
    return stage.connection.execute(
        f"""SELECT arg_min(reason, (source, source_line)), count(*) AS n FROM bad
        GROUP BY regexp_replace(reason, {pattern}, '#', 'g') ORDER BY n DESC, 1 LIMIT {n}"""
    ).fetchall()
