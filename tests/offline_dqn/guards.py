"""Guarded policies for tests, calibrated on rows like those that the policies of `test_policy` know."""

from __future__ import annotations

from typing import Any

import numpy as np

from datasets.observations import Observations, observations_of_checked
from offline_dqn.familiarity_fit import fit_familiarity
from offline_dqn.guard import DISAGREEMENT, MISSING, STRANGE, Guard, choice_spread
from offline_dqn.guard_fit import calibrate
from offline_dqn.guarded import GuardedPolicy, learned_part
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import RulePolicy
from tests.offline_dqn.test_policy import CONTRACT, RULES


def usual_rows(n_rows: int = 3_000, seed: int = 0) -> Observations:
    """Rows of `test_policy.CONTRACT`: load goes with cpu, zones and gaps as they come."""
    return observations_of_checked(CONTRACT, usual_records(n_rows, seed))


def usual_records(n_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """The same as records."""
    rng = np.random.default_rng(seed)
    cpu = rng.beta(4, 4, n_rows)
    load = np.stack([3 * cpu + 0.1 * rng.normal(size=n_rows), rng.normal(size=n_rows)], axis=1)
    gaps = rng.random((n_rows, 2)) < 0.02
    zones, busy = rng.choice(list("abc"), n_rows), rng.random(n_rows) < 0.4
    return [
        {
            "cpu": None if gaps[i, 0] else float(cpu[i]),
            "zone": None if gaps[i, 1] else str(zones[i]),
            "busy": bool(busy[i]),
            "load": load[i].tolist(),
        }
        for i in range(n_rows)
    ]


def some_rules(**more: Any) -> RulePolicy:
    return RulePolicy(CONTRACT, RULES, otherwise="hold", **{"exploration": 0.2, **more})


def guard_for(policy: Any, false_alarm_share: float = 0.05) -> Guard:
    """Learned on usual rows, its thresholds set on others, every row a cluster."""
    familiarity, rows = fit_familiarity(CONTRACT, usual_rows()), usual_rows(seed=1)
    scores = {MISSING: familiarity.absence(rows), STRANGE: familiarity.distance(rows)}
    learned = learned_part(policy)
    spread = choice_spread(learned, rows) if isinstance(learned, QPolicy) else None
    if spread is not None:
        scores[DISAGREEMENT] = spread
    thresholds, calibration = calibrate(scores, np.arange(len(rows)), false_alarm_share)
    return Guard(familiarity, thresholds, calibration)


def guarded(policy: Any, fallback: Any = None, **more: Any) -> GuardedPolicy:
    return GuardedPolicy(policy, fallback or some_rules(), guard_for(policy, **more))
