"""Erasure in snapshots: a snapshot is made anew without some episodes, and the old one goes.

Erasure wins over replay. The new snapshot has a digest of its own and says which one it was made from; in the old one's
place stays a mark that says when it was erased and what is left of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.coverage import write_coverage
from datasets.coverage_config import CoverageConfig
from datasets.durable import write_durably
from datasets.erased import EPISODE, Erased
from datasets.replay import Replay
from datasets.snapshot import (
    DESCRIPTION,
    ERASED,
    SnapshotError,
    SnapshotSummary,
    erased_mark,
    finish_erasures,
    open_snapshot,
)
from datasets.snapshot_bucket import set_checked, unchecked_snapshots
from datasets.snapshot_writer import SnapshotWriter, StepBlock, count_splits, new_snapshot, rows_per_block


def redact_snapshot(path: Path, episode_ids: Set[str], *, at: datetime | None = None) -> Path | None:
    """Takes episodes out of a snapshot: writes one without them under a new digest, then deletes the old one.

    Killed anywhere and repeated, it ends in the same: the mark is written once the new snapshot stands, and what a
    killed process left of the old one goes with the next snapshot that is written or redacted.

    Args:
        path: the snapshot's folder.
        episode_ids: the episodes that must go.
        at: when; default now.

    Returns:
        The folder that stands for it now: `path` itself where it holds none of them, else that of its successor. None
        where nothing is left, also of a snapshot whose bytes had changed: what it held can no longer be told, and
        nothing can be replayed from it anyway.

    Raises:
        SnapshotError: there is no such folder, or the new snapshot cannot be written; the old one is then as it was.
    """
    if not path.is_dir():
        raise SnapshotError(f"{path} is no snapshot: there is no such folder.")
    with new_snapshot(path.parent) as staging:  # finishes an erasure that was cut off
        mark = erased_mark(path)
        if mark is not None:
            return path.with_name(mark["successor"]) if mark["successor"] else None
        try:
            replay, summary = open_snapshot(path)
        except SnapshotError:
            _erase(path, path.name, None, at)
            return None
        gone = np.array([name in episode_ids for name in replay.episode_ids])
        if not gone.any():
            return path
        successor = _without(replay, summary, gone, staging) if not gone.all() else None
        if successor is not None:  # the newest snapshot stays the newest
            made = (path / DESCRIPTION).stat().st_mtime
            os.utime(successor / DESCRIPTION, (made, made))
        _erase(path, summary.digest, successor, at)
        return successor


def redact_erased(path: Path, erased: Erased) -> Path | None:
    """Takes out of a new snapshot who was erased by another machine while this one froze it.

    That machine has remembered the erased before it looked through the snapshots; so whichever of the two came last
    sees the other.

    Args:
        path: the snapshot's folder.
        erased: what the lake remembers now, after the snapshot was stored.

    Returns:
        The folder that stands for it now; None where nothing is left.

    Raises:
        SnapshotError, ObjectStoreError: as `redact_snapshot`.
    """
    replay, _ = open_snapshot(path)
    gone = {name for name in set(replay.episode_ids) if erased.holds(EPISODE, name)}
    return redact_snapshot(path, gone) if gone else path


def check_stored(folder: Path, remembered: Callable[[], Erased]) -> None:
    """Does what `redact_erased` does to every snapshot that this machine has stored and not checked since.

    A machine that dies between the two leaves a mark, from which the next command that calls this goes on. One whose
    bytes have changed keeps its mark: nothing can be read from it, and frozen again it is checked.

    Args:
        folder: of the snapshots.
        remembered: asks what the lake remembers now.

    Raises:
        SnapshotError, ObjectStoreError: as `redact_snapshot`; the mark stays.
    """
    looked_at = set[Path]()
    # What is left of one is stored, too, and may have been overtaken in its turn.
    while paths := [path for path in unchecked_snapshots(folder) if path not in looked_at]:
        looked_at.update(paths)
        with new_snapshot(folder):
            pass  # waits for one that is being stored: only what is remembered afterwards tells whether it may stay
        erased = remembered()
        for path in paths:
            if path.is_dir() and erased_mark(path) is None:
                try:
                    open_snapshot(path)
                except SnapshotError:
                    continue
                redact_erased(path, erased)
            set_checked(path)


def _without(replay: Replay, summary: SnapshotSummary, gone: NDArray[np.bool_], staging: Path) -> Path:
    kept, starts = np.flatnonzero(~gone), replay.starts
    assert starts is not None  # a snapshot has them
    codes = pa.array(replay.clusters[kept]).dictionary_encode().indices.cast(pa.int64())  # by first appearance, again
    episodes = pa.table(
        {
            "episode_id": pa.array(replay.episode_ids[kept], pa.string()),
            "cluster_code": codes,
            "night": pa.array(replay.nights[kept]),
            "start": pa.array(starts[kept]),
            "policy_version": pa.array(replay.policy_versions[kept], pa.string()),
            "split": pa.array(replay.split[kept]),
            "n_steps": pa.array(replay.lengths[kept]),
        }
    )
    writer = SnapshotWriter(staging, replay.contract, episodes)
    for block in _blocks(replay, ~gone):
        writer.append(block)
    written = writer.finish()
    redacted = replace(
        summary,
        n_steps=written.n_steps,
        n_episodes=written.n_episodes,
        split_episodes=count_splits(written),
        n_unusable_ends=writer.n_unusable_ends,
        n_erased=summary.n_erased + int(gone.sum()),
        redacted_from=summary.digest,
    )
    redacted = replace(redacted, digest=writer.content_digest(written, redacted.left_out))
    write_coverage(staging, written, CoverageConfig.model_validate(summary.config["coverage"]), redacted.digest)
    return writer.commit(written, redacted)[0]


def _blocks(replay: Replay, kept: NDArray[np.bool_]) -> Iterator[StepBlock]:
    """The steps of the kept episodes ((N,) bool), in order; the arrays are read block by block."""
    for steps, part in replay.step_blocks(rows_per_block(replay.contract)):
        episode = np.searchsorted(replay.offsets, steps, side="right") - 1
        steps, episode = steps[kept[episode]], episode[kept[episode]]
        next_row = part.next_row[steps]
        has_final = next_row >= replay.n_steps
        yield StepBlock(
            observations=part.observations.take(steps),
            finals=part.observations.take(next_row[has_final]),
            available=part.available[steps],
            actions=part.actions[steps],
            rewards=part.rewards[steps],
            terminated=part.terminated[steps],
            truncated=part.truncated[steps],
            behavior_prob=part.behavior_prob[steps],
            is_last=steps + 1 == replay.offsets[episode + 1],
            has_final=has_final,
        )


def _erase(path: Path, digest: str, successor: Path | None, at: datetime | None) -> None:
    """The mark first, then the rest: a snapshot with a mark cannot be opened, whatever else is still there."""
    mark = {
        "digest": digest,
        "erased_at": (at or datetime.now(UTC)).isoformat(),
        "successor": successor.name if successor else None,
    }
    write_durably(path / ERASED, json.dumps(mark, indent=1))
    finish_erasures(path.parent)
