"""Altered files of which nobody has a good copy: a person gives them up, and their rows are accounted for as lost.

Nothing else takes such a file out of the lake: what rewrites a file refuses altered bytes, an erasure too, so that one
changed byte would hold it up for ever.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from datasets.duck import duck, literal
from datasets.journal import LakeError, Retired, delta_table
from datasets.lake import Lake, changing, lake_lock
from datasets.lake_shape import is_form
from datasets.named_bytes import altered_files
from datasets.rewriting import removal_records
from datasets.tables import TABLES

_ROWS = ("steps", "outcomes", "quarantine")
"""Tables whose rows may be given up. The others are the account itself."""


@dataclass(frozen=True)
class GivenUp:
    """What was given up, or would be.

    Attributes:
        files: paths of the altered files inside the lake's folder.
        n_rows: rows that were written to them, by table.
        batches: batches that brought them; "" for rows whose batch nobody can tell.
    """

    files: tuple[str, ...]
    n_rows: Mapping[str, int]
    batches: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "files": list(self.files), "batches": list(self.batches)}


def give_up_altered(lake: Lake, *, by: str, note: str, at: datetime, dry_run: bool = False) -> GivenUp:
    """Takes files out of the lake that are gone, or whose bytes are not those that were written; all of them.

    How many rows they held stands in the lake's log, and of which batches in the account of each: what it brought, less
    what is there and what left before. Each number goes into the table `removals`, with who gave them up and why. The
    files stay on the disk until the next vacuum.

    Args:
        by: who answers for it.
        note: why there is no good copy.
        dry_run: only say what would go.

    Raises:
        LakeError: nobody is named, or no reason; the lake is a copy of one in a bucket, or a file of the account itself
            is altered. Nothing has changed.
    """
    if not dry_run and not (by.strip() and note.strip()):
        raise LakeError("Who gives rows of the lake up, and why is there no good copy? --reviewer NAME --note WHY.")
    if lake.bucket is not None:
        raise LakeError(
            f"{lake.root} is only a copy of the lake {lake.bucket}, which vouches for every file. Remove that folder, "
            "and the next command fetches the lake again. What is altered in the bucket is restored from its versions."
        )
    with lake_lock(lake), changing(lake, "what is given up"):
        lake.finish_commit()
        altered = {table: altered_files(lake.files(table)) for table in TABLES}
        account = [f for table, files in altered.items() for f in files if table not in _ROWS or is_form(f)]
        if account:
            raise LakeError(
                f"{account[0]} is altered, which is no file of rows but of the lake's own account; nothing was given "
                "up. Restore it from a backup (`offline-dqn restore BACKUP DIR`), or begin a new workspace."
            )
        lost = {table: _lost(lake, table, altered[table]) for table in _ROWS if altered[table]}
        found = GivenUp(
            tuple(Path(file).relative_to(lake.root).as_posix() for files in altered.values() for file in files),
            {table: sum(by_batch.values()) for table, by_batch in lost.items()},
            tuple(sorted({batch or "" for by_batch in lost.values() for batch in by_batch})),
        )
        if lost and not dry_run:
            _commit(lake, altered, lost, f"altered, and given up by {by.strip()}: {note.strip()}", at)
    return found


def _lost(lake: Lake, table: str, altered: list[str]) -> dict[str | None, int]:
    """Rows of the altered files by batch; under None where the accounts do not tell."""
    written = _rows_written(lake, table)
    n_lost = sum(written[Path(file).name] for file in altered)
    whole = [file for file in lake.files(table) if file not in altered]
    brought = "n_quarantined" if table == "quarantine" else f"CASE WHEN kind = '{table}' THEN n_lake ELSE 0 END"
    listed = ", ".join(literal(file) for file in whole)
    there = f"SELECT batch_id, -count(*) AS n FROM read_parquet([{listed}]) GROUP BY batch_id" if whole else ""
    with duck() as connection:
        missing = connection.execute(
            f"""SELECT batch_id, sum(n)::BIGINT AS n FROM (
                SELECT batch_id, {brought} AS n FROM {lake.scan("batches")}
                QUALIFY row_number() OVER (PARTITION BY batch_id ORDER BY commit_number DESC) = 1
                UNION ALL SELECT batch_id, -n_rows FROM {lake.scan("removals")} WHERE "table" = '{table}'
                {f"UNION ALL {there}" if there else ""}
            ) GROUP BY batch_id HAVING sum(n) <> 0"""
        ).fetchall()
    by_batch = dict[str | None, int](missing)
    told = min(by_batch.values(), default=0) >= 0 and sum(by_batch.values()) == n_lost
    return by_batch if told else {None: n_lost}


def _rows_written(lake: Lake, table: str) -> dict[str, int]:
    """Rows of each file of a table, as its log has them, by the file's name."""
    actions = pa.table(delta_table(lake.root, table).get_add_actions(flatten=True))
    paths, counts = (actions.column(name).to_pylist() for name in ("path", "num_records"))
    return {Path(unquote(path)).name: n or 0 for path, n in zip(paths, counts, strict=True)}


def _commit(
    lake: Lake,
    altered: Mapping[str, list[str]],
    lost: Mapping[str, Mapping[str | None, int]],
    reason: str,
    at: datetime,
) -> None:
    shutil.rmtree(lake.staging_path, ignore_errors=True)  # left by a process that died: the lock was free
    folder = lake.staging_path / "giving-up"
    folder.mkdir(parents=True)
    rows: list[dict[str, object]] = [
        {"table": table, "batch_id": batch, "n_rows": n, "reason": reason, "removed_at": at}
        for table, by_batch in lost.items()
        for batch, n in by_batch.items()
    ]
    try:
        staged = {"removals": removal_records(lake, rows, lake.commit_number() + 1, folder)} if rows else {}
        lake.commit(staged, {table: [Retired.at(table, f) for f in altered[table]] for table in lost})
    finally:
        if not lake.journal_path.exists():  # an unfinished commit still needs its files
            shutil.rmtree(lake.staging_path, ignore_errors=True)
