"""When a workspace trained last: what the cool-down counts from."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

from datasets.snapshot import SnapshotError, read_summary
from pipelines.nights import read_nights
from pipelines.training import VERSION_ZERO
from pipelines.workspace import Workspace


def last_training(workspace: Workspace, before: datetime) -> date | None:
    """Night of the last training before an instant, whatever became of its candidate; None if there was none.

    A training is a candidate: one that a night made, as its record says, or one that `train` made by hand, at the
    instant of the snapshot it was trained on. One that failed left none, and nothing waits for it. One at `before`
    itself is that of the night which runs again, so it is told what it was told then.
    """
    found = [
        datetime.fromisoformat(night.as_of) for night in read_nights(workspace.nights_path) if night.release is not None
    ]
    for release in workspace.releases_on_disk():
        path = workspace.release_path(release) / "training.json"
        if release == VERSION_ZERO or not path.is_file():
            continue
        training = json.loads(path.read_text())
        if "compression" in training:  # made of a policy, not of data
            continue
        try:
            found.append(datetime.fromisoformat(read_summary(workspace.snapshots_path / training["snapshot"]).as_of))
        except SnapshotError:  # gone by retention or erasure: the night's record tells, or it is long ago
            continue
    earlier = [instant for instant in found if instant < before.replace(microsecond=0)]
    return max(earlier).astimezone(UTC).date() if earlier else None
