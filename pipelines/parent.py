"""The champion as the parent of tonight's training: what it may give, and what is older than it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.errors import OfflineDqnError
from datasets.replay import Replay
from datasets.settings import build_settings
from datasets.snapshot import SnapshotError, SnapshotSummary, current_snapshot, read_summary
from datasets.snapshot_config import SnapshotConfig
from datasets.splits import last_night_over, split_rule
from offline_dqn.networks import Parameters
from offline_dqn.sampling import BatchSource
from offline_dqn.warm_start import champion_parameters
from pipelines.acting import load_release
from pipelines.excluding import taint_of_snapshot
from pipelines.workspace import Workspace
from reports.manifest import read_manifest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parent:
    """A champion that was trained here.

    Attributes:
        release: its number.
        digest: of its manifest: another parent gives another child.
        older: (N,) bool, episodes of tonight's snapshot from nights that the champion's snapshot held.
        refused: why training must not begin with its networks; "" where it may.
    """

    release: int
    digest: str
    older: NDArray[np.bool_]
    refused: str

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON values that tell it from another."""
        return {"release": self.release, "digest": self.digest}


def find_parent(workspace: Workspace, replay: Replay, summary: SnapshotSummary) -> Parent | None:
    """The champion, if tonight's training makes use of it (`warm_start`, `older_share`) and it was trained here.

    Nothing that judges tonight may have trained the champion, or the champion's own parents: its snapshot must have
    been split by the same rule, and where the latest nights judge, tonight's must not reach back behind its own.
    """
    config, champion = workspace.config.train, workspace.registry.champion()
    if not (config.warm_start or config.older_share is not None) or champion is None:
        return None
    folder = workspace.release_path(champion)
    manifest = read_manifest(folder)
    if manifest is None or "training.json" not in manifest.files:
        return None  # rules, or not made here: nothing was trained
    training = json.loads((folder / "training.json").read_text())
    last = last_night_over(
        replay.contract,
        datetime.fromisoformat(training["as_of"]),
        whole_nights=workspace.config.ingest.as_of == "newest",
    )
    return Parent(
        release=champion,
        digest=manifest.digest,
        older=np.asarray(replay.nights <= np.datetime64(last)),
        refused=_why_not(workspace, replay, summary, training["snapshot"]) if config.warm_start else "",
    )


def first_parameters(workspace: Workspace, parent: Parent | None, source: BatchSource) -> Parameters | None:
    """The champion's networks for tonight's learners; None, with a logged warning, where training starts afresh."""
    config = workspace.config.train
    if not config.warm_start:
        return None
    if parent is None:
        _logger.info("warm_start: there is no trained champion yet; training starts afresh")
        return None
    refused = parent.refused
    if not refused:
        try:
            return champion_parameters(load_release(workspace, parent.release, source.contract), source, config)
        except OfflineDqnError as error:
            refused = str(error)
    _logger.warning(
        "warm_start: training starts afresh instead of from release %d, the champion: %s", parent.release, refused
    )
    return None


def _why_not(workspace: Workspace, replay: Replay, summary: SnapshotSummary, snapshot: str) -> str:
    tainted = taint_of_snapshot(workspace, snapshot)
    if tainted is not None:
        return tainted.in_words
    try:
        before = read_summary(current_snapshot(workspace.snapshots_path / snapshot))
    except SnapshotError as error:
        return f"how its episodes were split cannot be checked ({error})"
    was, now = (
        split_rule(build_settings(SnapshotConfig, found.config, "the snapshot's configuration"), replay.contract)
        for found in (before, summary)
    )
    changed = [f"{name} was {was[name]!r} and is {now[name]!r}" for name in now if was[name] != now[name]]
    if changed:
        return f"its episodes were split otherwise ({', '.join(changed)}), so it may have seen what judges tonight"
    if before.gate_since and summary.gate_since and summary.gate_since < before.gate_since:
        return (
            f"tonight's gate begins on {summary.gate_since}, before {before.gate_since}: it was trained on nights that "
            "would judge its child"
        )
    return ""
