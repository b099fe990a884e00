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
from datasets.lake_bucket import LakeBucket
from datasets.lake_state import LakeState
from datasets.mirror import become_mirror, read_mirror, side_paths
from datasets.object_store import open_store
from datasets.tables import TABLES


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

    Raises:
        LakeError: there is no lake in the folder, it is a copy already, or the bucket holds another lake.
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
        news = bucket.news(None, "")
        if news is None:
            _found(lake, bucket, staged)
            news = bucket.news(None, "")
            assert news is not None
        names = {table: {file.name for file in files} for table, files in staged.items()}
        if news.state.number != lake.commit_number() or {t: set(f) for t, f in news.state.tables.items()} != names:
            raise LakeError(
                f"{bucket} holds another lake, at commit {news.state.number}. Nothing was changed. Name another "
                f"prefix in [store] lake; or, to use the lake that is there, move {root} away."
            )
        become_mirror(root, str(bucket), news)
    files = [file for of_table in news.state.tables.values() for file in of_table.values()]
    return Uploaded(str(bucket), news.state.number, len(files), sum(file.n_bytes for file in files))


def _found(lake: Lake, bucket: LakeBucket, staged: dict[str, list[StagedFile]]) -> None:
    refuse_altered([str(file.path) for files in staged.values() for file in files])
    uploaded = bucket.upload_files(staged)
    tables = {table: {file.name: file for file in files} for table, files in uploaded.items()}
    sides = {name: bucket.upload_side(name, path) for name, path in side_paths(lake.root).items()}
    check = lake.root / "_privacy.json"
    if check.exists():
        bucket.agree("privacy.json", check.read_bytes())
    bucket.found(LakeState(uuid.uuid4().hex, lake.commit_number(), tables, sides))


def _staged(table: str, file: str) -> StagedFile:
    at = Retired.at(table, file)
    return StagedFile(Path(file), at.name, at.partition, pq.read_metadata(file).num_rows)
