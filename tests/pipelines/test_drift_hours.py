"""`[drift] seasonality = "hour"` from the log's timestamps to what the night says."""

from __future__ import annotations

import json

import numpy as np

from datasets.snapshot import open_snapshot
from pipelines import stages
from pipelines.readings import snapshot_of
from pipelines.workspace import Workspace
from tests.pipelines.conftest import edit


def test_half_a_days_log_is_compared_hour_by_hour(workspace: Workspace) -> None:
    edit(workspace.root / "offline_dqn.toml", "[train]", '[drift]\nseasonality = "hour"\n\n[train]')
    log = stages.simulate(workspace).path
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    first = {row["episode_id"]: row["timestamp"] for row in rows if row["step"] == 0}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows if int(first[row["episode_id"]][11:13]) < 12))
    stages.ingest(workspace)

    report = stages.measure(Workspace(workspace.root)).report

    gate, _ = open_snapshot(snapshot_of(workspace, 1))
    assert gate.starts is not None
    assert len(np.unique(gate.starts.astype("datetime64[h]").astype(int) % 24)) > 12
    assert report is not None
    assert report.status != "not enough data"
    assert report.live_episodes == sum(int(start[11:13]) < 12 for start in first.values())
    assert all("seasonality = 'hour'" in test.reason for test in report.joint)
