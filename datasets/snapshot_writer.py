"""Writes a snapshot step by step: however many there are, no more than a block of them is in memory."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from datasets.contract import CategoricalFeature, Contract, Feature, ImageFeature, VectorFeature
from datasets.durable import flush_to_disk, write_durably
from datasets.locking import exclusive_lock
from datasets.observations import MISSING_CODE, Observations
from datasets.replay import SPLIT_NAMES, Replay
from datasets.snapshot import (
    DESCRIPTION,
    EPISODES,
    FORMAT,
    SnapshotError,
    SnapshotSummary,
    changed_files,
    erased_mark,
    file_digest,
    finish_erasures,
    load_replay,
    read_summary,
    seal_of,
)
from datasets.snapshot_bucket import publish_snapshot, replacing

_STAGING = ".new"
_BLOCK_BYTES = 32_000_000


@dataclass(frozen=True)
class StepBlock:
    """Consecutive steps on their way into a snapshot: n steps, m of which end cut off with a final observation.

    Attributes:
        observations: (n) of the steps.
        finals: (m) observations that follow the steps of `has_final`, in their order.
        available: (n, A) bool.
        actions, rewards, terminated, truncated, behavior_prob: (n,) as in `Replay`.
        is_last: (n,) bool, the last step of its episode.
        has_final: (n,) bool.
    """

    observations: Observations
    finals: Observations
    available: NDArray[np.bool_]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    behavior_prob: NDArray[np.float64]
    is_last: NDArray[np.bool_]
    has_final: NDArray[np.bool_]


class SnapshotWriter:
    """Appends blocks to the arrays of a snapshot in the making.

    Args:
        folder: where the arrays go; it exists.
        episodes: columns episode_id, cluster_code, night, start (UTC, without a zone), policy_version, split and
            n_steps, one row per episode in the order in which their steps will come.
    """

    def __init__(self, folder: Path, contract: Contract, episodes: pa.Table) -> None:
        self.folder = folder
        self._contract = contract
        self._episodes = episodes
        lengths = episodes["n_steps"].to_numpy()
        self.n_steps = int(lengths.sum())
        self._n_written = self._n_finals = self.n_unusable_ends = 0
        self._digests: dict[str, str] = {}
        self._codes: dict[str, dict[str, int]] = {
            name: {} for name, feature in contract.features.items() if isinstance(feature, CategoricalFeature)
        }
        n_actions = len(contract.actions.names)
        self._files = {
            "available": _ArrayFile(folder, "available", np.bool_, (n_actions,)),
            "actions": _ArrayFile(folder, "actions", np.int64),
            "rewards": _ArrayFile(folder, "rewards", np.float64),
            "terminated": _ArrayFile(folder, "terminated", np.bool_),
            "truncated": _ArrayFile(folder, "truncated", np.bool_),
            "next_row": _ArrayFile(folder, "next_row", np.int64),
            "behavior_prob": _ArrayFile(folder, "behavior_prob", np.float64),
            "offsets": _ArrayFile(folder, "offsets", np.int64),
        }
        self._columns: dict[str, _ArrayFile] = {}
        self._finals: dict[str, _ArrayFile] = {}
        for i, (name, feature) in enumerate(contract.features.items()):
            dtype, row = _stored_as(feature)
            self._columns[name] = _ArrayFile(folder, f"observation.{i}", dtype, row)
            self._finals[name] = _ArrayFile(folder, f".finals.{i}", dtype, row)
        self._files["offsets"].append(np.concatenate([[0], np.cumsum(lengths)]))

    def append(self, block: StepBlock) -> None:
        """Adds steps behind those that are there."""
        n, n_finals = len(block.actions), int(block.has_final.sum())
        next_row = self._n_written + 1 + np.arange(n)
        next_row[block.is_last] = -1
        next_row[block.has_final] = self.n_steps + self._n_finals + np.arange(n_finals)
        self.n_unusable_ends += int((block.truncated & (next_row < 0)).sum())
        self._files["next_row"].append(next_row)
        for name in ("available", "actions", "rewards", "terminated", "truncated", "behavior_prob"):
            self._files[name].append(getattr(block, name))
        for name, file in self._columns.items():
            file.append(self._coded(name, block.observations))
            self._finals[name].append(self._coded(name, block.finals))
        self._n_written += n
        self._n_finals += n_finals

    def _coded(self, name: str, observations: Observations) -> NDArray[Any]:
        """The column; labels by codes in the order in which they first came, until `finish` sorts them."""
        values: NDArray[Any] = observations.columns[name]
        if name not in self._codes:
            return values
        vocabulary, known = observations.vocabularies[name], self._codes[name]
        rank = np.full(len(vocabulary) + 1, MISSING_CODE, dtype=np.int32)
        for code in np.unique(values[values != MISSING_CODE]):
            rank[code] = known.setdefault(vocabulary[code], len(known))
        coded: NDArray[Any] = rank[values]
        return coded  # MISSING_CODE picks the last entry

    def finish(self) -> Replay:
        """The replay dataset that was written, memory-mapped, without a digest yet.

        Raises:
            SnapshotError: there came fewer or more steps than the episodes hold.
        """
        if self._n_written != self.n_steps:
            raise SnapshotError(
                f"{self._n_written:,} steps came for episodes of {self.n_steps:,}: the lake is not what its table of "
                "episodes says. Run the command again."
            )
        vocabularies: dict[str, tuple[str, ...]] = {}
        for name, file in self._columns.items():
            file.take_over(self._finals[name])
            if name in self._codes:
                labels = sorted(self._codes[name])
                rank = np.full(len(labels) + 1, MISSING_CODE, dtype=np.int32)
                rank[[self._codes[name][label] for label in labels]] = np.arange(len(labels))
                file.replace_values(rank)
                vocabularies[name] = tuple(labels)
        for start in range(0, self._n_finals, 100_000):
            n = min(100_000, self._n_finals - start)
            self._files["available"].append(np.ones((n, len(self._contract.actions.names)), dtype=np.bool_))
        for file in (*self._files.values(), *self._columns.values()):
            file.close()
        columns = ["episode_id", "cluster_code", "night", "start", "policy_version", "split"]
        pq.write_table(self._episodes.select(columns), self.folder / EPISODES, compression="zstd")
        return load_replay(self.folder, self._contract, vocabularies, "", mapped=True)

    def content_digest(self, replay: Replay, left_out: Mapping[str, Any]) -> str:
        """SHA-256 over contract, arrays and episodes: a function of what is in them, not of files or dates of making.

        The arrays' files are read in blocks; NumPy's format says the same of equal arrays in the same bytes.
        """
        digest = hashlib.sha256(f"{FORMAT}\x00{self._contract.digest}".encode())
        self._digests = {path.name: file_digest(path) for path in sorted(self.folder.glob("*.npy"))}
        digest.update(json.dumps(self._digests).encode())
        for name in ("episode_id", "policy_version"):
            column = self._episodes[name]
            for start in range(0, len(column), 100_000):
                digest.update(json.dumps(column.slice(start, 100_000).to_pylist()).encode())
        assert replay.starts is not None  # read from what was written
        for values in (replay.clusters, replay.split, *(t.astype(np.int64) for t in (replay.nights, replay.starts))):
            digest.update(np.ascontiguousarray(values).data)
        vocabularies = {name: list(labels) for name, labels in replay.observations.vocabularies.items()}
        digest.update(json.dumps([vocabularies, left_out], sort_keys=True).encode())
        return digest.hexdigest()

    def commit(self, replay: Replay, summary: SnapshotSummary) -> tuple[Path, SnapshotSummary]:
        """Seals what was written and renames it to its digest; where equal content stands already, that stays.

        Raises:
            SnapshotError: a snapshot of this content was erased.
            ObjectStoreError: it could not be uploaded to the bucket where snapshots lie; frozen again, it will be.
        """
        target = self.folder.with_name(summary.digest[:16])
        if erased_mark(target) is not None:
            raise SnapshotError(
                f"This snapshot would be {target} again, of which episodes were erased. `offline-dqn erase` takes them "
                "out of the lake too."
            )
        if _is_whole(target):
            _publish(target)
            return target, read_summary(target)
        others = [path for path in self.folder.iterdir() if path.is_file() and path.name not in self._digests]
        for path in others:
            flush_to_disk(path)
        written = {
            "format": FORMAT,
            "summary": summary.to_json(),
            "contract": self._contract.to_json(),
            "vocabularies": {name: list(labels) for name, labels in replay.observations.vocabularies.items()},
            "files": self._digests | {path.name: file_digest(path) for path in sorted(others)},
        }
        write_durably(self.folder / DESCRIPTION, json.dumps({**written, "seal": seal_of(written)}, indent=1))
        with replacing(target.parent):
            shutil.rmtree(target, ignore_errors=True)  # of a snapshot whose bytes have changed
            self.folder.replace(target)
        flush_to_disk(target.parent)
        _publish(target)
        return target, summary


class _ArrayFile:
    """A .npy file that grows by its first axis."""

    def __init__(self, folder: Path, name: str, dtype: DTypeLike, row: tuple[int, ...] = ()) -> None:
        self.path = folder / f"{name}.npy"
        self._dtype, self._row, self._n = np.dtype(dtype), row, 0
        with self.path.open("wb") as file:
            self._write_header(file)
            self._header_bytes = file.tell()

    def _write_header(self, file: Any) -> None:
        shape = (self._n, *self._row)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)  # leaves room for any length of the first axis

    def append(self, values: NDArray[Any]) -> None:
        # Plain appends: pages of a writable memory map would count as this process's memory.
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._n += len(values)

    def take_over(self, other: _ArrayFile) -> None:
        """Moves the rows of another file of the same type behind one's own."""
        with self.path.open("ab") as file, other.path.open("rb") as source:
            source.seek(other._header_bytes)
            shutil.copyfileobj(source, file, _BLOCK_BYTES)
        self._n += other._n
        other.path.unlink()

    def replace_values(self, rank: NDArray[Any]) -> None:
        """Every value by `rank[value]`, in place."""
        with self.path.open("r+b") as file:
            file.seek(self._header_bytes)
            while block := file.read(_BLOCK_BYTES // 64 * 64):
                file.seek(-len(block), 1)
                file.write(rank[np.frombuffer(block, dtype=self._dtype)].astype(self._dtype).data)

    def close(self) -> None:
        """Writes the length, and waits until the bytes are on the disk."""
        with self.path.open("r+b") as file:
            self._write_header(file)
            assert file.tell() == self._header_bytes
        flush_to_disk(self.path)


def count_splits(replay: Replay) -> dict[str, int]:
    """Episodes by name of split."""
    return {name: int((replay.split == code).sum()) for code, name in enumerate(SPLIT_NAMES)}


def rows_per_block(contract: Contract) -> int:
    """Steps of a block of about 32 MB."""
    # DuckDB and Arrow hold the numbers of an image in two bytes each, and they are copied on their way.
    features = contract.features.values()
    n_bytes = sum(4 * f.size if isinstance(f, ImageFeature) else 8 * math.prod(_stored_as(f)[1]) for f in features)
    return max(256, min(100_000, _BLOCK_BYTES // (n_bytes + 128)))


def _stored_as(feature: Feature) -> tuple[type[np.generic], tuple[int, ...]]:
    """Type and shape of a row of a feature's array."""
    if isinstance(feature, ImageFeature):
        return np.uint8, (feature.size + 1,)
    if isinstance(feature, VectorFeature):
        return np.float64, (feature.length,)
    return (np.int32 if isinstance(feature, CategoricalFeature) else np.float64), ()


@contextmanager
def new_snapshot(folder: Path) -> Iterator[Path]:
    """An empty folder beside the snapshots of `folder`, for one writer at a time; what is left of it goes at the end.

    Raises:
        SnapshotError: in place of what a full or read-only disk raises.
        LockedError: another process has been writing a snapshot for ten minutes.
    """
    staging = folder / _STAGING
    try:
        with exclusive_lock(folder / ".lock", f"The snapshots' folder {folder}", wait_s=600.0):
            finish_erasures(folder)
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            staging.mkdir()
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except (OSError, duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise SnapshotError(
            f"No snapshot could be written into {folder}: {error}. There is no new snapshot, and those before are as "
            "they were. See to it that the disk has room and the memory suffices (`snapshot.memory`), then run the "
            "same command again."
        ) from error


def _publish(path: Path) -> None:
    files: dict[str, str] = json.loads((path / DESCRIPTION).read_text())["files"]
    publish_snapshot(path, files)


def _is_whole(path: Path) -> bool:
    try:
        return not changed_files(path)
    except SnapshotError:
        return False
