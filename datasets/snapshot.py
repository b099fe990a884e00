"""A snapshot on disk: the fixed replay dataset as memory-mapped arrays under a seal, or the mark that it was erased."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets.bucket_folder import bucket_behind
from datasets.bucket_folder import file_digest as file_digest
from datasets.contract import Contract, contract_from_json
from datasets.errors import OfflineDqnError
from datasets.object_store import ObjectMissingError
from datasets.observations import Observations
from datasets.replay import STEP_ARRAYS, Replay
from datasets.snapshot_bucket import DESCRIPTION as DESCRIPTION
from datasets.snapshot_bucket import EPISODES as EPISODES
from datasets.snapshot_bucket import ERASED as ERASED
from datasets.snapshot_bucket import STORED, fetch_files, publish_erasures, pull_snapshots

FORMAT = 3


class SnapshotError(OfflineDqnError):
    """A snapshot that cannot be made, or whose bytes are not what was frozen."""


class ErasedSnapshotError(SnapshotError):
    """A snapshot that is gone because episodes of it were erased: what rests on it cannot be replayed."""


@dataclass(frozen=True)
class SnapshotSummary:
    """What a snapshot holds and what was left out of it.

    Attributes:
        digest: SHA-256 of the content: equal data, contract and splits give an equal digest.
        as_of: the instant that decided which episodes were complete.
        lake_versions: Delta version of each table it was read from.
        judge_since: first night of `select` and `gate`, after a change of the world; None: all nights.
        gate_since: first night that judges where `gate` is the latest nights; None where the hash decides.
        n_steps, n_episodes: what is frozen.
        split_episodes: episodes by split.
        n_open: episodes that had not ended at `as_of`.
        n_damaged: episodes left out whole, and `damage` why, with counts.
        n_unplaced: quarantined rows that name no episode, and episodes of which nothing else came in. Rows of
            a rejected batch count until they are read again.
        n_before_change: episodes of `select` and `gate` left out because they are older than `judge_since`.
        n_too_new: episodes left out because their night is not closed yet: it will judge once it is.
        n_unusable_ends: truncated last steps whose next observation is not known.
        n_excluded: episodes that a person took out of training and evaluation, and `excluded` how many by which rule.
        n_erased: episodes that erasure took out since it was frozen; `redacted_from` is the digest it had before.
    """

    digest: str
    as_of: str
    lake_versions: Mapping[str, int]
    judge_since: str | None
    gate_since: str | None
    n_steps: int
    n_episodes: int
    split_episodes: Mapping[str, int]
    n_open: int
    n_damaged: int
    damage: Mapping[str, int]
    n_unplaced: int
    n_before_change: int
    n_too_new: int
    n_unusable_ends: int
    n_erased: int
    redacted_from: str | None
    config: Mapping[str, Any]
    n_excluded: int = 0
    excluded: Mapping[str, int] = field(default_factory=dict)

    @property
    def damaged_share(self) -> float:
        """Damaged episodes among those that ended; what cannot be placed counts as one more each."""
        damaged = self.n_damaged + self.n_unplaced
        return damaged / max(1, damaged + self.n_episodes + self.n_before_change + self.n_too_new)

    @property
    def left_out(self) -> dict[str, Any]:
        """What is not in it, and why: part of the digest, because the gate charges for damage."""
        names = ("n_open", "n_damaged", "damage", "n_unplaced", "n_before_change", "n_too_new", "n_erased")
        excluded = {"n_excluded": self.n_excluded} if self.n_excluded else {}
        return {name: getattr(self, name) for name in names} | excluded

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def open_snapshot(path: Path) -> tuple[Replay, SnapshotSummary]:
    """The replay dataset in `path`, its arrays memory-mapped, after its bytes were checked.

    The check reads every file once, in blocks; nothing but the table of episodes is kept in memory. Where the folder is
    a copy of what lies in a bucket, files that are missing or changed here are fetched.

    Raises:
        ErasedSnapshotError: episodes of it were erased; names what stands in its place.
        SnapshotError: it does not exist, is of another format, or a byte of it has changed.
        ObjectStoreError: the bucket cannot be asked, or does not hold what was frozen.
    """
    written = _description(path)
    changed = _changed_files(path, written)
    if changed:
        written = _fetched(path, written, changed)
        changed = _changed_files(path, written)
    if changed:
        raise SnapshotError(_changed(path / changed[0]))
    contract = contract_from_json(written["contract"], str(path / DESCRIPTION))
    vocabularies = {name: tuple(labels) for name, labels in written["vocabularies"].items()}
    summary = SnapshotSummary(**written["summary"])
    return load_replay(path, contract, vocabularies, summary.digest, mapped=True), summary


def read_summary(path: Path) -> SnapshotSummary:
    """What a snapshot says of itself; its arrays are not read.

    Raises:
        SnapshotError: as `open_snapshot`, for the description alone.
    """
    return SnapshotSummary(**_description(path)["summary"])


def changed_files(path: Path) -> list[str]:
    """Names of the files of a snapshot that are missing or not what was frozen; reads every byte of it.

    Raises:
        SnapshotError: its description cannot be read, is changed, or says that it was erased.
    """
    return _changed_files(path, _description(path))


def fetch_snapshot(path: Path) -> None:
    """Fetches the files of a snapshot in a bucket that are missing or changed here.

    Raises:
        SnapshotError, ObjectStoreError: as `open_snapshot`.
    """
    written = _description(path)
    changed = _changed_files(path, written) if bucket_behind(path.parent) is not None else []
    if changed:
        _fetched(path, written, changed)


def fetch_episodes(path: Path) -> None:
    """Fetches the table of episodes of a snapshot in a bucket, where it is missing here."""
    if bucket_behind(path.parent) is not None and not (path / EPISODES).exists() and erased_mark(path) is None:
        _fetched(path, _description(path), [EPISODES])


def _fetched(path: Path, written: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The description of a snapshot in a bucket once these files of it were fetched; the same where there is none."""
    try:
        fetch_files(path, {name: written["files"][name] for name in names})
    except ObjectMissingError:
        pull_snapshots(path.parent)  # it may have been erased, or stored anew, a moment ago
        written = _description(path)
        fetch_files(path, {name: written["files"][name] for name in names})
    return written


def load_replay(
    path: Path, contract: Contract, vocabularies: Mapping[str, tuple[str, ...]], digest: str, *, mapped: bool
) -> Replay:
    """The arrays of a snapshot's folder, memory-mapped or read; nothing is checked."""
    episodes = pq.read_table(path / EPISODES)
    columns = {name: _load(path, f"observation.{i}", mapped) for i, name in enumerate(contract.features)}
    return Replay(
        contract=contract,
        digest=digest,
        observations=Observations(columns, vocabularies),
        **{name: _load(path, name, mapped) for name in STEP_ARRAYS},
        offsets=_load(path, "offsets", mapped),
        episode_ids=_strings(episodes["episode_id"]),
        clusters=episodes["cluster_code"].to_numpy(),
        nights=episodes["night"].to_numpy().astype("datetime64[D]"),
        policy_versions=_strings(episodes["policy_version"]),
        split=episodes["split"].to_numpy(),
        starts=episodes["start"].to_numpy().astype("datetime64[us]"),
    )


def seal_of(written: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in a snapshot's description."""
    text = json.dumps({key: value for key, value in written.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def erased_mark(path: Path) -> dict[str, Any] | None:
    """What is left of an erased snapshot: its digest, when it went, and the folder of its successor; None if it lives.

    Raises:
        SnapshotError: the mark cannot be read.
    """
    try:
        mark: dict[str, Any] = json.loads((path / ERASED).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SnapshotError(
            f"{path / ERASED} says that the snapshot was erased, but cannot be read: {error}."
        ) from error
    return mark


def current_snapshot(path: Path) -> Path:
    """The folder that stands for a snapshot now: its own, or after erasures that of its last successor.

    Raises:
        ErasedSnapshotError: nothing of it is left.
    """
    mark = erased_mark(path)
    if mark is None:
        return path
    if mark["successor"] is None:
        raise _erased(path, mark)
    return current_snapshot(path.with_name(mark["successor"]))


def finish_erasures(folder: Path) -> None:
    """Deletes what is left of snapshots whose erasure was cut off; the caller holds the folder's lock."""
    marks = sorted(folder.glob(f"*/{ERASED}"))
    publish_erasures(folder, marks)
    for mark in marks:
        for path in mark.parent.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (ERASED, STORED):
                path.unlink()


def _description(path: Path) -> dict[str, Any]:
    mark = erased_mark(path)
    if mark is not None:
        raise _erased(path, mark)
    try:
        written: dict[str, Any] = json.loads((path / DESCRIPTION).read_text())
        found = written["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SnapshotError(
            f"{path} holds no readable snapshot ({error}). `offline-dqn snapshot` makes one."
        ) from error
    if found != FORMAT:
        raise SnapshotError(f"{path} is of snapshot format {found}; this version reads format {FORMAT}.")
    if written.get("seal") != seal_of(written):
        raise SnapshotError(_changed(path / DESCRIPTION))
    return written


def _changed_files(path: Path, written: Mapping[str, Any]) -> list[str]:
    files: Mapping[str, str] = written["files"]
    return [name for name, digest in files.items() if not _is(path / name, digest)]


def _is(path: Path, digest: str) -> bool:
    return path.exists() and file_digest(path) == digest


def _changed(path: Path) -> str:
    return (
        f"{path} is not what was frozen (missing or changed). Delete that snapshot and freeze a new one with "
        "`offline-dqn snapshot`."
    )


def _erased(path: Path, mark: Mapping[str, Any]) -> ErasedSnapshotError:
    after = mark["successor"]
    stands = f"What is left of it is the snapshot {after}." if after else "Nothing of it is left."
    return ErasedSnapshotError(
        f"{path} is not replayable: erased on {str(mark['erased_at'])[:10]}, with episodes that had to go. {stands}"
    )


def _load(path: Path, name: str, mapped: bool) -> NDArray[Any]:
    mode: Literal["r"] | None = "r" if mapped else None
    values: NDArray[Any] = np.load(path / f"{name}.npy", mmap_mode=mode, allow_pickle=False)
    return values


def _strings(column: pa.ChunkedArray) -> NDArray[Any]:
    encoded = column.combine_chunks().dictionary_encode()  # equal strings become one object
    labels = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    strings: NDArray[Any] = labels[encoded.indices.to_numpy()]
    return strings
