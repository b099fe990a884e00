"""The snapshots of a workspace: which there are, who rests on them, and whether their bytes are what was frozen."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from datasets.exchange import Export, export_d3rlpy, export_minari
from datasets.minari_logs import MinariLogs, import_minari
from datasets.replay import SPLIT_NAMES
from datasets.snapshot import (
    DESCRIPTION,
    ERASED,
    SnapshotError,
    SnapshotSummary,
    erased_mark,
    open_snapshot,
    read_summary,
)
from pipelines.workspace import Workspace, check_no_workspace, write_workspace


@dataclass(frozen=True)
class SnapshotRecord:
    """One snapshot as it stands now; its arrays were not read.

    Attributes:
        name: of its folder, the beginning of its digest.
        state: "as frozen", "redacted" (made anew without erased episodes), "erased", or "unreadable".
        note: what stands in an erased one's place, or why one is unreadable.
        summary: None where it is erased or unreadable.
        releases: that were trained on it.
    """

    name: str
    path: Path
    state: str
    note: str
    summary: SnapshotSummary | None
    releases: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        summary = self.summary.to_json() if self.summary else None
        return {**self.__dict__, "path": str(self.path), "summary": summary, "releases": list(self.releases)}


def list_snapshots(workspace: Workspace) -> list[SnapshotRecord]:
    """Every snapshot, also those that were erased, by the instant they stand for."""
    folders = {path.parent for name in (DESCRIPTION, ERASED) for path in workspace.snapshots_path.glob(f"[!.]*/{name}")}
    releases = _releases_by_snapshot(workspace)
    found = [_record(path, releases.get(path.name, ())) for path in sorted(folders)]
    return sorted(found, key=lambda record: record.summary.as_of if record.summary else "")


def find_snapshot(workspace: Workspace, name: str) -> SnapshotRecord:
    """The snapshot whose digest begins with `name`; the newest for "".

    Raises:
        SnapshotError: there is none, or more than one.
    """
    known = list_snapshots(workspace)
    if not known:
        raise SnapshotError(f"{workspace.snapshots_path} holds no snapshot. `offline-dqn snapshot` freezes one.")
    if not name:
        return known[-1]
    found = [record for record in known if record.name.startswith(name[: len(record.name)])]
    if len(found) != 1:
        listed = ", ".join(record.name for record in found or known)
        how = "Several snapshots begin" if found else "No snapshot begins"
        raise SnapshotError(f"{how} with '{name}'. There are: {listed}.")
    return found[0]


def export_snapshot(
    workspace: Workspace,
    name: str,
    target: Path,
    *,
    to: Literal["minari", "d3rlpy"],
    splits: Sequence[str],
    ignore_masks: bool = False,
) -> Export:
    """Writes some splits of a snapshot in another library's format.

    Raises:
        SnapshotError: there is no such snapshot, or its bytes have changed.
        ExchangeError: the format cannot hold it, or the target exists.
    """
    replay, summary = open_snapshot(find_snapshot(workspace, name).path)
    codes = [SPLIT_NAMES.index(split) for split in splits]
    if to == "minari":
        return export_minari(replay, target.absolute(), splits=codes, snapshot=summary.digest)
    return export_d3rlpy(replay, target, splits=codes, ignore_masks=ignore_masks)


def import_dataset(dataset: Path, root: Path, *, first_day: date) -> MinariLogs:
    """Makes a workspace of a Minari dataset: its episodes as a log, and a contract made of its spaces.

    The log then goes through the ingest like any other.

    Raises:
        WorkspaceError: `root` is a workspace already.
        ExchangeError: the dataset cannot be read, or a contract cannot describe it.
    """
    check_no_workspace(root)
    logs = import_minari(dataset, root / "logs" / "steps", first_day=first_day)
    workspace = write_workspace(root, "blank")
    (workspace.root / "contract.toml").write_text(logs.contract_text, encoding="utf-8")
    settings = workspace.root / "offline_dqn.toml"
    # The log's clock is made up: what is idle is judged by it, not by ours.
    settings.write_text(settings.read_text(encoding="utf-8").replace('as_of = "now"', 'as_of = "newest"'))
    return logs


def _record(path: Path, releases: tuple[int, ...]) -> SnapshotRecord:
    summary, note = None, ""
    try:
        mark = erased_mark(path)
        if mark is not None:
            state, note = (
                "erased",
                f"what is left of it is {mark['successor']}" if mark["successor"] else "nothing left",
            )
        else:
            summary = read_summary(path)
            state = "redacted" if summary.redacted_from else "as frozen"
    except SnapshotError as error:
        state, note = "unreadable", str(error)
    return SnapshotRecord(path.name, path, state, note, summary, releases)


def _releases_by_snapshot(workspace: Workspace) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for release in workspace.releases_on_disk():
        path = workspace.release_path(release) / "training.json"
        if path.exists():
            found[str(json.loads(path.read_text())["snapshot"])] += (release,)
    return found
