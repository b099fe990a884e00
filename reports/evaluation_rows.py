"""The view `evaluations`: the headline numbers of each release's evaluation as one row, from `evaluation.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from reports.records import Comparison, Evaluation

SCHEMA = pa.schema(
    [
        ("release", pa.int64()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("snapshot", pa.string()),
        ("deciding_estimator", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("level", pa.float64()),
        ("baseline_name", pa.string()),
        ("baseline_value", pa.float64()),
        ("difference", pa.float64()),
        ("difference_lower_bound", pa.float64()),
        ("difference_upper_bound", pa.float64()),
        ("version_zero_difference", pa.float64()),
        ("version_zero_lower_bound", pa.float64()),
        ("alpha", pa.float64()),
        ("margin", pa.float64()),
        ("certified_share", pa.float64()),
        ("n_episodes", pa.int64()),
        ("n_clusters", pa.int64()),
        ("n_nights", pa.int64()),
        ("n_episode_rows", pa.int64()),
        ("mean_weight", pa.float64()),
        ("effective_sample_size", pa.float64()),
        ("tail_index", pa.float64()),
        ("largest_share", pa.float64()),
        ("propensity", pa.string()),
        ("failed_checks", pa.list_(pa.string())),
        ("gamma", pa.float64()),
        ("seed", pa.int64()),
    ]
)
"""`n_episode_rows` is how many rows `evaluation_episodes` still has: fewer than `n_episodes` once episodes of it were
erased, and then its means are no longer the recorded ones."""


def evaluation_row(
    release: int, evaluation: Evaluation, *, snapshot: str, n_episode_rows: int | None
) -> dict[str, Any]:
    """One row; what was refused is null."""
    decision, counts = evaluation.decision, evaluation.counts
    deciding = evaluation.deciding_estimator
    value = evaluation.estimate(deciding, "candidate") if deciding else None
    baseline = evaluation.estimate(deciding, "baseline") if deciding else None
    baseline = baseline or evaluation.estimate("on_policy", "log")
    overlap = next((o for o in evaluation.overlaps if o.policy == "candidate" and o.decides), None)
    difference, to_rules = evaluation.comparison("baseline"), evaluation.comparison("version_zero")
    return {
        "release": release,
        "verdict": None if decision is None else "passed" if decision.passed else "refused",
        "reason": decision.reason if decision else None,
        "snapshot": snapshot,
        "deciding_estimator": deciding,
        "value": value.value if value else None,
        "low": value.interval.low if value and value.interval else None,
        "high": value.interval.high if value and value.interval else None,
        "level": evaluation.level,
        "baseline_name": evaluation.baseline_name,
        "baseline_value": baseline.value if baseline else None,
        **_bounds(difference, "difference", "difference_lower_bound", "difference_upper_bound"),
        **_bounds(to_rules, "version_zero_difference", "version_zero_lower_bound", None),
        "alpha": evaluation.alpha,
        "margin": decision.margin if decision else None,
        "certified_share": decision.certified_share if decision else None,
        "n_episodes": counts.n_episodes,
        "n_clusters": counts.n_clusters,
        "n_nights": counts.n_nights,
        "n_episode_rows": n_episode_rows,
        "mean_weight": overlap.mean_weight if overlap else None,
        "effective_sample_size": overlap.effective_sample_size if overlap else None,
        "tail_index": overlap.tail_index if overlap else None,
        "largest_share": overlap.largest_share if overlap else None,
        "propensity": evaluation.propensities.kind,
        "failed_checks": [check.name for check in decision.failed_checks] if decision else None,
        "gamma": evaluation.gamma,
        "seed": evaluation.seed,
    }


def evaluation_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """The rows as a table; with none of them its columns all the same."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def _bounds(found: Comparison | None, value: str, lower: str, upper: str | None) -> dict[str, float | None]:
    numbers = {value: found.value if found else None, lower: found.lower_bound if found else None}
    return numbers | ({upper: found.upper_bound if found else None} if upper else {})
