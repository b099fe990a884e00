"""What keeps a workspace small and fast: compaction after an ingest, and retention at the end of a night."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from datasets import snapshot_bucket
from datasets.clocks import ClockError
from datasets.compaction import Compaction, compact
from datasets.erased import read_erased
from datasets.history import vacuum
from datasets.ingest import newest_timestamp
from datasets.lake import Lake, lake_lock
from datasets.redaction import check_stored
from datasets.retention import retire_rows
from datasets.snapshot import DESCRIPTION, SnapshotError, current_snapshot, read_summary
from datasets.snapshot_bucket import retire_snapshot
from datasets.tables import TABLES
from pipelines.workspace import Workspace
from reports import release_bucket
from reports.history import line_of_champions

_LEAVING = ".leaving-"
"""How the folder of a snapshot begins that is being removed: half of one must not look like a whole one."""


@dataclass(frozen=True)
class Retained:
    """What retention removed, or would remove.

    Attributes:
        n_rows: by table; "raw text" for emptied texts.
        snapshots: names of removed snapshots.
        n_files: files of former versions that were vacuumed, and objects in the bucket that the lake rests on no more.
        dry_run: whether nothing was touched.
    """

    n_rows: dict[str, int]
    snapshots: tuple[str, ...]
    n_files: int
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "snapshots": list(self.snapshots)}


def compact_lake(workspace: Workspace, lake: Lake, *, above: int | None = None) -> Compaction:
    """Merges small files, as configured or of every night with more than `above`, and vacuums former ones."""
    done = compact(lake, workspace.config.lake, above=above)
    if done.tables:
        with lake_lock(lake):
            _vacuum(workspace, lake, dry_run=False)
    return done


def check_snapshots(workspace: Workspace) -> None:
    """Takes out of the snapshots that this machine has stored in a bucket who was erased on another one meanwhile.

    Also of those of a process that died in between.

    Raises:
        SnapshotError, ObjectStoreError: a snapshot cannot be redacted. The next night tries it again.
    """
    check_stored(workspace.snapshots_path, lambda: read_erased(workspace.open_lake().root))


def retain(workspace: Workspace, *, dry_run: bool = False, may_empty: bool = False) -> Retained:
    """Removes what is older than `[retention]` says: rows, raw texts, snapshots, and files of former versions.

    The caller holds the workspace's lock.

    Args:
        may_empty: go on where no row of `steps` would be left; a clock that ran ahead asks for just that.

    Raises:
        ClockError: no row would be left. Nothing was removed.
    """
    lake, at = workspace.open_lake(), datetime.now(UTC)
    config = workspace.config.retention
    if not (dry_run or may_empty):
        _refuse_to_empty(lake, workspace.as_of(lake), config.steps_days)
    if not dry_run:
        check_snapshots(workspace)
    n_rows = retire_rows(lake, config, as_of=workspace.as_of(lake), at=at, dry_run=dry_run)
    snapshots = tuple(sorted(path.name for path in _aged_snapshots(workspace, at)))
    if not dry_run:
        _remove_snapshots(workspace, snapshots)
        snapshot_bucket.sweep_uploads(workspace.snapshots_path)
        release_bucket.sweep_uploads(workspace.releases_path)
    with lake_lock(lake):
        n_files = _vacuum(workspace, lake, dry_run=dry_run)
    if not dry_run:
        workspace.refresh_catalog(lake)
    return Retained(n_rows, snapshots, n_files, dry_run)


def _refuse_to_empty(lake: Lake, as_of: datetime, days: int | None) -> None:
    newest = newest_timestamp(lake) if days is not None else None
    if days is not None and newest is not None and as_of - newest > timedelta(days=days + 1):
        raise ClockError(
            f"Retention would leave no row: the newest step is of {newest:%Y-%m-%d %H:%M} UTC, it is taken to be "
            f"{as_of:%Y-%m-%d %H:%M} UTC, and [retention] keeps {days} days. Nothing was removed. If the clock ran "
            "ahead, set it; if it is right, `offline-dqn retain` removes them."
        )


def _vacuum(workspace: Workspace, lake: Lake, *, dry_run: bool) -> int:
    pinned = _pinned_versions(workspace)
    hours = workspace.config.retention.versions_hours
    n_files = sum(
        len(vacuum(lake.root, table, hours=hours, keep_versions=pinned[table], dry_run=dry_run)) for table in TABLES
    )
    return n_files + len(lake.collect_garbage(dry_run=dry_run))


def _pinned_versions(workspace: Workspace) -> dict[str, list[int]]:
    """The versions of each table that the champion's snapshot was frozen from, while that is not too long ago."""
    pinned = defaultdict[str, list[int]](list)
    champion = workspace.registry.champion()
    path = _snapshot_of(workspace, champion) if champion is not None else None
    if path is None:
        return pinned
    try:
        path = current_snapshot(path)
        if _age(path, datetime.now(UTC)) <= timedelta(days=workspace.config.retention.pinned_days):
            for table, version in read_summary(path).lake_versions.items():
                pinned[table].append(version)
    except (SnapshotError, OSError):
        return pinned  # it is gone or damaged: `drift` says so, and there is nothing left to pin
    return pinned


def _aged_snapshots(workspace: Workspace, at: datetime) -> Iterator[Path]:
    """Snapshots that are old enough to go, and that nothing rests on."""
    days = workspace.config.retention.snapshot_days
    if days is None:
        return
    folders = [path.parent for path in workspace.snapshots_path.glob(f"[!.]*/{DESCRIPTION}")]
    newest = max(folders, key=lambda path: (path / DESCRIPTION).stat().st_mtime, default=None)
    needed = {path.name for path in _needed_snapshots(workspace)}
    for path in folders:
        if path != newest and path.name not in needed and _age(path, at) > timedelta(days=days):
            yield path


def _needed_snapshots(workspace: Workspace) -> Iterator[Path]:
    """Those of the champion, of what rollback may return to, and of candidates, as frozen and as they stand now."""
    line = line_of_champions(workspace.registry.history())
    champion = line[-1] if line else -1
    for release in {*line, *(n for n in workspace.releases_on_disk() if n > champion)}:
        path = _snapshot_of(workspace, release)
        if path is not None:
            yield path
            try:
                yield current_snapshot(path)
            except SnapshotError:
                continue


def _remove_snapshots(workspace: Workspace, names: tuple[str, ...]) -> None:
    for name in names:
        retire_snapshot(workspace.snapshots_path / name)
        (workspace.snapshots_path / name).rename(workspace.snapshots_path / (_LEAVING + name))
    for path in workspace.snapshots_path.glob(f"{_LEAVING}*"):  # also what a process that died has left
        shutil.rmtree(path)
        for beside in ("tensorboard", "checkpoints"):  # of trainings on it
            shutil.rmtree(workspace.root / beside / path.name.removeprefix(_LEAVING), ignore_errors=True)


def _snapshot_of(workspace: Workspace, release: int) -> Path | None:
    path = workspace.release_path(release) / "training.json"
    if not path.exists():
        return None
    return workspace.snapshots_path / str(json.loads(path.read_text())["snapshot"])


def _age(path: Path, at: datetime) -> timedelta:
    return at - datetime.fromtimestamp((path / DESCRIPTION).stat().st_mtime, UTC)
