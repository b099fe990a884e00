"""Promises kept, at the edge: every release that was ever promoted, and the episodes that it wrote since."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from datasets.freezing import read_episodes
from datasets.replay import Replay
from datasets.snapshot import SnapshotError, current_snapshot, read_summary
from datasets.splits import last_night_over
from offline_dqn.policy import Policy
from pipelines.acting import ReleaseError, load_release
from pipelines.readings import snapshot_of
from pipelines.training import VERSION_ZERO, StageError, written_by
from pipelines.workspace import Workspace
from reports.promises import judge_promise
from reports.proof_records import Promise
from reports.records import Evaluation


def promises_of(workspace: Workspace, evaluation_of: Callable[[int], Evaluation | None]) -> tuple[Promise, ...]:
    """Of each release that was ever promoted, in the order of their first promotions; the rules promised nothing.

    Args:
        workspace: its lake is read once, from the oldest of their snapshots on.
        evaluation_of: the recorded evaluation of a release.
    """
    first = {p.to_release: p.at for p in reversed(workspace.registry.history()) if p.to_release != VERSION_ZERO}
    since, lost = {}, {}
    for release in first:
        try:
            summary = read_summary(current_snapshot(snapshot_of(workspace, release)))
            since[release] = datetime.fromisoformat(summary.as_of)
        except (SnapshotError, StageError) as error:
            lost[release] = f"what it was judged on is gone ({str(error).removesuffix('.')})"
    live, as_of = None, datetime.now(UTC)
    if since:
        lake = workspace.open_lake()
        as_of = workspace.as_of(lake)
        live = read_episodes(lake, workspace.config.snapshot, as_of=as_of, started_after=min(since.values()))
    found = []
    for release, promoted in sorted(first.items(), key=lambda item: item[1]):
        at = promoted.astimezone(UTC).isoformat(timespec="seconds")
        own = None
        if release not in lost and live is not None:
            try:
                policy = load_release(workspace, release, live.contract)
                own = own_episodes(workspace, policy, release, live, since=since[release], as_of=as_of)
            except ReleaseError as error:
                lost[release] = str(error).removesuffix(".")
        if release in lost:
            found.append(Promise(release, at, verdict="cannot be judged", cause=lost[release]))
        else:
            found.append(judge_promise(release, at, evaluation_of(release), own))
    return tuple(found)


def own_episodes(
    workspace: Workspace, policy: Policy, release: int, live: Replay, *, since: datetime, as_of: datetime
) -> Replay | None:
    """The episodes that a release wrote, by number and probabilities, in whole nights that are over; None without any.

    Args:
        since: its snapshot's instant; nights count from the next one on, so nothing that judged it does.
        as_of: the instant taken for now.
    """
    whole_nights = workspace.config.ingest.as_of == "newest"
    last = last_night_over(live.contract, as_of, whole_nights=whole_nights)
    counts = (live.nights > np.datetime64(since.astimezone(UTC).date())) & (live.nights <= np.datetime64(last))
    named = live.subset(counts & (live.policy_versions == str(release)))
    own = named.subset(written_by(policy, release, named))
    return own if own.n_episodes else None
