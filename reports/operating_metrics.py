"""The ten metrics of operation, each defined once: view, Prometheus file, dashboards, docs and glossary follow.

A metric is a number of one night. Its series are what Prometheus reads: the first is the metric itself, the others are
its details, by stage, column, learner and so on. What cannot be known is absent, with a reason, and never 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Good = Literal["up", "down", "to 0"]
Of = Literal["episodes", "run"]


SERVER = "pipelines.metrics.server.server_metrics"
"""What computes the metrics of the policy server."""

SERVER_FAULTS = ("log_full", "scoring_failed")
"""Causes of a refusal that are the policy server's own, and no mistake of who asked; see docs/serving.md."""

ANSWER_BOUNDS_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 4.0)
"""Bounds of the histogram in which the policy server counts its answers."""

AVAILABILITY, IN_TIME, IN_TIME_S = 0.999, 0.99, 0.064
"""Objectives where `[slo]` names no others: share of requests answered, and share answered within so many seconds."""


@dataclass(frozen=True)
class Series:
    """A time series as Prometheus names it; `counts` where it only ever grows."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    counts: bool = False


@dataclass(frozen=True)
class OperatingMetric:
    """One of the ten.

    Attributes:
        key: in the view `metrics`.
        title: for people.
        unit: of the number; "reward" is the log's own unit of reward, "currency" that of `[cost]`.
        formula: how it is computed.
        source: where the numbers come from.
        good: which direction is good.
        of: "episodes" for those that started in the night (UTC), once it is over; "run" for the nightly run whose
            `as_of` lies in the night.
        series: the metric itself, and then its details.
        computed_by: dotted name of the function.
    """

    key: str
    title: str
    unit: str
    formula: str
    source: str
    good: Good
    of: Of
    series: tuple[Series, ...]
    computed_by: str

    @property
    def name(self) -> str:
        """Of the series that is the metric itself."""
        return self.series[0].name


METRICS: tuple[OperatingMetric, ...] = (
    OperatingMetric(
        "mean_episode_return",
        "mean episode return",
        "reward",
        "Mean over complete, undamaged episodes of the sum of their rewards, not discounted.",
        "lake: `transitions`",
        "up",
        "episodes",
        (
            Series("offline_dqn_mean_episode_return", "Mean return of an episode, not discounted."),
            Series(
                "offline_dqn_version_episode_return", "The same by the policy that wrote them.", ("policy_version",)
            ),
            Series(
                "offline_dqn_episodes",
                "Episodes that started in the night: complete, open, damaged, excluded.",
                ("state",),
            ),
            Series(
                "offline_dqn_night_decisions",
                "Decisions of complete episodes, by the policy's version and by what decided.",
                ("policy_version", "decided_by"),
            ),
            Series(
                "offline_dqn_worst_episode_reward",
                "Rewards of the night's worst episodes step by step; they are numbered, not named.",
                ("rank", "step", "action"),
            ),
        ),
        "pipelines.metrics.lake.lake_metrics",
    ),
    OperatingMetric(
        "action_success_rate",
        "action success rate",
        "share",
        "Decisions after which the contract's `[success]` was true / decisions whose outcome is there; one that cannot "
        "be told is no success.",
        "lake: `transitions`; contract.toml: `[success]`",
        "up",
        "episodes",
        (
            Series("offline_dqn_action_success_ratio", "Share of decisions that succeeded."),
            Series("offline_dqn_version_success_ratio", "The same by the policy's version.", ("policy_version",)),
            Series("offline_dqn_action_success_judged_decisions", "Decisions whose outcome is there."),
        ),
        "pipelines.metrics.lake.lake_metrics",
    ),
    OperatingMetric(
        "regret",
        "regret against the baseline",
        "reward",
        "Mean discounted return of version 0 minus that of the other policies' episodes of the same night: of its own "
        "episodes where there are 30, else of the others' weighted to how it acts (weighted per-decision importance "
        "sampling), where they are worth 30.",
        "lake: `transitions`; releases/0",
        "down",
        "episodes",
        (Series("offline_dqn_regret", "What version 0 would have earned more per episode, discounted."),),
        "pipelines.metrics.regret.regret_against",
    ),
    OperatingMetric(
        "decision_latency",
        "decision latency",
        "s",
        "95th percentile of the seconds from request to answer since the last measurement, interpolated in the "
        "histogram's buckets.",
        "policy server: `/metrics`, at `[metrics] server`",
        "down",
        "run",
        (
            Series("offline_dqn_decision_latency_p95_seconds", "95 % of the requests were answered within this."),
            Series("offline_dqn_decision_latency_p99_seconds", "99 % of the requests were answered within this."),
        ),
        SERVER,
    ),
    OperatingMetric(
        "drift",
        "drift",
        "ratio",
        "Largest PSI / threshold over all judged columns, the threshold being the larger of the column's own and "
        "`[drift] min_psi`; above 1 the column drifted.",
        "drift/*.jsonl, as `drift_history`",
        "down",
        "run",
        (
            Series("offline_dqn_drift_ratio", "PSI of the column that moved most, as a multiple of its threshold."),
            Series("offline_dqn_column_drift_ratio", "PSI of each judged column / its threshold.", ("column",)),
            Series("offline_dqn_column_psi", "PSI of each column, in nats.", ("column",)),
        ),
        "pipelines.metrics.runs.run_metrics",
    ),
    OperatingMetric(
        "safety_violation_rate",
        "safety-violation rate",
        "share",
        "Decisions that broke any of the contract's `[constraints]` / decisions that any of these can judge; one whose "
        "outcome is there and does not tell counts as a breach.",
        "lake: `transitions`; contract.toml: `[constraints]`",
        "down",
        "episodes",
        (
            Series("offline_dqn_safety_violation_ratio", "Share of decisions that broke a constraint."),
            Series("offline_dqn_safety_violation_judged_decisions", "Decisions that any constraint can judge."),
            Series("offline_dqn_constraint_violation_ratio", "The same by constraint.", ("constraint",)),
            Series("offline_dqn_constraint_limit_ratio", "The limit that the contract sets it.", ("constraint",)),
        ),
        "pipelines.metrics.lake.lake_metrics",
    ),
    OperatingMetric(
        "training_convergence",
        "training convergence",
        "share",
        "Mean absolute TD error in the last quarter of the training's measurements / that in the quarter before, "
        "minus 1: of the learner that was chosen, or of all Q-learners where none was.",
        "releases/N/training.json",
        "to 0",
        "run",
        (
            Series("offline_dqn_training_td_error_change_ratio", "How much the TD error still moved at the end."),
            Series("offline_dqn_training_td_error", "TD error over the updates.", ("learner", "update")),
            Series("offline_dqn_training_td_loss", "TD loss over the updates.", ("learner", "update")),
        ),
        "pipelines.metrics.runs.run_metrics",
    ),
    OperatingMetric(
        "replay_coverage",
        "replay coverage",
        "share",
        "Pairs of a region of observations and an action available there with enough training steps / all such pairs.",
        "snapshots/*/coverage.json, of the run's snapshot",
        "up",
        "run",
        (
            Series("offline_dqn_replay_covered_ratio", "Share of region-action pairs that the replay covers."),
            Series("offline_dqn_replay_action_ratio", "Share of the training steps by logged action.", ("action",)),
            Series("offline_dqn_replay_steps", "Steps of the replay by split.", ("split",)),
        ),
        "pipelines.metrics.runs.run_metrics",
    ),
    OperatingMetric(
        "resource_spend",
        "resource spend",
        "currency",
        "Sum over the night's stages, failed attempts included, of CPU hours, peak GB x hours, GB read and GB written, "
        "each times its price.",
        "metrics/usage-*.jsonl; offline_dqn.toml: `[cost]`",
        "down",
        "run",
        (
            Series("offline_dqn_night_cost", "What the night cost.", ("currency",)),
            Series("offline_dqn_stage_cost", "The same by stage.", ("stage", "currency")),
            Series("offline_dqn_stage_cpu_seconds", "CPU time, of all threads and ended child processes.", ("stage",)),
            Series("offline_dqn_stage_wall_seconds", "Time by the clock.", ("stage",)),
            Series("offline_dqn_stage_peak_memory_bytes", "Most memory that the process held at once.", ("stage",)),
            Series("offline_dqn_stage_read_bytes", "Read from disks; what the cache held is not.", ("stage",)),
            Series("offline_dqn_stage_written_bytes", "Written to disks.", ("stage",)),
            Series("offline_dqn_training_cost_per_hour", "Cost of training and choosing / their hours.", ("currency",)),
            Series("offline_dqn_month_cost", "What the calendar month has cost so far (UTC).", ("currency",)),
            Series("offline_dqn_budget", "What `[cost]` allows a training, and a month.", ("per", "currency")),
        ),
        "pipelines.metrics.runs.run_metrics",
    ),
    OperatingMetric(
        "availability",
        "availability",
        "share",
        "Requests for decisions that the policy server answered / these and those that it refused for a reason of its "
        "own (its log was full, no release could score), since the last measurement.",
        "policy server: `/metrics`, at `[metrics] server`",
        "up",
        "run",
        (Series("offline_dqn_availability_ratio", "Share of the requests for decisions that were answered."),),
        SERVER,
    ),
)

NIGHT_SERIES: tuple[Series, ...] = (
    Series("offline_dqn_run_timestamp_seconds", "When the newest nightly run ended, by the clock."),
    Series("offline_dqn_run_verdict", "1 for what the newest run decided.", ("decision", "gate")),
    Series("offline_dqn_run_rows", "Rows that the newest run took in, and quarantined.", ("fate",)),
    Series("offline_dqn_metric_night_timestamp_seconds", "Midnight that begins the night a metric is of.", ("metric",)),
    Series("offline_dqn_metric_absent", "1 where a metric cannot be known, with the reason.", ("metric", "reason")),
    Series("offline_dqn_slo_objective_ratio", "Share of events that `[slo]` wants to be good.", ("slo",)),
    Series("offline_dqn_slo_budget_left_ratio", "Share of the error budget that is left.", ("slo",)),
    Series("offline_dqn_slo_burn_rate", "How many times too fast it burns; 1 spends it in its window.", ("slo",)),
    Series("offline_dqn_slo_spent", "1 where it is spent, and promotions are stopped if that stops them.", ("slo",)),
    Series("offline_dqn_slo_burning", "1 where it burns faster than `[slo] page_above`.", ("slo",)),
    Series("offline_dqn_slo_absent", "1 where an objective cannot be told, with the reason.", ("slo", "reason")),
    Series("offline_dqn_champion_release", "Number of the release that acts; 0 are the rules."),
    Series("offline_dqn_champion_changes_total", "Promotions and rollbacks so far.", ("action",), counts=True),
    Series("offline_dqn_champion_changed_timestamp_seconds", "When the last of each was.", ("action",)),
)
"""What the Prometheus file says of nights and releases beside the ten."""

UNITS: dict[str, str] = {
    "reward": "the log's unit of reward",
    "share": "share of 1",
    "s": "seconds",
    "ratio": "multiple of the threshold",
    "currency": "`[cost] currency`",
}
"""What each unit means."""

GOOD: dict[Good, str] = {"up": "higher is better", "down": "lower is better", "to 0": "nearer to 0 is better"}
"""Which direction is good, in words."""


def all_series() -> Iterator[Series]:
    """Every series, of the ten and beside them."""
    for metric in METRICS:
        yield from metric.series
    yield from NIGHT_SERIES


def metric_of_series(name: str) -> OperatingMetric:
    """The metric that a series belongs to.

    Raises:
        KeyError: none does.
    """
    for metric in METRICS:
        if any(series.name == name for series in metric.series):
            return metric
    raise KeyError(name)


def definitions_as_markdown() -> str:
    """The table of the ten in docs/metrics.md."""
    rows = [
        f"| {metric.title} | {UNITS[metric.unit]} | {metric.formula} | {metric.source} | {GOOD[metric.good]} | "
        f"`{metric.name}` |"
        for metric in METRICS
    ]
    head = ("| metric | in | formula | from | good | series |", "| --- | --- | --- | --- | --- | --- |")
    return "\n".join((*head, *rows))
