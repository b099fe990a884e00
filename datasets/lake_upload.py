"""A lake that lies in a folder becomes one in a bucket, and the folder this machine's copy of it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from datasets.addresses import ObjectAddress
from datasets.contract import Contract
from datasets.journal import LakeError, Retired, StagedFile, refuse_altered
from datasets.lake import Lake, changing, folder_lock, open_lake
from datasets.lake_bucket import LakeBucket, digest_of
from datasets.lake_state import LakeState
from datasets.mirror import become_mirror, read_mirror, side_paths
from datasets.object_store import open_store
from datasets.tables import TABLES

_Content = tuple[int, dict[str, dict[str, str]], dict[str, str]]
"""Number of the last commit, and SHA-256 of the files of each table and of those beside the tables."""


@dataclass(frozen=True)
class Uploaded:
    """What was taken to a bucket.

    Attributes:
        address: of the lake there.
        commit: its last one.
        n_files, n_bytes: of its tables.
    """

    address: str
    commit: int
    n_files: int
    n_bytes: int


def upload_lake(root: Path, contract: Contract, address: ObjectAddress) -> Uploaded:
    """Takes the lake of a folder to a bucket that holds none. Killed anywhere, it is finished by the same command.

    That holds where other machines have gone on with the lake in the bucket meanwhile: the folder is then a copy that
    lags behind, and is brought up when it is next opened. It has to be as it was when the upload was cut off.

    Raises:
        LakeError: there is no lake in the folder, it is a copy already, or the bucket holds another lake, or what is
            left of another's upload.
        AlteredFilesError: bytes of the lake are not those that were written. Nothing was taken to the bucket.
        ObjectStoreError: the store cannot be used, or passes over the conditions of a write.
    """
    if read_mirror(root) is not None:
        raise LakeError(f"{root} is a copy of a lake in a bucket already. There is nothing to take there.")
    if not root.exists():
        raise LakeError(
            f"There is no lake in {root}. The first ingest makes one, in the bucket that [store] lake names."
        )
    lake = open_lake(root, contract)
    bucket = LakeBucket(open_store(address))
    with folder_lock(root), changing(lake, "the copy"):
        lake.finish_commit()
        staged = {table: [_staged(table, file) for file in lake.files(table)] for table in TABLES}
        refuse_altered([str(file.path) for files in staged.values() for file in files])
        origin = bucket.origin()
        if origin is None:
            _found(lake, bucket, staged)
            origin = bucket.origin()
            assert origin is not None
        now = (bucket.news(origin.state, origin.tag) or origin).state
        if _content(lake, staged) != _content_of(origin.state):
            raise LakeError(
                f"{bucket} holds another lake, at commit {now.number}, or an upload of this one was cut off and {root} "
                "has changed since. Nothing was changed. Name another prefix in [store] lake; or, to use the lake that "
                f"is there, move {root} away."
            )
        become_mirror(root, str(bucket), origin)
    files = [file for of_table in now.tables.values() for file in of_table.values()]
    return Uploaded(str(bucket), now.number, len(files), sum(file.n_bytes for file in files))


def _content(lake: Lake, staged: dict[str, list[StagedFile]]) -> _Content:
    tables = {table: {file.name: digest_of(file.path) for file in files} for table, files in staged.items() if files}
    return lake.commit_number(), tables, {name: digest_of(path) for name, path in side_paths(lake.root).items()}


def _content_of(state: LakeState) -> _Content:
    tables = {table: {name: file.digest for name, file in files.items()} for table, files in state.tables.items()}
    sides = {name: side.digest for name, side in state.sides.items()}
    return state.number, {table: files for table, files in tables.items() if files}, sides


def _found(lake: Lake, bucket: LakeBucket, staged: dict[str, list[StagedFile]]) -> None:
    check = lake.root / "_privacy.json"
    own = check.read_bytes() if check.exists() else None
    if own is None:
        theirs = None if bucket.store.find("privacy.json") is None else "a key, which this lake has none of"
    else:
        theirs = None if bucket.agree("privacy.json", own) == own else "another key"
    if theirs is not None:
        raise LakeError(
            f"{bucket} holds what an upload of another lake has left, whose rows are hashed under {theirs}. Nothing "
            "was changed. Name another prefix in [store] lake."
        )
    uploaded = bucket.upload_files(staged)
    tables = {table: {file.name: file for file in files} for table, files in uploaded.items()}
    sides = {name: bucket.upload_side(name, path) for name, path in side_paths(lake.root).items()}
    bucket.found(LakeState(uuid.uuid4().hex, lake.commit_number(), tables, sides))


def _staged(table: str, file: str) -> StagedFile:
    at = Retired.at(table, file)
    return StagedFile(Path(file), at.name, at.partition, pq.read_metadata(file).num_rows)
