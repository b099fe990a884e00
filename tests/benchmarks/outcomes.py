"""What is kept of one log that the gate judged, to be counted over many."""

from __future__ import annotations

from typing import Any

from reports.gate import VALUE_CHECK
from reports.records import Estimate, Evaluation, Interval

Outcome = dict[str, Any]
"""JSON values; None where nothing was said."""

LEVELS = (0.95, 0.90)
"""Of the intervals shown: that of a log's seed, in turns, so that both are tried at the cost of one."""


def level_of(seed: int) -> float:
    """Of the intervals of this log."""
    return LEVELS[seed % len(LEVELS)]


def outcome_of(evaluation: Evaluation, *, candidate_value: float, log_value: float) -> Outcome:
    """Verdict, bounds and estimates, beside the true values of the candidate and of the policy that wrote the log."""
    decision = evaluation.decision
    assert decision is not None
    comparison = evaluation.comparison("baseline")
    overlap = next((o for o in evaluation.overlaps if o.policy == "candidate" and o.decides), None)
    truth = {"candidate": candidate_value, "log": log_value}
    counts = evaluation.counts
    return {
        "passed": decision.passed,
        "refused_by": [check.name for check in decision.failed_checks if check.name != VALUE_CHECK],
        "gain": candidate_value - log_value,
        "margin": decision.margin,
        "deciding": decision.deciding_estimator,
        "difference": None if comparison is None else comparison.value,
        "interval": None if comparison is None else _ends(comparison.interval),
        "bound": None if comparison is None else comparison.lower_bound,
        "level": evaluation.level,
        "mean_length": counts.mean_length,
        "overlap": None if overlap is None else overlap.effective_sample_size / counts.n_episodes,
        "estimates": {e.estimator: _error(e, truth[e.policy]) for e in evaluation.estimates if e.policy in truth},
        "other_bounds": {
            c.estimator: c.lower_bound for c in evaluation.comparisons if c.against == "baseline" and not c.binding
        },
    }  # fmt: skip


def _error(estimate: Estimate, truth: float) -> dict[str, Any]:
    value, interval = estimate.value, estimate.interval
    return {
        "error": None if value is None else value - truth,
        "covers": None if interval is None else interval.low <= truth <= interval.high,
    }


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)
