"""How often a candidate's guard leaves ordinary decisions to version 0, measured on episodes that set no threshold."""

from __future__ import annotations

import numpy as np
from scipy import stats

from datasets.replay import Replay
from offline_dqn.guard import CAUSES, STRANGE
from offline_dqn.guarded import GuardedPolicy, fallback_reasons
from offline_dqn.policy import Policy
from reports.estimators import Floats, Ints
from reports.intervals import cluster_codes
from reports.records import GuardReport, Interval

_MOST_FEATURES = 5
"""That are named."""


def report_guard(candidate: Policy, gate: Replay, level: float) -> GuardReport | None:
    """What the guard does at the steps of the `gate` episodes, as logged; None for a policy without one.

    Args:
        candidate: the policy on trial.
        gate: nothing of the guard was fitted to it.
        level: of the interval.
    """
    if not isinstance(candidate, GuardedPolicy):
        return None
    observations = gate.observations.take(np.arange(gate.n_steps))
    # Where version 0 knows no action that is permitted the policy acts after all, or the shield.
    reasons = np.array(fallback_reasons(candidate, observations, gate.permitted[: gate.n_steps]))
    calibration = candidate.guard.calibration
    fires = (reasons != "").astype(np.float64)
    strange = np.flatnonzero(reasons == STRANGE)
    features: dict[str, float] = {}
    if len(strange):
        parts = candidate.guard.familiarity.shares_of_distance(observations.take(strange)).mean(axis=0)
        names = list(candidate.guard.familiarity.features)
        features = {names[i]: float(parts[i]) for i in np.argsort(-parts, kind="stable")[:_MOST_FEATURES]}
    return GuardReport(
        false_alarm_share=calibration.false_alarm_share,
        held=calibration.held,
        n_clusters=calibration.n_clusters,
        n_steps=gate.n_steps,
        share=float(fires.mean()),
        interval=share_interval(fires, gate.clusters[gate.episode_of_step], level),
        by_cause={cause: float((reasons == cause).mean()) for cause in CAUSES},
        features=features,
    )


def share_interval(fires: Floats, clusters: Ints, level: float) -> Interval | None:
    """Of a share of rows, by cluster: Student's t of the ratio, and where no row fires what that leaves open.

    None where there is one cluster alone.
    """
    codes = cluster_codes(clusters)
    sizes = np.bincount(codes)
    n = len(sizes)
    if n < 2:
        return None
    share = float(fires.mean())
    if share in (0.0, 1.0):  # Clopper and Pearson, of clusters
        open_end = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / n)
        low, high = (0.0, open_end) if share == 0.0 else (1.0 - open_end, 1.0)
        return Interval(low, high, level, "Clopper and Pearson, by cluster")
    residuals = np.bincount(codes, weights=fires) - share * sizes
    error = float(np.sqrt(n / (n - 1) * (residuals**2).sum())) / len(fires)
    half = float(stats.t.ppf((1.0 + level) / 2.0, n - 1)) * error
    return Interval(max(0.0, share - half), min(1.0, share + half), level, "Student t of a ratio, by cluster")
