"""The newest nights: which they are, and whether they are like the episodes that a candidate was judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np

from datasets.batches import list_batches
from datasets.encoding import fit_encoder
from datasets.freezing import read_episodes
from datasets.replay import GATE, TRAIN, Replay
from datasets.snapshot import SnapshotError, SnapshotSummary, current_snapshot, open_snapshot
from datasets.splits import last_night_over
from drift.detection import measure_drift
from drift.records import ColumnDrift, DriftReport
from drift.windows import window_from_replay
from offline_dqn.policy import Policy
from pipelines.acting import ReleaseError, load_release
from pipelines.workspace import Workspace
from reports.crossfit import estimated_probs, step_probs
from reports.estimators import cumulative_log_weights
from reports.formatting import counted
from reports.records import Freshness


def newest_nights(workspace: Workspace, live: Replay | None, as_of: datetime) -> Replay | None:
    """The newest nights that are over: an early-morning fragment of today would differ from any whole day.

    A night is over when the last episode that may have started in it has ended or timed out, and none of its rewards
    is awaited any more. Simulated and back-filled logs come in whole nights; but the last windows of such a night are
    open until later rows have come in.
    """
    if live is None:
        return None
    whole_nights = workspace.config.ingest.as_of == "newest"
    last = last_night_over(live.contract, as_of, whole_nights=whole_nights)
    nights = np.unique(live.nights)
    nights = nights[nights <= np.datetime64(last)]
    newest = nights[-workspace.config.drift.live_nights :]
    return live.subset(np.isin(live.nights, newest)) if len(newest) else None


def nothing_to_compare(since: Replay | None, frozen_at: datetime, as_of: datetime) -> str:
    """Why no night is there to be compared, and when one will be, as a clause; for where `newest_nights` gives None.

    Args:
        since: the episodes since the snapshot of `frozen_at`.
        frozen_at: instant of what the champion was judged on.
        as_of: the instant taken for now.
    """
    if since is None:
        return (
            f"no complete episode has begun since {frozen_at:%Y-%m-%d %H:%M} UTC, when what the champion was judged on "
            "was frozen; there is something to compare once the logs of a night have come in"
        )
    first, rules = since.nights.min().astype(date), since.contract
    waits_s = rules.episodes.timeout_s + (rules.outcomes.window_s if rules.outcomes is not None else 0.0)
    over = datetime.combine(first, time(), UTC) + timedelta(days=1, seconds=waits_s)
    return (
        f"no night is over that began since what the champion was judged on was frozen; at {as_of:%Y-%m-%d %H:%M} UTC "
        f"that of {first} is still going on, and can be compared from {over:%Y-%m-%d %H:%M} UTC on"
    )


def weights_to(policy: Policy, gate: Replay) -> Any:
    """(T,) weight of each step of the log as `policy` would have visited it; None where the log cannot say.

    In units of the largest: along a long episode the product of ratios itself may be no float. Where a few episodes
    have all the weight, the effective number of episodes says so, and nothing is compared.
    """
    if not (gate.behavior_prob > 0).all():
        return None
    probs = step_probs(policy, gate)
    taken = probs[np.arange(gate.n_steps), gate.actions]
    log_weights = cumulative_log_weights(taken, gate.behavior_prob, gate.offsets)
    largest = log_weights.max(initial=-np.inf)
    return np.exp(log_weights - largest) if np.isfinite(largest) else np.zeros(gate.n_steps)


UNWEIGHABLE = (
    "another policy wrote the reference, and its log lacks the probabilities to weight it to what acts now; log "
    "behavior_prob, or wait for the champion's own nights"
)


_UNKNOWN = (
    "another policy wrote the gate episodes, and their log lacks the probabilities to weight them to what acts now; "
    "log behavior_prob"
)


def with_probs(workspace: Workspace, gate: Replay, train: Replay) -> Replay:
    """The `gate` episodes with behavior probabilities that are estimated on `train`, where the contract says so."""
    if gate.contract.behavior.propensity == "logged" or not train.n_episodes:
        return gate
    config = workspace.config
    encoder = fit_encoder(train.contract, train.observations)
    estimated = estimated_probs(train, gate, encoder, config.evaluate.propensity, config.drift.seed)
    return replace(gate, behavior_prob=estimated)


def freshness(workspace: Workspace, replay: Replay, summary: SnapshotSummary) -> Freshness:
    """Whether the newest nights since a snapshot are like its `gate` episodes.

    The thresholds are those of the nightly drift check. Where most of the newest nights were written by a release that
    did not write most of the `gate` episodes, these are weighted to how it acts: its choices change no world.
    """
    lake = workspace.open_lake()
    held = [b for b in list_batches(lake) if b.status == "held" and b.kind == "outcomes"]
    if held:
        return _without("not enough data", f"batch {held[-1].batch_id} of outcomes is held, so rewards are missing")
    as_of = workspace.as_of(lake)
    frozen_at = datetime.fromisoformat(summary.as_of)
    live = newest_nights(
        workspace, read_episodes(lake, workspace.config.snapshot, as_of=as_of, started_after=frozen_at), as_of
    )
    if live is None:
        return _without("no newer nights", f"no night is over that began after the snapshot of {summary.as_of[:16]}")
    gate = replay.of_split(GATE)
    try:
        weights, weighable = _weights_to_the_acting(workspace, live, gate, replay.of_split(TRAIN))
    except ReleaseError as error:
        return _without("not enough data", f"what acted in the newest nights is not known: {error}", live)
    if not weighable:
        return _without("not enough data", _UNKNOWN, live)
    report = measure_drift(window_from_replay(gate, weights), window_from_replay(live), workspace.config.drift)
    return _found(report, live)


def freshness_of_release(workspace: Workspace, snapshot: Any) -> Freshness:
    """`freshness` of what a release was judged on, from its snapshot's folder; an erased one cannot tell."""
    try:
        return freshness(workspace, *open_snapshot(current_snapshot(snapshot)))
    except SnapshotError as error:
        return _without("not enough data", f"what it was judged on cannot be read ({error})")


def acting_release(workspace: Workspace, live: Replay) -> int | None:
    """The release on disk whose number most episodes carry; None where no number is in the majority."""
    names, counts = np.unique(live.policy_versions.astype(str), return_counts=True)
    name = str(names[counts.argmax()])
    known = name.isdecimal() and int(name) in workspace.releases_on_disk()
    return int(name) if known and counts.max() > live.n_episodes / 2 else None


def _weights_to_the_acting(workspace: Workspace, live: Replay, gate: Replay, train: Replay) -> tuple[Any, bool]:
    """(T,) weights, None where all steps count alike; and False where the log cannot say how they should."""
    acting = acting_release(workspace, live)
    if acting is None or (gate.policy_versions == str(acting)).mean() > 0.5:
        return None, True
    policy = load_release(workspace, acting, gate.contract)
    weights = weights_to(policy, with_probs(workspace, gate, train))
    return weights, weights is not None


def _without(status: Any, why: str, live: Replay | None = None) -> Freshness:
    nights, n_episodes = (_nights(live), live.n_episodes) if live is not None else ((), 0)
    words = "There is nothing newer to compare" if status == "no newer nights" else "Not enough new data to tell"
    return Freshness(status, f"{words}: {why}.", nights, n_episodes, None, None, None, optimistic=False)


def _found(report: DriftReport, live: Replay) -> Freshness:
    nights = _nights(live)
    over = (
        f"{counted(live.n_episodes, 'episode')} of {nights[0] if len(nights) == 1 else f'{nights[0]} to {nights[-1]}'}"
    )
    if report.status == "not enough data":
        return _without("not enough data", f"{over}: {report.sentence.rstrip('.')}", live)
    column = _nearest(report.columns, report.min_psi)
    threshold = max(column.threshold or 0.0, report.min_psi)
    drifted = report.drifted_columns
    numbers = f"PSI of {column.name} is {column.psi:.3g} where {threshold:.3g} would alarm"
    words = (
        f"The newest nights differ from the gate episodes: {over}, {', '.join(c.name for c in drifted[:3])}"
        f"{f' and {len(drifted) - 3} more' if len(drifted) > 3 else ''} drifted ({numbers})"
        if drifted
        else f"The newest nights are like the gate episodes: {over}; the {numbers}"
    )
    caveat = (
        "; the threshold knows of no shocks that a night shares, so it alarms too often" if report.optimistic else ""
    )
    return Freshness(
        status="differs" if drifted else "like the gate",
        sentence=f"{words}{caveat}.",
        nights=nights,
        n_episodes=live.n_episodes,
        column=column.name,
        psi=column.psi,
        threshold=threshold,
        optimistic=report.optimistic,
    )


def _nearest(columns: Sequence[ColumnDrift], min_psi: float) -> ColumnDrift:
    """The column that is furthest above what would alarm, or nearest to it."""
    judged = [c for c in columns if c.psi is not None and c.threshold is not None]
    return max(judged, key=lambda c: (c.psi or 0.0) / max(c.threshold or 0.0, min_psi, 1e-12))


def _nights(live: Replay) -> tuple[str, ...]:
    return tuple(str(night) for night in np.unique(live.nights))
