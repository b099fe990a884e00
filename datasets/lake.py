"""The lake: Delta tables of Parquet files written by DuckDB, committed together or not at all.

Tables have no common commit, so a batch goes through a journal: what is to be moved and committed is written down
first, each table takes the batch's number as the version of one application transaction, and `steps` comes last. A
process that dies in between leaves the journal, and the next one to open the lake finishes the same batch.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.compatibility import IncompatibleContractError, lake_incompatibilities
from datasets.contract import Contract, contract_from_json
from datasets.duck import FEATURE_TYPES, duck, literal, quoted
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock

_APP = "ingest"
"""The one application whose transaction version counts batches. One for all writers: two of them cannot both be n."""

_EMPTY_LOG_DATE = "1970-01-01"


class LakeError(OfflineDqnError):
    """The lake cannot be read or written as it is."""


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


def table_columns(contract: Contract) -> dict[str, dict[str, str]]:
    """DuckDB types of every column of every table, in the order in which a batch commits them."""
    observation = ", ".join(f"{quoted(name)} {FEATURE_TYPES[f.type]}" for name, f in contract.features.items())
    hashed = ", ".join(f"{quoted(name)} VARCHAR" for name in contract.privacy.hash)
    keys = {"keys": f"STRUCT({hashed})"} if hashed else {}
    return {
        "quarantine": {
            "raw": "VARCHAR",
            "source": "VARCHAR",
            "source_line": "BIGINT",
            "reason": "VARCHAR",
            "episode_id": "VARCHAR",
            "batch_id": "VARCHAR",
            "quarantined_at": "TIMESTAMPTZ",
        },
        "files": {
            "path": "VARCHAR",
            "kind": "VARCHAR",
            "digest": "VARCHAR",
            "n_bytes": "BIGINT",
            "n_lines": "BIGINT",
            "digest_seen": "VARCHAR",
            "status": "VARCHAR",
            "contract_digest": "VARCHAR",
            "batch_id": "VARCHAR",
            "commit_number": "BIGINT",
        },
        "outcomes": {
            "decision_id": "VARCHAR",
            "timestamp": "TIMESTAMPTZ",
            "reward": "DOUBLE",
            "source": "VARCHAR",
            "source_line": "BIGINT",
            "batch_id": "VARCHAR",
        },
        "batches": {
            "batch_id": "VARCHAR",
            "kind": "VARCHAR",
            "status": "VARCHAR",
            "settled_at": "TIMESTAMPTZ",
            "as_of": "TIMESTAMPTZ",
            "n_files": "BIGINT",
            "n_in": "BIGINT",
            "n_lake": "BIGINT",
            "n_quarantined": "BIGINT",
            "n_duplicates": "BIGINT",
            "n_held": "BIGINT",
            "n_pending": "BIGINT",
            "dropped_columns": "VARCHAR[]",
            "note": "VARCHAR",
            "validation": "VARCHAR",
            "commit_number": "BIGINT",
        },
        "steps": {
            "episode_id": "VARCHAR",
            "step": "INTEGER",
            "timestamp": "TIMESTAMPTZ",
            "observation": f"STRUCT({observation})",
            "action": "VARCHAR",
            "available_actions": "VARCHAR[]",
            "reward": "DOUBLE",
            "terminated": "BOOLEAN",
            "truncated": "BOOLEAN",
            "final_observation": f"STRUCT({observation})",
            "behavior_prob": "DOUBLE",
            "behavior_probs": "DOUBLE[]",
            "cluster": "VARCHAR",
            **keys,
            "decision_id": "VARCHAR",
            "policy_version": "VARCHAR",
            "decided_by": "VARCHAR",
            "source": "VARCHAR",
            "source_line": "BIGINT",
            "batch_id": "VARCHAR",
            "log_date": "DATE",
        },
    }


TABLES = ("quarantine", "files", "outcomes", "batches", "steps")


def scan_files(files: Iterable[str], *, by_date: bool) -> str:
    """SQL that reads Parquet files as one relation; `by_date` where their folders name the log_date."""
    listed = ", ".join(literal(file) for file in files)
    dates = ", hive_partitioning = true, hive_types = {'log_date': DATE}" if by_date else ", hive_partitioning = false"
    return f"read_parquet([{listed}], union_by_name = true{dates})"


@dataclass(frozen=True)
class Lake:
    """An opened lake under a contract it is compatible with."""

    root: Path
    contract: Contract

    def scan(self, table: str) -> str:
        """SQL that reads a table at its last commit, from absolute paths."""
        return scan_files(self.files(table), by_date=table == "steps")

    def files(self, table: str) -> list[str]:
        """Absolute paths of the table's Parquet files. Never empty: an empty one carries the schema."""
        return sorted(unquote(uri) for uri in self._delta(table).file_uris())  # Delta writes paths as in an address

    def versions(self) -> dict[str, int]:
        """Delta version of each table."""
        return {table: int(self._delta(table).version()) for table in TABLES}

    def commit_number(self) -> int:
        """Number of the last batch whose commit is complete; 0 for a new lake."""
        return int(self._delta("steps").transaction_version(_APP) or 0)

    @property
    def journal_path(self) -> Path:
        """Where a commit is written down before it begins; there only while one is unfinished."""
        return self.root / "_journal.json"

    def has_rows(self) -> bool:
        """Whether any row is stored or held under this lake's contract, or is about to be."""
        if self.journal_path.exists() or (self.held_path.exists() and any(self.held_path.iterdir())):
            return True
        if not (self.root / "steps" / "_delta_log").exists():
            return False
        with duck() as connection:
            return connection.execute(f"SELECT 1 FROM {self.scan('steps')} LIMIT 1").fetchone() is not None

    @property
    def staging_path(self) -> Path:
        """Where batches are prepared; unless a commit is unfinished, what is left there belongs to nobody."""
        return self.root / "_staging"

    @property
    def held_path(self) -> Path:
        """Where held batches wait."""
        return self.root / "_held"

    def _delta(self, table: str) -> Any:
        from deltalake import DeltaTable  # the base install queries without Delta's own library

        return DeltaTable(str(self.root / table))

    def commit(self, staged: Mapping[str, list[StagedFile]]) -> int:
        """Makes the staged files part of their tables, all or none, and returns the batch's number.

        The caller holds the lake's lock.

        Raises:
            LakeError: a file's columns are not those of its table.
        """
        number = self.commit_number() + 1
        for table, files in staged.items():
            for file in files:
                self._check_schema(table, file)
                _flush_to_disk(file.path)  # before the journal that names it
        journal = {
            "number": number,
            "tables": {
                table: [
                    {
                        "from": os.path.relpath(file.path, self.root),
                        "name": file.name,
                        "partition": dict(file.partition),
                        "n_rows": file.n_rows,
                        "n_bytes": file.path.stat().st_size,
                    }
                    for file in staged.get(table, [])
                ]
                for table in TABLES
            },
        }
        _write_durably(self.journal_path, json.dumps(journal))
        self.finish_commit()
        return number

    def finish_commit(self) -> bool:
        """Completes a commit whose process died half-way; returns whether there was one.

        Raises:
            LakeError: a file of that commit is gone.
        """
        if not self.journal_path.exists():
            return False
        journal = json.loads(self.journal_path.read_text())
        for table in TABLES:
            for entry in journal["tables"][table]:
                source, target = self.root / entry["from"], self.root / table / entry["name"]
                if source.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source.replace(target)
                elif not target.exists():
                    raise LakeError(
                        f"{source} is gone, and commit {journal['number']} of the lake cannot be finished without it: "
                        "restore the file, or the lake from a backup."
                    )
        for table in TABLES:
            self._commit_table(table, journal["tables"][table], journal["number"])
        self.journal_path.unlink()
        return True

    def _commit_table(self, table: str, entries: list[dict[str, Any]], number: int) -> None:
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import AddAction

        delta = self._delta(table)
        if (delta.transaction_version(_APP) or 0) >= number:
            return  # a process that died later than here has done it
        actions = [
            AddAction(
                entry["name"],
                entry["n_bytes"],
                entry["partition"],
                int(time.time() * 1000),
                True,
                json.dumps({"numRecords": entry["n_rows"]}),
            )
            for entry in entries
        ]
        delta.create_write_transaction(
            actions=actions,
            mode="append",
            schema=delta.schema(),
            partition_by=["log_date"] if table == "steps" else None,
            commit_properties=CommitProperties(app_transactions=[Transaction(_APP, number)]),
        )

    def _check_schema(self, table: str, file: StagedFile) -> None:
        # Delta takes any file; a wrong type would only show when somebody reads the table.
        wanted = _arrow_schema(table_columns(self.contract)[table])
        wanted = pa.schema([field for field in wanted if field.name not in file.partition])
        found = pq.read_schema(file.path)
        if [(f.name, f.type) for f in found] != [(f.name, f.type) for f in wanted]:
            raise LakeError(
                f"{file.path} does not have the columns of table '{table}': found {found}, wanted {wanted}."
            )


def lake_lock(root: Path, *, wait_s: float = 600.0) -> Any:
    """The lock under which a lake is changed."""
    return exclusive_lock(root / "_lock", f"The lake {root}", wait_s=wait_s)


@contextmanager
def changing(lake: Lake) -> Iterator[None]:
    """Turns what a full disk or too little memory raises while the lake is changed into an error that says how the
    lake stands and what to do.

    Raises:
        LakeError: in place of errors of DuckDB, Delta, Arrow or the system.
    """
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (duckdb.Error, OSError, pa.ArrowException, DeltaError) as error:
        stands = (
            "The batch is whole in its journal: the next command that opens the lake finishes it"
            if lake.journal_path.exists()
            else "Nothing of the batch is in it"
        )
        raise LakeError(
            f"The lake {lake.root} could not be written: {error}. {stands}. See to it that the disk has room and the "
            "memory suffices (`ingest.memory`), then run the same command again."
        ) from error


def open_lake(root: Path, contract: Contract) -> Lake:
    """Opens the lake, makes it if there is none, and finishes a commit that was cut off.

    Raises:
        IncompatibleContractError: rows already stored do not fit `contract`; lists every difference.
        LakeError: there cannot be a lake in that place.
    """
    if set("%?") & set(str(root.absolute())):
        raise LakeError(
            f"The lake's path {root.absolute()} has a '%' or '?' in it, which Delta and DuckDB read as parts of an "
            "address. Choose a folder without."
        )
    lake = Lake(root, contract)
    stored = root / "contract.json"
    if stored.exists() and json.loads(stored.read_text())["digest"] == contract.digest:
        if lake.journal_path.exists():
            with lake_lock(root):
                lake.finish_commit()
        return lake
    with lake_lock(root):
        if stored.exists():
            before = contract_from_json(json.loads(stored.read_text())["contract"], str(stored))
            problems = lake_incompatibilities(before, contract)
            if problems and not Lake(root, before).has_rows():
                _replace_steps(lake)  # nothing is stored under the old form: a first contract is seldom right
            elif problems:
                listed = "\n".join(f"  {problem}" for problem in problems)
                raise IncompatibleContractError(
                    f"The contract no longer fits the lake {root}, written under its earlier form:\n{listed}\n"
                    "Undo these changes, or start a new workspace for the new problem."
                )
            else:
                Lake(root, before).finish_commit()
                if before.features != contract.features:
                    _add_features(lake)
        else:
            _create_tables(lake)
        _write_durably(stored, json.dumps({"digest": contract.digest, "contract": contract.to_json()}, indent=1))
    return lake


def _replace_steps(lake: Lake) -> None:
    """Makes the empty `steps` table anew under another contract, with the batches counted so far."""
    from deltalake import DeltaTable, Schema

    number = int(lake._delta("batches").transaction_version(_APP) or 0)
    shutil.rmtree(lake.root / "steps", ignore_errors=True)
    DeltaTable.create(
        str(lake.root / "steps"),
        schema=Schema.from_arrow(_arrow_schema(table_columns(lake.contract)["steps"])),
        partition_by=["log_date"],
    )
    _add_empty_file(lake, "steps", number)


def _create_tables(lake: Lake) -> None:
    from deltalake import DeltaTable, Schema

    for table, columns in table_columns(lake.contract).items():
        folder = lake.root / table
        if (folder / "_delta_log").exists() and DeltaTable(str(folder)).file_uris():
            continue  # an earlier attempt came this far
        shutil.rmtree(folder, ignore_errors=True)
        DeltaTable.create(
            str(folder),
            schema=Schema.from_arrow(_arrow_schema(columns)),
            partition_by=["log_date"] if table == "steps" else None,
        )
        _add_empty_file(lake, table)


def _add_features(lake: Lake) -> None:
    from deltalake import Schema

    delta = lake._delta("steps")
    wanted = Schema.from_arrow(_arrow_schema(table_columns(lake.contract)["steps"]))
    if delta.schema().to_json() != wanted.to_json():
        delta.alter.add_columns([f for f in wanted.fields if f.name in {"observation", "final_observation"}])
    _add_empty_file(lake, "steps")


def _add_empty_file(lake: Lake, table: str, number: int = 0) -> None:
    """An empty Parquet file with the table's columns, so that a table without rows reads like any other."""
    from deltalake import CommitProperties, Transaction
    from deltalake.transaction import AddAction

    columns = table_columns(lake.contract)[table]
    partition = {"log_date": _EMPTY_LOG_DATE} if table == "steps" else {}
    schema = pa.schema([field for field in _arrow_schema(columns) if field.name not in partition])
    folder = "log_date=" + _EMPTY_LOG_DATE + "/" if partition else ""
    name = f"{folder}columns-{lake.contract.digest[:12]}.parquet"
    path = lake.root / table / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(schema.empty_table(), path, compression="zstd")
    delta = lake._delta(table)
    delta.create_write_transaction(
        actions=[AddAction(name, path.stat().st_size, partition, int(time.time() * 1000), True, '{"numRecords": 0}')],
        mode="append",
        schema=delta.schema(),
        partition_by=list(partition) or None,
        commit_properties=CommitProperties(app_transactions=[Transaction(_APP, number)]) if number else None,
    )


def _arrow_schema(columns: Mapping[str, str]) -> pa.Schema:
    return _schema_of(tuple(columns.items()))


@lru_cache
def _schema_of(columns: tuple[tuple[str, str], ...]) -> pa.Schema:
    selected = ", ".join(f"NULL::{type_} AS {quoted(name)}" for name, type_ in columns)
    with duck() as connection:
        schema: pa.Schema = connection.sql(f"SELECT {selected} WHERE false").to_arrow_table().schema
    return schema


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_durably(path: Path, text: str) -> None:
    """Writes beside the target, flushes to the disk, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
