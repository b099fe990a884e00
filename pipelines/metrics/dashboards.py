"""The three dashboards: for who pays, for who is woken, and for who looks for the cause."""

from __future__ import annotations

from pipelines.metrics.alerts import may_fail
from pipelines.metrics.panels import (
    OF_PROBLEM,
    Json,
    about,
    dashboard,
    lines,
    metric_lines,
    of,
    panel,
    stat,
    table,
    target,
)
from reports.operating_metrics import AVAILABILITY, IN_TIME

_ROW = "offline-dqn-"
_WEEK, _QUARTER = "now-7d", "now-90d"


def _last(series: str, days: int = 30) -> str:
    """The newest value of a series, which may be of an earlier night: a quiet night trains nothing."""
    return f"last_over_time({series}{{{OF_PROBLEM}}}[{days}d])"


def executive() -> Json:
    """Whether it pays, what it costs, and who decides."""
    night_share = (
        f"sum by (policy_version) (offline_dqn_night_decisions{{{OF_PROBLEM}}}) "
        f"/ on () group_left () sum(offline_dqn_night_decisions{{{OF_PROBLEM}}})"
    )
    live_share = (
        f"sum by (release) (rate(offline_dqn_decisions_total{{{OF_PROBLEM}}}[1h])) "
        f"/ on () group_left () sum(rate(offline_dqn_decisions_total{{{OF_PROBLEM}}}[1h]))"
    )
    panels = [
        stat("mean_episode_return", _last(of("mean_episode_return").name)),
        stat("regret", _last(of("regret").name), steps=[(None, "good"), (0, "bad")]),
        stat("safety_violation_rate", _last(of("safety_violation_rate").name)),
        stat(
            "resource_spend",
            _last("offline_dqn_training_cost_per_hour"),
            title="Cost per training hour",
            description="Cost of training and choosing / their hours, in the currency of [cost].",
        ),
        metric_lines(
            "mean_episode_return",
            [
                target(f"offline_dqn_mean_episode_return{{{OF_PROBLEM}}}", "all"),
                target(f"offline_dqn_version_episode_return{{{OF_PROBLEM}}}", "release {{policy_version}}"),
            ],
        ),
        metric_lines("regret", [target(f"offline_dqn_regret{{{OF_PROBLEM}}}", "regret")]),
        lines(
            "Version adoption, by night",
            [target(night_share, "release {{policy_version}}")],
            description="Share of a night's decisions by the release that the log names; 0 are the rules.",
            unit="percentunit",
        ),
        lines(
            "Version adoption, now",
            [target(live_share, "release {{release}}")],
            description="Share of the policy server's decisions in the last hour by the release in charge.",
            unit="percentunit",
        ),
        metric_lines(
            "safety_violation_rate",
            [
                target(f"offline_dqn_constraint_violation_ratio{{{OF_PROBLEM}}}", "{{constraint}}"),
                target(f"offline_dqn_constraint_limit_ratio{{{OF_PROBLEM}}}", "limit of {{constraint}}"),
            ],
        ),
        metric_lines(
            "resource_spend",
            [
                target(f"offline_dqn_night_cost{{{OF_PROBLEM}}}", "night, {{currency}}"),
                target(f"offline_dqn_month_cost{{{OF_PROBLEM}}}", "month so far, {{currency}}"),
                target(f"offline_dqn_budget{{{OF_PROBLEM}}}", "budget of a {{per}}, {{currency}}"),
            ],
        ),
    ]
    description = "What the policy earns against the rules, what it breaks, what it costs, and which release decides."
    return dashboard(f"{_ROW}executive", "offline-dqn: executive", description, panels, since=_QUARTER)


def on_call() -> Json:
    """What is broken now, and what changed before."""
    buckets = f"sum by (le) (rate(offline_dqn_act_seconds_bucket{{{OF_PROBLEM}}}[5m]))"
    refused = f"sum by (cause) (rate(offline_dqn_refused_total{{{OF_PROBLEM}}}[5m]))"
    panels = [
        stat("availability", "1 - offline_dqn:request_errors:ratio_rate1h", description=_SLO, unit="percentunit"),
        stat("decision_latency", f"histogram_quantile(0.99, {buckets})", title="p99 now"),
        stat("drift", _last(of("drift").name), steps=[(None, "good"), (0.8, "warn"), (1, "bad")]),
        stat(
            "availability",
            f"time() - offline_dqn_run_timestamp_seconds{{{OF_PROBLEM}}}",
            title="Since the last night",
            description="Time since the newest nightly run was measured; more than a day is a night that failed.",
            unit="s",
            steps=[(None, "good"), (93600, "bad")],
        ),
        metric_lines(
            "decision_latency",
            [target(f"histogram_quantile({q}, {buckets})", f"p{100 * q:.0f}") for q in (0.5, 0.95, 0.99)],
        ),
        lines(
            "Error budget: burn rate",
            [
                target(
                    f"offline_dqn:request_errors:ratio_rate{w} / {may_fail('availability', AVAILABILITY)}",
                    f"availability, {w}",
                )
                for w in ("5m", "1h", "6h")
            ]
            + [
                target(f"offline_dqn:slow_requests:ratio_rate{w} / {may_fail('latency', IN_TIME)}", f"latency, {w}")
                for w in ("5m", "1h", "6h")
            ],
            description="1 spends the budget in exactly its 30 days; 14.4 over an hour spends 2 % of it and pages.",
            steps=[(None, "good"), (3, "bad")],
        ),
        lines(
            "Error budgets: what is left",
            [target(f"offline_dqn_slo_budget_left_ratio{{{OF_PROBLEM}}}", "{{slo}}")],
            description="Share of each error budget of [slo] that its window has left, by night; at 0 promotions stop.",
            unit="percentunit",
            steps=[(None, "bad"), (0, "warn"), (0.25, "good")],
        ),
        lines(
            "Error budgets: burn rate by night",
            [target(f"offline_dqn_slo_burn_rate{{{OF_PROBLEM}}}", "{{slo}}")],
            description="1 spends a budget of [slo] in exactly its window; above [slo] page_above a person is paged.",
            steps=[(None, "good"), (1, "warn"), (3, "bad")],
        ),
        table(
            "Error budgets: objectives",
            [
                target(f"offline_dqn_slo_objective_ratio{{{OF_PROBLEM}}}", instant=True),
                target(f"offline_dqn_slo_spent{{{OF_PROBLEM}}}", instant=True),
                target(f"offline_dqn_slo_burning{{{OF_PROBLEM}}}", instant=True),
            ],
            description="Share of events that is to be good (#A); 1 where the budget is spent (#B), or burns (#C).",
        ),
        table(
            "Error budgets: unknown",
            [target(f"offline_dqn_slo_absent{{{OF_PROBLEM}}}", instant=True)],
            description="Objectives that nothing was counted for, and why.",
            hidden=["Value"],
        ),
        metric_lines("safety_violation_rate", [target(f"offline_dqn_safety_violation_ratio{{{OF_PROBLEM}}}", "all")]),
        metric_lines(
            "action_success_rate",
            [
                target(f"offline_dqn_action_success_ratio{{{OF_PROBLEM}}}", "all"),
                target(f"offline_dqn_version_success_ratio{{{OF_PROBLEM}}}", "release {{policy_version}}"),
            ],
        ),
        lines(
            "Refused requests",
            [target(refused, "{{cause}}")],
            description="Requests a second that the policy server refused, by cause; docs/serving.md has the causes.",
            unit="reqps",
        ),
        lines(
            "Who decides",
            [target(f"sum by (decided_by) (rate(offline_dqn_decisions_total{{{OF_PROBLEM}}}[5m]))", "{{decided_by}}")],
            description="Decisions a second by who made them: policy, shield, guard, a deadline, the baseline.",
            unit="ops",
        ),
        panel(
            "state-timeline",
            "Champion",
            [target(f"offline_dqn_champion{{{OF_PROBLEM}}}", "release {{release}}")],
            description="Which release the policy server has in charge.",
            options={"showValue": "never", "mergeValues": True},
        ),
        table(
            "Recent deployments and rollbacks",
            [
                target(f"offline_dqn_champion_changed_timestamp_seconds{{{OF_PROBLEM}}} * 1000", instant=True),
                target(f"offline_dqn_champion_changes_total{{{OF_PROBLEM}}}", instant=True),
            ],
            description="When a release was last promoted or rolled back (Value #A), and how often so far (Value #B).",
        ),
        table(
            "What the last night said",
            [
                target(f"offline_dqn_run_verdict{{{OF_PROBLEM}}}", instant=True),
            ],
            description="Decision and gate of the newest nightly run.",
            hidden=["Value"],
        ),
        table(
            "Absent metrics",
            [target(f"offline_dqn_metric_absent{{{OF_PROBLEM}}}", instant=True)],
            description="What cannot be known about the newest night, and why.",
            hidden=["Value"],
        ),
    ]
    return dashboard(
        f"{_ROW}on-call", "offline-dqn: on call", "What is broken now, and what changed before.", panels, since=_WEEK
    )


def debug() -> Json:
    """Training, replay, drift and episodes of the newest night, in detail."""
    curve = [
        {"id": "labelsToFields", "options": {"mode": "columns", "keepLabels": ["learner", "update"]}},
        {
            "id": "organize",
            "options": {"excludeByName": {"Time": True, "job": True, "instance": True, "problem": True}},
        },
        {
            "id": "convertFieldType",
            "options": {"conversions": [{"targetField": "update", "destinationType": "number"}]},
        },
        {"id": "groupingToMatrix", "options": {"columnField": "learner", "rowField": "update", "valueField": "Value"}},
        {
            "id": "convertFieldType",
            "options": {"conversions": [{"targetField": "update\\learner", "destinationType": "number"}]},
        },
        {"id": "sortBy", "options": {"sort": [{"field": "update\\learner"}]}},
    ]
    drifted = of("drift")
    panels = [
        *(
            panel(
                "trend",
                title,
                [target(_last(series), instant=True)],
                description=f"{meaning} By update of the newest training, a line for each learner.",
                options={"xField": "update\\learner"},
                transformations=curve,
            )
            for title, series, meaning in (
                ("TD error", "offline_dqn_training_td_error", "In units of reward."),
                ("TD loss", "offline_dqn_training_td_loss", "What is minimised of the TD error, scaled."),
            )
        ),
        metric_lines(
            "training_convergence", [target(f"offline_dqn_training_td_error_change_ratio{{{OF_PROBLEM}}}", "change")]
        ),
        metric_lines("replay_coverage", [target(f"offline_dqn_replay_covered_ratio{{{OF_PROBLEM}}}", "covered")]),
        panel(
            "bargauge",
            "Replay distribution",
            [target(_last("offline_dqn_replay_action_ratio"), "{{action}}")],
            description="Share of the training steps of the newest snapshot by the action that was logged.",
            unit="percentunit",
            options={"orientation": "horizontal", "displayMode": "basic"},
        ),
        panel(
            "bargauge",
            "Replay by split",
            [target(_last("offline_dqn_replay_steps"), "{{split}}")],
            description="Steps of the newest snapshot.",
            options={"orientation": "horizontal", "displayMode": "basic"},
        ),
        panel(
            "status-history",
            "Feature drift",
            [target(f"offline_dqn_column_drift_ratio{{{OF_PROBLEM}}}", "{{column}}")],
            description=f"PSI of each column / its threshold, night by night. {about('drift')['description']}",
            width=24,
            height=10,
            steps=[(None, "good"), (0.8, "warn"), (1, "bad")],
            options={"showValue": "never", "colWidth": 0.95, "rowHeight": 0.9},
        ),
        metric_lines("drift", [target(f"{drifted.name}{{{OF_PROBLEM}}}", "largest")], width=24, height=6),
        table(
            "Episode traces: rewards of the night's worst episodes",
            [target(f"offline_dqn_worst_episode_reward{{{OF_PROBLEM}}}", instant=True)],
            description='Step by step, the worst first; numbered, not named: `offline-dqn query "SELECT * FROM '
            'transitions ..."` finds them.',
        ),
        table(
            "What each stage took",
            [
                target(f"offline_dqn_stage_wall_seconds{{{OF_PROBLEM}}}", instant=True),
                target(f"offline_dqn_stage_cpu_seconds{{{OF_PROBLEM}}}", instant=True),
                target(f"offline_dqn_stage_peak_memory_bytes{{{OF_PROBLEM}}}", instant=True),
                target(f"offline_dqn_stage_read_bytes{{{OF_PROBLEM}}}", instant=True),
                target(f"offline_dqn_stage_written_bytes{{{OF_PROBLEM}}}", instant=True),
            ],
            description="Seconds by the clock (#A), of CPU (#B), peak memory (#C), bytes read (#D), written (#E).",
        ),
        lines(
            "Log of the policy server",
            [
                target(f"offline_dqn_log_unsynced_seconds{{{OF_PROBLEM}}}", "unsynced, {{log}}"),
                target(f"offline_dqn_log_sync_failures{{{OF_PROBLEM}}}", "failed flushes, {{log}}"),
            ],
            description="Age of the oldest line that is not flushed to the disk, and flushes that failed.",
        ),
        table(
            "Episodes of the night",
            [target(f"offline_dqn_episodes{{{OF_PROBLEM}}}", instant=True)],
            description="Complete, open and damaged; only complete ones are measured.",
        ),
    ]
    description = "Training, replay, drift and episodes of the newest night, in detail."
    return dashboard(f"{_ROW}debug", "offline-dqn: debug", description, panels, since=_QUARTER)


_SLO = (
    "Requests that the policy server answered in the last hour / these and those that it refused for a reason of its "
    f"own. The objective is {AVAILABILITY:.1%} over 30 days, where [slo] names no other."
)
