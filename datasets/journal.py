"""The journal of a commit: what becomes part of which table, and what ceases to be, written down before it begins.

Delta tables have no common commit. So what is to be moved and committed is written down first, each table that changes
takes the commit's number as the version of one application transaction, and `steps` comes last. A process that dies in
between leaves the journal, and the next one to open the lake finishes the same commit.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.durable import flush_to_disk, write_durably
from datasets.errors import OfflineDqnError
from datasets.named_bytes import altered_files, altered_message, named_by_bytes
from datasets.tables import TABLES, partition_columns

_APP = "ingest"
"""The one application whose transaction version counts commits. One for all writers: two of them cannot both be n."""

LAST_CHECKPOINT = "_last_checkpoint"
"""The file in a table's log that names its newest checkpoint."""


class LakeError(OfflineDqnError):
    """The lake cannot be read or written as it is."""


class AlteredFilesError(LakeError):
    """Bytes of the lake are not those that were written."""


def refuse_altered(files: Iterable[str]) -> None:
    """Raises an AlteredFilesError where files of the lake are gone or were changed since they were committed."""
    altered = altered_files(files)
    if altered:
        raise AlteredFilesError(altered_message(altered))


@dataclass(frozen=True)
class StagedFile:
    """A Parquet file that waits to become part of a table.

    Attributes:
        path: where it was written, on the lake's file system.
        name: its path inside the table's folder.
        partition: partition values by column.
        n_rows: rows in it.
    """

    path: Path
    name: str
    partition: Mapping[str, str]
    n_rows: int


@dataclass(frozen=True)
class Retired:
    """A file of a table that is no longer part of it. It stays on the disk until it is vacuumed.

    Attributes:
        name: its path inside the table's folder.
        partition: partition values by column.
    """

    name: str
    partition: Mapping[str, str]

    @classmethod
    def at(cls, table: str, file: str) -> Retired:
        """The file at a path: what lies above the table's folder may be a link, so it is not looked at."""
        *folders, name = Path(file).parts[-1 - len(partition_columns(table)) :]
        return cls("/".join([*folders, name]), dict(folder.split("=", 1) for folder in folders))


def journal_path(root: Path) -> Path:
    """Where a commit is written down before it begins; there only while one is unfinished."""
    return root / "_journal.json"


def commit_number(root: Path, tables: Iterable[str] = ("steps",)) -> int:
    """Number of the last complete commit; 0 for a new lake. Over more tables than `steps`: of the last one begun."""
    return max(transaction_number(delta_table(root, table)) for table in tables)


def transaction_number(delta: Any) -> int:
    """Number of the last commit that an opened table has; 0 for a new one."""
    return int(delta.transaction_version(_APP) or 0)


def delta_table(root: Path, table: str) -> Any:
    """A table at its last commit, as Delta's own library sees it."""
    from deltalake import DeltaTable  # the base install queries without Delta's own library

    return DeltaTable(str(root / table))


def write_journal(
    root: Path,
    number: int,
    staged: Mapping[str, list[StagedFile]],
    retired: Mapping[str, list[Retired]],
    *,
    same_rows: bool,
    purge: Iterable[str],
) -> None:
    """Writes down a commit whose files are on the disk. From here on it will happen.

    Args:
        same_rows: whether the tables' rows stay as they were, which spares followers of the tables a second look.
        purge: tables of which what they no longer hold is taken from the disk at once.
    """
    changed = [table for table in TABLES if staged.get(table) or retired.get(table)]
    for table in changed:
        for file in staged.get(table, []):
            flush_to_disk(file.path)  # before the journal that names it
    journal = {
        "number": number,
        "tables": {
            table: {
                "add": [
                    {
                        "from": os.path.relpath(file.path, root),
                        "name": named_by_bytes(file.name, file.path),
                        "partition": dict(file.partition),
                        "n_rows": file.n_rows,
                        "n_bytes": file.path.stat().st_size,
                    }
                    for file in staged.get(table, [])
                ],
                "remove": [{"name": file.name, "partition": dict(file.partition)} for file in retired.get(table, [])],
            }
            for table in changed
        },
        "same_rows": same_rows,
        "purge": list(purge),
    }
    write_durably(journal_path(root), json.dumps(journal))


def finish_journal(root: Path) -> list[str] | None:
    """Carries the commit in the journal out, from wherever it stopped.

    Returns:
        Tables to purge before `end_journal`; None where there is no journal.

    Raises:
        LakeError: a file of that commit is gone.
    """
    if not journal_path(root).exists():
        return None
    journal = json.loads(journal_path(root).read_text())
    for table, changes in journal["tables"].items():
        for entry in changes["add"]:
            source, target = root / entry["from"], root / table / entry["name"]
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
            elif not target.exists():
                raise LakeError(
                    f"{source} is gone, and commit {journal['number']} of the lake cannot be finished without it: "
                    "restore the file, or the lake from a backup."
                )
        # Also where a process that died had moved them: it may not have come to this.
        for folder in {root / table, *((root / table / entry["name"]).parent for entry in changes["add"])}:
            flush_to_disk(folder)
    for table in TABLES:
        if table in journal["tables"] or table == "steps":
            changes = journal["tables"].get(table, {"add": [], "remove": []})
            commit_table(root, table, changes, journal["number"], same_rows=journal["same_rows"])
            flush_log(root, table)  # before the journal goes, from which it could be done again
    purge: list[str] = journal["purge"]
    return purge


def end_journal(root: Path) -> None:
    """Takes the journal away: its commit is complete."""
    journal_path(root).unlink()


def flush_log(root: Path, table: str) -> None:
    """Waits until a table's last version is on the disk: Delta's own library leaves that to the system."""
    log = root / table / "_delta_log"
    version = max(entry.name[:20] for entry in log.glob("*.json") if entry.name[:20].isdecimal())
    for entry in log.iterdir():
        if entry.is_file() and (entry.name.startswith(version) or entry.name == LAST_CHECKPOINT):
            flush_to_disk(entry)
    flush_to_disk(log)


def commit_table(
    root: Path, table: str, changes: Mapping[str, list[dict[str, Any]]], number: int | None, *, same_rows: bool = False
) -> None:
    """Commits one table's part of a commit, unless that has happened already; None is a change outside any commit."""
    from deltalake import CommitProperties, Transaction
    from deltalake.transaction import AddAction, RemoveAction

    delta = delta_table(root, table)
    done = delta.transaction_version(_APP)
    if number is not None and done is not None and done >= number:
        return  # a process that died later than here has done it
    now = int(time.time() * 1000)
    added = [
        AddAction(
            entry["name"],
            entry["n_bytes"],
            entry["partition"],
            now,
            not same_rows,
            json.dumps({"numRecords": entry["n_rows"]}),
        )
        for entry in changes["add"]
    ]
    removed = [
        RemoveAction(entry["name"], not same_rows, now, partition_values=entry["partition"])
        for entry in changes["remove"]
    ]
    delta.create_write_transaction(
        actions=[*removed, *added],
        mode="append",
        schema=delta.schema(),
        partition_by=partition_columns(table) or None,
        commit_properties=CommitProperties(app_transactions=[Transaction(_APP, number)])
        if number is not None
        else None,
    )
