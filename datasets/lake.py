"""The lake: Delta tables of Parquet files written by DuckDB, committed together or not at all."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.compatibility import IncompatibleContractError, lake_incompatibilities
from datasets.contract import Contract, contract_from_json
from datasets.duck import duck
from datasets.durable import flush_to_disk, write_durably
from datasets.history import purge_history
from datasets.journal import (
    LakeError,
    Retired,
    StagedFile,
    commit_number,
    commit_table,
    delta_table,
    end_journal,
    finish_journal,
    flush_log,
    journal_path,
    transaction_number,
    write_journal,
)
from datasets.locking import ReadOnlyError, exclusive_lock
from datasets.tables import (
    COLUMNS_FILE,
    EMPTY_LOG_DATE,
    TABLES,
    arrow_schema,
    file_schema,
    partition_columns,
    scan_files,
)

_ABOUT = "lake.json"
"""The file in which a lake says which format it has, and under which contract its rows were written."""

FORMAT = 3
"""Of the tables, their columns and the files beside them. A lake of another format is refused, never guessed at."""

_CONTRACTED = ("outcomes", "steps")
"""Tables with columns that the contract names."""

_CHECKPOINT_EVERY = 20
"""Commits after which Delta writes a table's whole state: opening a table reads what came after the last one."""


@dataclass(frozen=True)
class Lake:
    """An opened lake under a contract it is compatible with."""

    root: Path
    contract: Contract

    def scan(self, table: str) -> str:
        """SQL that reads a table at its last commit, from absolute paths."""
        return scan_files(self.files(table), by_date=bool(partition_columns(table)))

    def scans(self, tables: Iterable[str] = TABLES) -> dict[str, str]:
        """SQL that reads each of several tables, all of them as one commit left them.

        Opened one by one with `scan`, two tables may lie on the two sides of a commit that goes on meanwhile: a row
        that moves from one to the other would be in neither, or in both.

        Raises:
            LockedError: a commit goes on, and does not end.
            ReadOnlyError: a commit was cut off, and cannot be finished here.
        """
        others = [table for table in tables if table != "steps"]
        while True:
            # A commit comes to `steps` last. So a table opened after it has every commit that `steps` has, and one
            # without a later commit is at the same one.
            opened = {table: delta_table(self.root, table) for table in ("steps", *others)}
            number = transaction_number(opened["steps"])
            if all(transaction_number(opened[table]) <= number for table in others):
                return {
                    table: scan_files(_files_of(opened[table]), by_date=bool(partition_columns(table)))
                    for table in opened
                }
            if self.journal_path.exists():
                _finish_cut_off(self)  # waits for whoever is at it

    def files(self, table: str) -> list[str]:
        """Absolute paths of the table's Parquet files. Never empty: an empty one carries the schema."""
        return _files_of(delta_table(self.root, table))

    def versions(self) -> dict[str, int]:
        """Delta version of each table."""
        return {table: int(delta_table(self.root, table).version()) for table in TABLES}

    def commit_number(self) -> int:
        """Number of the last commit that is complete; 0 for a new lake."""
        return commit_number(self.root)

    @property
    def journal_path(self) -> Path:
        """Where a commit is written down before it begins; there only while one is unfinished."""
        return journal_path(self.root)

    def has_rows(self) -> bool:
        """Whether any row is stored or held under this lake's contract, or is about to be."""
        if self.journal_path.exists() or (self.held_path.exists() and any(self.held_path.iterdir())):
            return True
        with duck() as connection:
            return any(
                connection.execute(f"SELECT 1 FROM {self.scan(table)} LIMIT 1").fetchone() is not None
                for table in _CONTRACTED
                # One without a file was made anew by a process that died before it was whole.
                if (self.root / table / "_delta_log").exists() and self.files(table)
            )

    @property
    def staging_path(self) -> Path:
        """Where batches are prepared; unless a commit is unfinished, what is left there belongs to nobody."""
        return self.root / "_staging"

    @property
    def held_path(self) -> Path:
        """Where held batches wait."""
        return self.root / "_held"

    def commit(
        self,
        staged: Mapping[str, list[StagedFile]],
        retired: Mapping[str, list[Retired]] | None = None,
        *,
        same_rows: bool = False,
        purge: bool = False,
    ) -> int:
        """Makes the staged files part of their tables and takes the retired ones out, all or none.

        The caller holds the lake's lock.

        Args:
            same_rows: whether the tables' rows stay as they were.
            purge: whether what the changed tables no longer hold is taken from the disk before the commit counts as
                complete: old files and the log of them.

        Returns:
            The commit's number.

        Raises:
            LakeError: a file's columns are not those of its table.
        """
        number = self.commit_number() + 1
        for table, files in staged.items():
            for file in files:
                self._check_schema(table, file)
        write_journal(self.root, number, staged, retired or {}, same_rows=same_rows, purge=purge)
        self.finish_commit()
        return number

    def finish_commit(self) -> bool:
        """Completes a commit whose process died half-way; returns whether there was one.

        Raises:
            LakeError: a file of that commit is gone.
        """
        to_purge = finish_journal(self.root)
        if to_purge is None:
            return False
        if to_purge:
            purge_history(self.root, to_purge)
            shutil.rmtree(self.staging_path, ignore_errors=True)  # the commit's files have left it
        end_journal(self.root)
        return True

    def _check_schema(self, table: str, file: StagedFile) -> None:
        # Delta takes any file; a wrong type would only show when somebody reads the table.
        wanted, found = file_schema(self.contract, table), pq.read_schema(file.path)
        if [(f.name, f.type) for f in found] != [(f.name, f.type) for f in wanted]:
            raise LakeError(
                f"{file.path} does not have the columns of table '{table}': found {found}, wanted {wanted}."
            )


def _files_of(delta: Any) -> list[str]:
    files = [unquote(uri) for uri in delta.file_uris()]  # written as in an address
    # The empty one last: from the first file DuckDB estimates how many rows there are, and plans joins by that.
    return sorted(files, key=lambda file: (Path(file).name.startswith(COLUMNS_FILE), file))


def lake_lock(root: Path, *, wait_s: float = 600.0) -> Any:
    """The lock under which a lake is changed."""
    return exclusive_lock(root / "_lock", f"The lake {root}", wait_s=wait_s)


@contextmanager
def changing(lake: Lake, what: str = "the batch") -> Iterator[None]:
    """Turns what a full disk or too little memory raises while the lake is changed into an error that says how the
    lake stands and what to do.

    Args:
        what: the change, in words.

    Raises:
        LakeError: in place of errors of DuckDB, Delta, Arrow or the system.
    """
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (duckdb.Error, OSError, pa.ArrowException, DeltaError) as error:
        stands = (
            f"{what.capitalize()} is whole in its journal: the next command that opens the lake finishes it"
            if lake.journal_path.exists()
            else f"Nothing of {what} is in it"
        )
        raise LakeError(
            f"The lake {lake.root} could not be written: {error}. {stands}. See to it that the disk has room and the "
            "memory suffices (`ingest.memory`), then run the same command again."
        ) from error


def open_lake(root: Path, contract: Contract) -> Lake:
    """Opens the lake, makes it if there is none, and finishes a commit that was cut off.

    A lake that needs nothing of this is opened without writing, so a read-only one can be asked, too.

    Raises:
        IncompatibleContractError: rows already stored do not fit `contract`; lists every difference.
        LakeError: there cannot be a lake in that place, or another version of offline-dqn made this one.
        ReadOnlyError: something has to be written first, and cannot be.
    """
    if set("%?") & set(str(root.absolute())):
        raise LakeError(
            f"The lake's path {root.absolute()} has a '%' or '?' in it, which Delta and DuckDB read as parts of an "
            "address. Choose a folder without."
        )
    lake = Lake(root, contract)
    stored = _stored(root)
    if stored is not None and stored["digest"] == contract.digest:
        if lake.journal_path.exists():
            _finish_cut_off(lake)
        return lake
    with lake_lock(root), changing(lake):
        stored = _stored(root)
        if stored is not None:
            before = contract_from_json(stored["contract"], str(root / _ABOUT))
            problems = lake_incompatibilities(before, contract)
            if problems and not Lake(root, before).has_rows():
                _replace_contracted(lake)  # nothing is stored under the old form: a first contract is seldom right
            elif problems:
                listed = "\n".join(f"  {problem}" for problem in problems)
                raise IncompatibleContractError(
                    f"The contract no longer fits the lake {root}, written under its earlier form:\n{listed}\n"
                    "Undo these changes, or start a new workspace for the new problem."
                )
            else:
                Lake(root, before).finish_commit()
                for table in _CONTRACTED:
                    _add_columns(lake, table)
        else:
            _create_tables(lake)
        about = {
            "format": FORMAT,
            "written_by": _code_version(),
            "digest": contract.digest,
            "contract": contract.to_json(),
        }
        write_durably(root / _ABOUT, json.dumps(about, indent=1))
    return lake


def _finish_cut_off(lake: Lake) -> None:
    try:
        with lake_lock(lake.root), changing(lake):
            lake.finish_commit()
    except ReadOnlyError as error:
        raise ReadOnlyError(
            f"A commit of the lake {lake.root} was cut off, and finishing it is not possible here: its tables do not "
            "agree with each other until a command has opened it where it can be written."
        ) from error


def _stored(root: Path) -> dict[str, Any] | None:
    """What a lake says about itself; None where there is none yet."""
    path = root / _ABOUT
    if not path.exists():
        return None
    stored: dict[str, Any] = json.loads(path.read_text())
    if stored.get("format") != FORMAT:
        raise LakeError(
            f"The lake {root} has format {stored.get('format')}, written by offline-dqn "
            f"{stored.get('written_by', 'of an unknown version')}; this is offline-dqn {_code_version()}, which reads "
            f"and writes format {FORMAT}. Nothing was changed. Use the version that wrote it, or a newer one."
        )
    return stored


def _code_version() -> str:
    try:
        return importlib.metadata.version("offline-dqn")
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _replace_contracted(lake: Lake) -> None:
    """Makes the tables that the contract shapes, which are empty, anew under another one, with the commits counted so
    far."""
    number = commit_number(lake.root, [table for table in TABLES if table not in _CONTRACTED])
    for table in _CONTRACTED:
        shutil.rmtree(lake.root / table, ignore_errors=True)
        _create_table(lake, table, number)


def _create_tables(lake: Lake) -> None:
    for table in TABLES:
        folder = lake.root / table
        if (folder / "_delta_log").exists() and delta_table(lake.root, table).file_uris():
            continue  # an earlier attempt came this far
        shutil.rmtree(folder, ignore_errors=True)
        _create_table(lake, table)


def _create_table(lake: Lake, table: str, number: int | None = None) -> None:
    from deltalake import DeltaTable, Schema

    DeltaTable.create(
        str(lake.root / table),
        schema=Schema.from_arrow(arrow_schema(lake.contract, table)),
        partition_by=partition_columns(table) or None,
        configuration={"delta.checkpointInterval": str(_CHECKPOINT_EVERY)},
    )
    flush_log(lake.root, table)
    _add_columns_file(lake, table, number)


def _add_columns(lake: Lake, table: str) -> None:
    """Lets a table grow by what its contract has in addition."""
    from deltalake import Schema

    if any(Path(file).name == _columns_file(lake.contract, table) for file in lake.files(table)):
        return  # ranges, actions and the like are no columns
    delta = delta_table(lake.root, table)
    stored = {field.name: field.to_json() for field in delta.schema().fields}
    wanted = Schema.from_arrow(arrow_schema(lake.contract, table)).fields
    grown = [field for field in wanted if stored.get(field.name) != field.to_json()]
    if grown:  # a process that died here may have done it already
        delta.alter.add_columns(grown)
        flush_log(lake.root, table)
    _add_columns_file(lake, table, None)


def _columns_file(contract: Contract, table: str) -> str:
    """The name of the empty file with a table's columns: the same for the same columns."""
    form = hashlib.sha256(str(file_schema(contract, table)).encode()).hexdigest()
    return f"{COLUMNS_FILE}{form[:12]}.parquet"


def _add_columns_file(lake: Lake, table: str, number: int | None) -> None:
    """An empty Parquet file with the table's columns, so that a table without rows reads like any other."""
    partition = dict.fromkeys(partition_columns(table), EMPTY_LOG_DATE)
    schema = file_schema(lake.contract, table)
    folder = "".join(f"{column}={value}/" for column, value in partition.items())
    name = folder + _columns_file(lake.contract, table)
    path = lake.root / table / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(schema.empty_table(), path, compression="zstd")
    for written in (path, path.parent, lake.root / table, lake.root):
        flush_to_disk(written)
    entry = {"name": name, "n_bytes": path.stat().st_size, "partition": partition, "n_rows": 0}
    commit_table(lake.root, table, {"add": [entry], "remove": []}, number)
    flush_log(lake.root, table)
