"""The episodes of a log in memory, whether it lies in the lake or in files that were never taken in."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from datasets.freezing import read_episodes
from datasets.ingest import ingest_logs
from datasets.lake import Lake, open_lake
from datasets.replay import Replay
from pipelines.training import StageError
from pipelines.workspace import Workspace


def read_log(workspace: Workspace, paths: Sequence[Path] = ()) -> tuple[Replay, datetime]:
    """The complete, undamaged episodes of the lake or of the given files, and the instant at which they are judged.

    Raises:
        StageError: there is none, or the files cannot be taken in by themselves.
    """
    if not paths:
        lake = workspace.open_lake()
        return _episodes_of(workspace, lake, workspace.as_of(lake))
    if workspace.contract.outcomes is not None:
        raise StageError(
            "Rewards of this problem arrive in logs of their own, which single files do not hold. Run `offline-dqn "
            "ingest`, then the same command without paths."
        )
    with tempfile.TemporaryDirectory(prefix="offline-dqn-log-") as folder:
        lake = open_lake(Path(folder) / "lake", workspace.contract)
        tolerant = workspace.config.validate_.model_copy(update={"max_quarantined_share": 1.0})
        report = ingest_logs(lake, paths, workspace.config.ingest, tolerant, base=workspace.root)
        if report.batch is None or report.batch.status != "lake":
            why = report.batch.note if report.batch else "they hold no row"
            raise StageError(f"Nothing can be said of these files: {why}")
        return _episodes_of(workspace, lake, report.batch.as_of)


def _episodes_of(workspace: Workspace, lake: Lake, as_of: datetime) -> tuple[Replay, datetime]:
    replay = read_episodes(lake, workspace.config.snapshot, as_of=as_of)
    if replay is None:
        raise StageError(
            f"No episode is complete and undamaged at {as_of:%Y-%m-%d %H:%M} UTC. Ingest logs first, look for a held "
            "batch with `offline-dqn batches list`, or see why with "
            '`offline-dqn query "SELECT complete, damage, count(*) FROM episodes GROUP BY ALL"`.'
        )
    return replay, as_of
