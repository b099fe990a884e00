"""The lake: Delta tables of Parquet files written by DuckDB, committed together or not at all.

A lake lies in a folder, or in a bucket that several machines share; then the folder is this machine's copy of it, and
a commit is made in the bucket first.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.addresses import ObjectAddress
from datasets.compatibility import IncompatibleContractError, lake_incompatibilities
from datasets.contract import Contract, contract_from_json
from datasets.duck import duck
from datasets.durable import write_durably
from datasets.history import purge_history
from datasets.journal import (
    LakeError,
    Retired,
    StagedFile,
    commit_number,
    delta_table,
    end_journal,
    finish_journal,
    journal_path,
    transaction_number,
    write_journal,
)
from datasets.lake_bucket import CommitConflictError, LakeBucket, new_entry
from datasets.lake_shape import CONTRACTED, files_of, shape_tables
from datasets.lake_state import LakeState
from datasets.lease import leased
from datasets.locking import ReadOnlyError, exclusive_lock
from datasets.mirror import (
    ABOUT,
    HELD,
    bring_up,
    changed_sides,
    holder_of,
    is_behind,
    known_state,
    publish_contract,
    refuse_mirror,
    revert_sides,
    start_mirror,
    upload_sides,
)
from datasets.named_bytes import named_by_bytes
from datasets.object_store import ObjectStoreError, open_store
from datasets.privacy import PrivacyKey, key_for
from datasets.tables import TABLES, file_schema, partition_columns, scan_files

FORMAT = 3
"""Of the tables, their columns and the files beside them. A lake of another format is refused, never guessed at."""

_ATTEMPTS = 6
"""Times that work on a lake in a bucket is done over when another machine was faster each time."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Lake:
    """An opened lake under a contract it is compatible with.

    Attributes:
        root: its folder.
        bucket: what the folder is a copy of; None for a lake that lies in the folder alone.
    """

    root: Path
    contract: Contract
    bucket: LakeBucket | None = None

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
                    table: scan_files(files_of(opened[table]), by_date=bool(partition_columns(table)))
                    for table in opened
                }
            if self.journal_path.exists():
                _finish_cut_off(self)  # waits for whoever is at it

    def files(self, table: str) -> list[str]:
        """Absolute paths of the table's Parquet files. Never empty: an empty one carries the schema."""
        return files_of(delta_table(self.root, table))

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
                for table in CONTRACTED
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
        return self.root / HELD

    def commit(
        self,
        staged: Mapping[str, list[StagedFile]],
        retired: Mapping[str, list[Retired]] | None = None,
        *,
        same_rows: bool = False,
        purge: Iterable[str] = (),
    ) -> int:
        """Makes the staged files part of their tables and takes the retired ones out, all or none.

        The caller holds the lake's lock.

        Args:
            same_rows: whether the tables' rows stay as they were.
            purge: tables, changed or not, of which what they no longer hold is taken from every machine's disk, and
                from the bucket, before the commit counts as complete there: old files and the log of them.

        Returns:
            The commit's number.

        Raises:
            LakeError: a file's columns are not those of its table.
            CommitConflictError: another machine was faster. Nothing has changed; everything has to be looked at again.
        """
        number = self.commit_number() + 1
        for table, files in staged.items():
            for file in files:
                self._check_schema(table, file)
        if self.bucket is not None:
            self._share(self.bucket, staged, retired or {}, same_rows=same_rows, purge=purge)
            return number
        write_journal(self.root, number, staged, retired or {}, same_rows=same_rows, purge=purge)
        self.finish_commit()
        return number

    def finish_commit(self) -> bool:
        """Completes a commit whose process died half-way; returns whether there was one.

        Raises:
            LakeError: a file of that commit is gone.
        """
        if self.bucket is not None:
            return self.journal_path.exists() and bring_up(self.root, self.bucket)
        to_purge = finish_journal(self.root)
        if to_purge is None:
            return False
        if to_purge:
            purge_history(self.root, to_purge)
            shutil.rmtree(self.staging_path, ignore_errors=True)  # the commit's files have left it
        end_journal(self.root)
        return True

    def privacy_key(self) -> PrivacyKey | None:
        """The key that rows are hashed under; None where the contract names nothing to hide.

        Raises:
            PrivacyError: there is no key, or it is not the one that the lake's rows were hashed under, on whatever
                machine.
        """
        if self.bucket is None:
            return key_for(self.contract, self.root)
        bucket = self.bucket
        return key_for(self.contract, self.root, agree=lambda said: bucket.agree("privacy.json", said))

    def collect_garbage(self, *, dry_run: bool = False) -> list[str]:
        """Deletes from the bucket what the lake will never rest on again; nothing where there is no bucket.

        Returns:
            Keys of the objects.
        """
        return self.bucket.collect_garbage(known_state(self.root), dry_run=dry_run) if self.bucket is not None else []

    def _share(
        self,
        bucket: LakeBucket,
        staged: Mapping[str, list[StagedFile]],
        retired: Mapping[str, list[Retired]],
        *,
        same_rows: bool,
        purge: Iterable[str],
    ) -> None:
        """Commits in the bucket, together with what has changed beside the tables, and learns the commit from there."""
        known = known_state(self.root)
        staged = {
            table: [replace(file, name=named_by_bytes(file.name, file.path)) for file in files]
            for table, files in staged.items()
        }
        assert known.number == self.commit_number()
        added = bucket.upload_files(staged)
        removed = {table: tuple(file.name for file in files) for table, files in retired.items() if files}
        entry = new_entry(
            known.number + 1,
            added=added,
            removed=removed,
            sides=upload_sides(self.root, bucket),
            same_rows=same_rows,
            purge=tuple(purge),
        )
        bucket.publish(entry, known)
        paths = {(table, file.name): file.path for table, files in staged.items() for file in files}
        arrived = {file.key: paths[table, file.name] for table, files in added.items() for file in files}
        try:
            bring_up(self.root, bucket, staged=arrived, until=entry.number)
        except (duckdb.Error, OSError, pa.ArrowException, ObjectStoreError) as error:
            raise LakeError(
                f"Commit {entry.number} is in the lake {bucket}, but {self.root}, this machine's copy, could not be "
                f"brought up to it: {error}. The next command that opens the lake does it; see to it that the disk has "
                "room."
            ) from error

    def _check_schema(self, table: str, file: StagedFile) -> None:
        # Delta takes any file; a wrong type would only show when somebody reads the table.
        wanted, found = file_schema(self.contract, table), pq.read_schema(file.path)
        if [(f.name, f.type) for f in found] != [(f.name, f.type) for f in wanted]:
            raise LakeError(
                f"{file.path} does not have the columns of table '{table}': found {found}, wanted {wanted}."
            )


@contextmanager
def lake_lock(lake: Lake, *, wait_s: float = 600.0) -> Iterator[None]:
    """The lock under which a lake is changed.

    Of a lake in a bucket it is held on this machine and, by a lease, among machines. Then the copy is brought up to the
    last commit first, what a process that died had begun beside the tables is taken back, and what is changed there
    under the lock is committed at its end.

    Raises:
        LockedError: another process, or another machine, is still at work after `wait_s` seconds; names it.
        CommitConflictError: another machine has committed although this one held the lease: it was not heard of for too
            long. What was not committed before has not happened.
    """
    with folder_lock(lake.root, wait_s=wait_s):
        if lake.bucket is None:
            yield
            return
        start_mirror(lake.root, str(lake.bucket))
        with leased(
            lake.bucket.store,
            "lease.json",
            f"The lake {lake.bucket}",
            machine=holder_of(lake.root),
            wait_s=wait_s,
        ):
            bring_up(lake.root, lake.bucket)
            revert_sides(lake.root, lake.bucket)
            yield
            if changed_sides(lake.root):
                lake.commit({})


def folder_lock(root: Path, *, wait_s: float = 600.0) -> Any:
    """The lock of a lake's folder on this machine: under it nothing in the folder changes."""
    return exclusive_lock(root / "_lock", f"The lake {root}", wait_s=wait_s)


def until_committed(work: Callable[[], _T]) -> _T:
    """What some work on a lake returns, done again from its beginning when another machine was faster.

    Raises:
        CommitConflictError: every time anew.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return work()
        except CommitConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0, 0.2 * 2**attempt))  # two that met must not meet again
    raise AssertionError


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


def open_lake(root: Path, contract: Contract, address: ObjectAddress | None = None) -> Lake:
    """Opens the lake, makes it if there is none, and finishes a commit that was cut off.

    A lake that needs nothing of this is opened without writing, so a read-only one can be asked, too.

    Args:
        address: of the lake in a bucket, of which the folder `root` is this machine's copy; it is brought up to the
            last commit.

    Raises:
        IncompatibleContractError: rows already stored do not fit `contract`; lists every difference.
        LakeError: there cannot be a lake in that place, or another version of offline-dqn made this one.
        ObjectStoreError: the bucket cannot be reached or used.
        ReadOnlyError: something has to be written first, and cannot be.
    """
    if set("%?") & set(str(root.absolute())):
        raise LakeError(
            f"The lake's path {root.absolute()} has a '%' or '?' in it, which Delta and DuckDB read as parts of an "
            "address. Choose a folder without."
        )
    if address is None:
        refuse_mirror(root)
        return _opened(Lake(root, contract))
    lake = Lake(root, contract, LakeBucket(open_store(address)))
    return until_committed(lambda: _opened(lake))


def _opened(lake: Lake) -> Lake:
    root, contract = lake.root, lake.contract
    if lake.bucket is not None and is_behind(root, lake.bucket):
        with folder_lock(root), changing(lake, "the copy"):
            bring_up(root, lake.bucket)
    stored = _stored(root)
    if stored is not None and stored["digest"] == contract.digest:
        if lake.journal_path.exists():
            _finish_cut_off(lake)
        return lake
    with lake_lock(lake), changing(lake):
        stored = _stored(root)
        if stored is not None and stored["digest"] == contract.digest:
            return lake  # somebody was faster
        before = contract_from_json(stored["contract"], str(root / ABOUT)) if stored is not None else None
        if before is not None:
            problems = lake_incompatibilities(before, contract)
            if problems and replace(lake, contract=before).has_rows():
                listed = "\n".join(f"  {problem}" for problem in problems)
                raise IncompatibleContractError(
                    f"The contract no longer fits the lake {root}, written under its earlier form:\n{listed}\n"
                    "Undo these changes, or start a new workspace for the new problem."
                )
            # Else nothing is stored under the old form: a first contract is seldom right.
            lake.finish_commit()
        _take_contract(lake, before)
    return lake


def _take_contract(lake: Lake, before: Contract | None) -> None:
    about = {
        "format": FORMAT,
        "written_by": _code_version(),
        "digest": lake.contract.digest,
        "contract": lake.contract.to_json(),
    }
    content = json.dumps(about, indent=1)
    if lake.bucket is None:
        shape_tables(lake.root, before, lake.contract)
        write_durably(lake.root / ABOUT, content)
    elif before is None:
        lake.bucket.found(LakeState(uuid.uuid4().hex, 0, {}, {ABOUT: lake.bucket.upload_side(ABOUT, content.encode())}))
        bring_up(lake.root, lake.bucket)
    else:
        grows = not lake_incompatibilities(before, lake.contract)
        publish_contract(lake.root, lake.bucket, content.encode(), grows=grows)
        bring_up(lake.root, lake.bucket)


def _finish_cut_off(lake: Lake) -> None:
    try:
        with folder_lock(lake.root), changing(lake):
            lake.finish_commit()
    except ReadOnlyError as error:
        raise ReadOnlyError(
            f"A commit of the lake {lake.root} was cut off, and finishing it is not possible here: its tables do not "
            "agree with each other until a command has opened it where it can be written."
        ) from error


def _stored(root: Path) -> dict[str, Any] | None:
    """What a lake says about itself; None where there is none yet."""
    path = root / ABOUT
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
