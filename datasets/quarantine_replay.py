"""Quarantined rows judged again, after the contract was mended: those that fit now enter the lake, exactly once.

A row leaves the quarantine in the same commit that brings it into the lake, so whatever happens in between it is in one
of them and never in both. It keeps the place in the log that it came from.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from datasets.batches import Batch, BatchCounts, commit_batch, new_batch_id
from datasets.clocks import latest_believable
from datasets.duck import duck, literal
from datasets.episodes import REJECTED
from datasets.erased import refuse_erased
from datasets.ingest import IngestConfig, newest_timestamp
from datasets.lake import Lake, changing, lake_lock, until_committed
from datasets.logfiles import LINE, PROBLEM, RAW, UNREADABLE, log_format
from datasets.parts import write_parts
from datasets.privacy import SEALED, PrivacyKey
from datasets.quarantine import chosen_sql
from datasets.repeats import take_out_repeats
from datasets.rewriting import Rewrite, stage_rewrites
from datasets.staging import Stage, places_table

_CHUNK_ROWS = 100_000
_COLUMNS = ("batch_id", "source", "source_line", "raw", "header", "file_digest", "reason")


@dataclass(frozen=True)
class ReplayReport:
    """What judging again did to rows of one kind.

    Attributes:
        kind: "steps" or "outcomes".
        batch: the batch that took them in; None where none fits.
        n_tried: rows that were judged.
        n_left: rows among them that stay in quarantine.
        n_passed_over: rows that no contract can mend: text that cannot be read as a row, sealed text, and rows of
            rejected batches, whose files are read again instead.
    """

    kind: str
    batch: Batch | None
    n_tried: int
    n_left: int
    n_passed_over: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "batch": self.batch.to_json() if self.batch else None}


def replay_quarantine(
    lake: Lake,
    config: IngestConfig,
    *,
    reason: str | None = None,
    batch: str | None = None,
    as_of: datetime | None = None,
    at: datetime,
) -> list[ReplayReport]:
    """Judges quarantined rows by the contract as it is now and takes those that fit into the lake.

    Killed anywhere, repeated, or run twice at the same moment, each row ends in the lake once or stays where it is. A
    row that came in another way meanwhile is a duplicate: it leaves the quarantine and is counted. Rows that still do
    not fit stay, with the reason they had.

    Args:
        config: as rows were taken in.
        reason, batch: which rows, as in `show_rows`; by default all.
        as_of: recorded with the batches; the log_date of steps without a timestamp. By default what `config.as_of`
            says.
        at: now, recorded with the batches and with the rows that leave the quarantine.

    Returns:
        One report for each kind of rows that are in quarantine.

    Raises:
        PrivacyError: the contract hides columns and the key is missing or another one.
        LockedError: another process has held the lake for ten minutes.
        LakeError: the disk is full, or the memory too small; says how the lake stands.
    """
    key = lake.privacy_key()
    by_clock = as_of is None and config.as_of == "now"
    latest = latest_believable(at) if by_clock else None

    def judge() -> list[ReplayReport]:
        with lake_lock(lake), changing(lake):
            lake.finish_commit()
            taken_for_now = as_of or (at if by_clock else newest_timestamp(lake)) or at
            reports = []
            for kind in ("steps", "outcomes"):
                if kind == "outcomes" and lake.contract.outcomes is None:
                    continue
                shutil.rmtree(lake.staging_path, ignore_errors=True)  # left by a process that died: the lock was free
                try:
                    with duck(memory=config.memory, spill=lake.staging_path / "spill") as connection:
                        chosen = f"kind = '{kind}' AND {chosen_sql(reason, batch)}"
                        run = _Replay(lake, connection, kind, chosen, at, taken_for_now, latest, key)
                        reports.append(run.run())
                finally:
                    if not lake.journal_path.exists():  # an unfinished commit still needs its files
                        shutil.rmtree(lake.staging_path, ignore_errors=True)
        return [report for report in reports if report.n_tried or report.n_passed_over]

    return until_committed(judge)


@dataclass(frozen=True)
class _Replay:
    """One run of `replay_quarantine` for one kind of rows."""

    lake: Lake
    connection: duckdb.DuckDBPyConnection
    kind: str
    chosen: str
    at: datetime
    as_of: datetime
    latest: datetime | None
    key: PrivacyKey | None

    def run(self) -> ReplayReport:
        n_tried, n_chosen = self._count(f"{self.chosen} AND {_JUDGEABLE}"), self._count(self.chosen)
        nothing = ReplayReport(self.kind, None, n_tried, n_tried, n_chosen - n_tried)
        if not n_tried:
            return nothing
        batch_id = new_batch_id(self.at)
        folder = self.lake.staging_path / batch_id
        folder.mkdir(parents=True)
        stage = Stage(self.connection, self.lake.contract, self.kind, folder, latest=self.latest, key=self.key)
        self.connection.execute(
            "CREATE TABLE tried (ordinal BIGINT, batch_id VARCHAR, source VARCHAR, source_line BIGINT)"
        )
        self._judge(stage)
        self.connection.execute("DELETE FROM bad")  # they are in quarantine already, and stay there
        n_erased = refuse_erased(stage, self.lake)
        n_duplicates = take_out_repeats(stage, self.lake) if self.kind == "steps" else 0
        settled = folder / "settled.parquet"
        n_settled = self._write_settled(stage, settled)
        if not n_settled:
            return nothing
        self.connection.execute("DELETE FROM bad")  # conflicts with what the lake holds: they stay, too
        parts = write_parts(
            stage,
            folder / "parts",
            batch_id=batch_id,
            default_date=str(self.as_of.astimezone(UTC).date()),
            at=self.at.isoformat(),
        )
        leave = stage_rewrites(
            self.lake,
            {"quarantine": Rewrite(f"(batch_id, source, source_line) IN (FROM read_parquet({literal(str(settled))}))")},
            folder / "leaving",
            reason=f"replayed by {batch_id}",
            at=self.at,
        )
        assert leave.n_rows["quarantine"] == n_settled
        counts = BatchCounts(
            n_in=n_tried,
            n_lake=sum(file.n_rows for file in parts[self.kind]),
            n_quarantined=n_tried - n_settled,
            n_duplicates=n_duplicates,
            n_erased=n_erased,
        )
        made = self._batch(batch_id, counts)
        commit_batch(self.lake, made, [], {**parts, **leave.staged}, folder / "records", retired=leave.retired)
        return ReplayReport(self.kind, made, n_tried, n_tried - n_settled, n_chosen - n_tried)

    def _batch(self, batch_id: str, counts: BatchCounts) -> Batch:
        return Batch(
            batch_id=batch_id,
            kind=self.kind,
            status="lake",
            settled_at=self.at,
            as_of=self.as_of,
            n_files=0,
            counts=counts,
            dropped_columns=(),
            note="replayed from quarantine; its quarantined rows are those of earlier batches that still do not fit",
            validation=None,
        )

    def _count(self, condition: str) -> int:
        quarantine = self.lake.scan("quarantine")
        ((n,),) = self.connection.execute(f"SELECT count(*) FROM {quarantine} WHERE {condition}").fetchall()
        return int(n)

    def _judge(self, stage: Stage) -> None:
        reader = self.connection.sql(
            f"SELECT {', '.join(_COLUMNS)} FROM {self.lake.scan('quarantine')} WHERE {self.chosen} AND {_JUDGEABLE}"
        ).to_arrow_table()
        ordinal = 0
        for start in range(0, len(reader), _CHUNK_ROWS):
            rows = reader.slice(start, _CHUNK_ROWS).to_pylist()
            for header, alike in _by_header(rows).items():
                ordinals = list(range(ordinal, ordinal + len(alike)))
                ordinal += len(alike)
                self._remember(ordinals, alike)
                own = list(header) if header else None
                chunk = _chunk(ordinals, alike, header)
                stage.judge(chunk, own, _places(chunk, ordinals, alike), textual=bool(header))

    def _remember(self, ordinals: list[int], rows: list[dict[str, Any]]) -> None:
        named = ("batch_id", "source", "source_line")
        table = pa.table({"ordinal": ordinals, **{name: [row[name] for row in rows] for name in named}})
        self.connection.register("to_remember", table)
        self.connection.execute("INSERT INTO tried SELECT * FROM to_remember")
        self.connection.unregister("to_remember")

    def _write_settled(self, stage: Stage, path: Path) -> int:
        """Writes which rows need no place there any more: they enter the lake, are in it, or belong to the erased."""
        settled = f"SELECT ordinal FROM {stage.kept_sql} UNION ALL SELECT ordinal FROM refused"
        if self.kind == "steps":
            settled += " UNION ALL SELECT ordinal FROM repeats WHERE is_duplicate"
        self.connection.execute(
            f"""COPY (
                SELECT batch_id, source, source_line FROM tried SEMI JOIN ({settled}) USING (ordinal)
            ) TO {literal(str(path))} (FORMAT parquet)"""
        )
        ((n,),) = self.connection.execute(f"SELECT count(*) FROM read_parquet({literal(str(path))})").fetchall()
        return int(n)


# Rows of rejected batches, and conflicts from typed files, have no text of their own but their stored form: they come
# without the digest of a file.
_JUDGEABLE = f"""raw IS NOT NULL AND file_digest IS NOT NULL AND NOT starts_with(raw, '{SEALED}')
    AND NOT starts_with(reason, '{UNREADABLE}') AND NOT starts_with(reason, {literal(REJECTED)})"""


def _by_header(rows: list[dict[str, Any]]) -> Mapping[tuple[str, ...], list[dict[str, Any]]]:
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row["header"] or ()), []).append(row)
    return found


def _chunk(ordinals: list[int], rows: list[dict[str, Any]], header: Sequence[str]) -> pa.Table:
    """Rows as the exact reader takes them: CSV in its columns, what was JSON or typed as JSON text."""
    texts = [_row_text(row) for row in rows]
    columns = {LINE: pa.array(ordinals, pa.int64()), RAW: pa.array(texts, pa.large_string())}
    fields = list(_csv_fields([row["raw"] for row in rows], len(header))) if header else []
    for i, name in enumerate(header):
        columns[name] = pa.array([record[i] for record in fields], pa.string())
    return pa.table({**columns, PROBLEM: pa.nulls(len(rows), pa.string())})


def _csv_fields(texts: list[str], n_fields: int) -> Iterator[list[str | None]]:
    for text in texts:
        record = next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
        assert len(record) == n_fields  # only records that fit their header are kept with it
        yield [field or None for field in record]


def _row_text(row: dict[str, Any]) -> str:
    """The raw text; of a typed row with its columns nested, whose names may have dots in them."""
    raw: str = row["raw"]
    if row["header"] or log_format(Path(row["source"])) == "jsonl":
        return raw
    nested: dict[str, Any] = {}
    for name, value in json.loads(raw).items():
        *parents, last = name.split(".")
        node = nested
        for part in parents:
            inner = node.setdefault(part, {})
            node = inner if isinstance(inner, dict) else node
        node.setdefault(last, value)
    return json.dumps(nested)


def _places(chunk: pa.Table, ordinals: list[int], rows: list[dict[str, Any]]) -> pa.Table:
    return places_table(
        chunk[LINE],
        sources=[row["source"] for row in rows],
        lines=[row["source_line"] for row in rows],
        ordinals=ordinals,
        digests=[row["file_digest"] for row in rows],
    )
