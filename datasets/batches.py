"""Batches: what came in, the account of its rows, and the held ones that wait for a person."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from datasets.duck import duck, literal
from datasets.durable import flush_folder, flush_to_disk
from datasets.episodes import REJECTED
from datasets.errors import OfflineDqnError
from datasets.identities import Identities
from datasets.journal import Retired, StagedFile
from datasets.lake import Lake, changing, lake_lock, until_committed
from datasets.parts import stage_records, write_parts
from datasets.repeats import take_out_repeats
from datasets.staging import Stage
from datasets.tables import scan_files


class BatchError(OfflineDqnError):
    """A batch that is not there, or is not held."""


@dataclass(frozen=True)
class BatchCounts:
    """The account of a batch: n_in = n_lake + n_quarantined + n_duplicates + n_held + n_pending + n_erased.

    `n_erased`: rows of subjects that were erased before; they are counted, and not stored.
    """

    n_in: int = 0
    n_lake: int = 0
    n_quarantined: int = 0
    n_duplicates: int = 0
    n_held: int = 0
    n_pending: int = 0
    n_erased: int = 0

    def check(self) -> None:
        """Raises if a row is unaccounted for, which only a mistake of ours could bring about."""
        accounted = sum(asdict(self).values()) - self.n_in
        assert self.n_in == accounted, f"{self.n_in} rows came in and {accounted} are accounted for: {self}"


@dataclass(frozen=True)
class Batch:
    """One batch as it stands now.

    Attributes:
        kind: "steps" or "outcomes": what its rows are.
        status: "lake", "held", "released" (by a person, after it was held) or "rejected" (all rows in quarantine).
        note: why it is held, or who decided and why.
        validation: the suite's result as JSON values; None where there was no row to validate.
    """

    batch_id: str
    kind: str
    status: str
    settled_at: datetime
    as_of: datetime
    n_files: int
    counts: BatchCounts
    dropped_columns: tuple[str, ...]
    note: str
    validation: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self) | asdict(self.counts)
        del values["counts"]
        return values | {"settled_at": self.settled_at.isoformat(), "as_of": self.as_of.isoformat()}


@dataclass(frozen=True)
class FileRecord:
    """How far a file was consumed, and by which batch."""

    path: str
    kind: str
    digest: str
    n_bytes: int
    n_lines: int
    digest_seen: str
    head: str
    status: str
    contract_digest: str


def list_batches(lake: Lake) -> list[Batch]:
    """Every batch as it stands now, oldest first."""
    with duck() as connection:
        rows = connection.execute(
            f"""SELECT * FROM {lake.scan("batches")}
            QUALIFY row_number() OVER (PARTITION BY batch_id ORDER BY commit_number DESC) = 1
            ORDER BY settled_at, batch_id"""
        ).fetchall()
        names = [column[0] for column in connection.description or ()]
    return [_batch(dict(zip(names, row, strict=True))) for row in rows]


def find_batch(lake: Lake, batch_id: str) -> Batch:
    """One batch, by its id or an unambiguous beginning of it.

    Raises:
        BatchError: there is none, or more than one.
    """
    batches = list_batches(lake)
    found = [b for b in batches if b.batch_id.startswith(batch_id)]
    if len(found) != 1:
        what = "no batch" if not found else f"{len(found)} batches"
        known = ", ".join(b.batch_id for b in batches[-5:]) or "none"
        raise BatchError(
            f"{what} begin with '{batch_id}'. The newest are: {known}. `offline-dqn batches list` shows all."
        )
    return found[0]


def consumed_files(lake: Lake) -> list[FileRecord]:
    """The files as they stand now: what each consumed prefix belongs to."""
    with duck() as connection:
        rows = connection.execute(
            f"""SELECT path, kind, digest, n_bytes, n_lines, digest_seen, head, status, contract_digest
            FROM {lake.scan("files")} QUALIFY row_number() OVER (
                PARTITION BY kind, digest, n_bytes, digest_seen ORDER BY commit_number DESC) = 1"""
        ).fetchall()
    return [FileRecord(*row) for row in rows]


def new_batch_id(at: datetime) -> str:
    """An id that no other batch has; ids sort by time."""
    return f"b-{at.astimezone(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def commit_batch(
    lake: Lake,
    batch: Batch,
    files: Iterable[FileRecord],
    parts: Mapping[str, list[StagedFile]],
    folder: Path,
    *,
    retired: Mapping[str, list[Retired]] | None = None,
) -> None:
    """Commits a batch's parts together with its own record and those of its files. The caller holds the lake's lock.

    Args:
        retired: files that cease to be part of a table in the same commit.
    """
    batch.counts.check()
    _remove_strays(lake, batch.batch_id)
    number = lake.commit_number() + 1
    record: dict[str, object] = {
        "batch_id": batch.batch_id,
        "kind": batch.kind,
        "status": batch.status,
        "settled_at": batch.settled_at,
        "as_of": batch.as_of,
        "n_files": batch.n_files,
        **asdict(batch.counts),
        "dropped_columns": list(batch.dropped_columns),
        "note": batch.note,
        "validation": json.dumps(batch.validation) if batch.validation is not None else None,
        "commit_number": number,
    }
    file_records = [
        {**asdict(file), "batch_id": batch.batch_id, "commit_number": number, "status": batch.status} for file in files
    ]
    staged = {
        **parts,
        "files": stage_records(lake, "files", file_records, folder, batch_id=batch.batch_id),
        "batches": stage_records(lake, "batches", [record], folder, batch_id=batch.batch_id),
    }
    lake.commit(staged, retired)
    if parts.get("steps"):
        with suppress(OSError, duckdb.Error):  # the batch is in, and what is derived is made anew by the next one
            Identities(lake).catch_up()


def hold_batch(lake: Lake, batch: Batch, files: list[FileRecord], staged_folder: Path, folder: Path) -> None:
    """Sets a batch aside whole: its rows wait in the lake's `_held`, and no table of rows changes."""
    held = lake.held_path / batch.batch_id
    held.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(held, ignore_errors=True)
    staged_folder.replace(held)
    (held / "validation.json").write_text(json.dumps(batch.validation, indent=1))
    flush_folder(held)
    for above in (lake.held_path, lake.root):
        flush_to_disk(above)  # before the commit by which the files count as read
    commit_batch(lake, batch, files, {}, folder)


def _remove_strays(lake: Lake, current: str) -> None:
    """Removes what waits in `_held` for nobody: a process died before its batch was held, or after it was settled.

    Args:
        current: the batch that is just being held or settled.
    """
    folders = list(lake.held_path.iterdir()) if lake.held_path.exists() else []
    if all(folder.name == current for folder in folders):
        return
    waiting = {current, *(batch.batch_id for batch in list_batches(lake) if batch.status == "held")}
    for folder in folders:
        if folder.name not in waiting:
            shutil.rmtree(folder)


def release_batch(lake: Lake, batch_id: str, *, by: str, at: datetime) -> Batch:
    """Lets a held batch into the lake although its suite failed; `by` takes the responsibility.

    Repeats are looked for again: the lake may have moved on while the batch waited.

    Raises:
        BatchError: it is not held.
    """
    return _settle_held(lake, batch_id, status="released", note=f"released by {by}", at=at)


def reject_batch(lake: Lake, batch_id: str, *, by: str, at: datetime) -> Batch:
    """Sends every row of a held batch to quarantine. Its files are read again once the contract has changed.

    Raises:
        BatchError: it is not held.
    """
    return _settle_held(lake, batch_id, status="rejected", note=f"{REJECTED}{by}", at=at)


def _settle_held(lake: Lake, batch_id: str, *, status: str, note: str, at: datetime) -> Batch:
    return until_committed(lambda: _settle_once(lake, batch_id, status=status, note=note, at=at))


def _settle_once(lake: Lake, batch_id: str, *, status: str, note: str, at: datetime) -> Batch:
    with lake_lock(lake), changing(lake):
        lake.finish_commit()
        batch = find_batch(lake, batch_id)
        if batch.status != "held":
            raise BatchError(f"Batch {batch.batch_id} is not held: it is '{batch.status}'. Nothing was changed.")
        held, folder = lake.held_path / batch.batch_id, lake.staging_path / f"{batch.batch_id}-{status}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with duck(spill=folder / "spill") as connection:
            stage = Stage(connection, lake.contract, batch.kind, folder)
            _load_held(stage, held)
            n_again = 0
            if status == "rejected":
                _quarantine_all(stage, note)
            elif batch.kind == "steps":
                n_again = take_out_repeats(stage, lake)
            parts = write_parts(
                stage,
                folder / "parts",
                batch_id=batch.batch_id,
                default_date=str(batch.as_of.astimezone(UTC).date()),
                at=at.isoformat(),
            )
        counts = replace(
            batch.counts,
            n_lake=sum(file.n_rows for file in parts[batch.kind]),
            n_quarantined=sum(file.n_rows for file in parts["quarantine"]),
            n_duplicates=batch.counts.n_duplicates + n_again,
            n_held=0,
        )
        settled = replace(batch, status=status, counts=counts, note=f"{note}; was held: {batch.note}", settled_at=at)
        with duck() as connection:
            rows = connection.execute(
                f"""SELECT DISTINCT path, kind, digest, n_bytes, n_lines, digest_seen, head, status, contract_digest
                FROM {lake.scan("files")} WHERE batch_id = ?""",
                [batch.batch_id],
            ).fetchall()
        commit_batch(lake, settled, [FileRecord(*row) for row in rows], parts, folder / "records")
        shutil.rmtree(held, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
    return settled


def _load_held(stage: Stage, held: Path) -> None:
    files = sorted(str(p) for p in held.rglob("*.parquet") if p.name != "quarantine.parquet")
    if files:
        stage.load(scan_files(files, by_date=stage.kind == "steps"))
    if (held / "quarantine.parquet").exists():
        path = literal(str(held / "quarantine.parquet"))
        stage.connection.execute(
            f"INSERT INTO bad BY NAME SELECT * EXCLUDE (kind, batch_id, quarantined_at) FROM read_parquet({path})"
        )


def _quarantine_all(stage: Stage, note: str) -> None:
    """Turns every row into a bad one: those that fit the contract in their stored form."""
    connection = stage.connection
    episode_id = "episode_id" if stage.kind == "steps" else "NULL"
    connection.execute(f"UPDATE bad SET reason = {literal(note + '; ')} || reason")
    connection.execute(
        f"INSERT INTO bad BY NAME SELECT to_json(r)::VARCHAR AS raw, source, source_line, {literal(note)} AS reason, "
        f"{episode_id} AS episode_id, decision_id FROM {stage.rows_sql} r"
    )
    stage.take_out(f"SELECT ordinal FROM {stage.rows_sql}")


def _batch(row: dict[str, Any]) -> Batch:
    counts = BatchCounts(**{name: row[name] for name in BatchCounts.__dataclass_fields__})
    return Batch(
        batch_id=row["batch_id"],
        kind=row["kind"],
        status=row["status"],
        settled_at=row["settled_at"],
        as_of=row["as_of"],
        n_files=row["n_files"],
        counts=counts,
        dropped_columns=tuple(row["dropped_columns"] or ()),
        note=row["note"],
        validation=json.loads(row["validation"]) if row["validation"] else None,
    )
