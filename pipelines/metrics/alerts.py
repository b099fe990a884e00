"""Alert rules for Prometheus: error budgets watched over several windows, and what a night says."""

from __future__ import annotations

from reports.operating_metrics import AVAILABILITY, IN_TIME, IN_TIME_S, SERVER_FAULTS

_WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")

_BURNS = (
    ("page", 14.4, "1h", "5m", "2m"),
    ("page", 6, "6h", "30m", "15m"),
    ("page", 3, "1d", "2h", "1h"),
    ("ticket", 1, "3d", "6h", "3h"),
)
"""Severity, burn rate, long and short window, and how long it must last.

Source: Beyer et al. 2018, The Site Reliability Workbook, chapter 5, table 5-8; a burn rate of 3 pages here.
"""  # fmt: skip

_FAULTS = f'offline_dqn_refused_total{{cause=~"{"|".join(SERVER_FAULTS)}"}}'

_OBJECTIVES = (
    ("Availability", "request_errors", AVAILABILITY, "were refused for a reason of the policy server's own"),
    ("Latency", "slow_requests", IN_TIME, f"took longer than {1000 * IN_TIME_S:.0f} ms"),
)
"""Name, what goes wrong, the objective where `[slo]` names no other, and what goes wrong in words."""


def may_fail(slo: str, default: float) -> str:
    """The share of requests that may fail, of the objective that `[slo]` names where a night has told it."""
    return f'(1 - (max(offline_dqn_slo_objective_ratio{{slo="{slo}"}}) or vector({default})))'


_NIGHT_RULES = """\
  - alert: OfflineDqnServerDown
    expr: up{job="offline_dqn_serve"} == 0
    for: 2m
    labels: {severity: page}
    annotations:
      summary: "The policy server at {{ $labels.instance }} does not answer."
      remedy: "See its log; `offline-dqn serve` starts it again. Callers fall back to their own baseline meanwhile."
  - alert: OfflineDqnLogFull
    expr: increase(offline_dqn_refused_total{cause="log_full"}[5m]) > 0
    labels: {severity: page}
    annotations:
      summary: "Decisions are refused because their log cannot be written."
      remedy: "Make room on the disk of logs/; docs/serving.md says what on_full does."
  - alert: OfflineDqnReleaseRefused
    expr: offline_dqn_release_refused == 1
    for: 2m
    labels: {severity: page}
    annotations:
      summary: "Release {{ $labels.release }} should act and cannot: it is damaged, or fits the contract no more."
      remedy: "`offline-dqn rollback`, then look at releases/{{ $labels.release }}."
  - alert: OfflineDqnSafetyViolations
    expr: offline_dqn_constraint_violation_ratio > on (problem, constraint) offline_dqn_constraint_limit_ratio
    labels: {severity: page}
    annotations:
      summary: "{{ $labels.problem }}: {{ $value | humanizePercentage }} of decisions broke {{ $labels.constraint }}."
      remedy: "Above the contract's limit. `offline-dqn rollback`, or at once `offline-dqn disable`; then look."
  - alert: OfflineDqnNightMissing
    expr: time() - offline_dqn_run_timestamp_seconds > 26 * 3600
    for: 10m
    labels: {severity: page}
    annotations:
      summary: "{{ $labels.problem }}: no nightly run has ended for {{ $value | humanizeDuration }}."
      remedy: "See Prefect's UI, then run `offline-dqn nightly`: it goes on where it was stopped."
  - alert: OfflineDqnBatchHeld
    expr: offline_dqn_run_verdict{decision="batch held"} == 1
    labels: {severity: page}
    annotations:
      summary: "{{ $labels.problem }}: the night stopped at a batch that failed its suite."
      remedy: "`offline-dqn batches list`, then `show`, and `release` or `reject`."
  - alert: OfflineDqnDrifted
    expr: offline_dqn_drift_ratio > 1
    labels: {severity: ticket}
    annotations:
      summary: "{{ $labels.problem }}: a column has drifted to {{ $value | humanize }} times its threshold."
      remedy: "Read the night's drift page (`offline-dqn drift page --open`)."
  - alert: OfflineDqnRegret
    expr: min_over_time(offline_dqn_regret[3d]) > 0
    for: 1h
    labels: {severity: ticket}
    annotations:
      summary: "{{ $labels.problem }}: for three days the rules would have earned more than what acts."
      remedy: "`offline-dqn promises`; if the champion's is broken, `offline-dqn rollback`."
  - alert: OfflineDqnRolledBack
    expr: increase(offline_dqn_champion_changes_total{action="rollback"}[1h]) > 0
    labels: {severity: ticket}
    annotations:
      summary: "{{ $labels.problem }}: the champion was rolled back."
      remedy: "releases/history.jsonl says who and why."
  - alert: OfflineDqnErrorBudgetBurns
    expr: offline_dqn_slo_burning == 1
    labels: {severity: page}
    annotations:
      summary: "{{ $labels.problem }}: the error budget of {{ $labels.slo }} burns too fast, by the last night."
      remedy: "`offline-dqn slo`; then `offline-dqn disable` has version 0 act, `offline-dqn rollback` the one before."
  - alert: OfflineDqnErrorBudgetSpent
    expr: offline_dqn_slo_spent == 1
    labels: {severity: ticket}
    annotations:
      summary: "{{ $labels.problem }}: the error budget of {{ $labels.slo }} is spent."
      remedy: "Promotions are stopped until its window has left the cause behind; `offline-dqn slo` shows it."
  - alert: OfflineDqnBudget
    expr: offline_dqn_month_cost > on (problem, currency) 0.8 * offline_dqn_budget{per="month"}
    labels: {severity: ticket}
    annotations:
      summary: "{{ $labels.problem }}: this month has cost {{ $value | humanize }} {{ $labels.currency }}: over 80 %."
      remedy: "Trainings stop at [cost] month_budget; raise it, or train less often."
  - alert: OfflineDqnNotTrained
    expr: offline_dqn_run_verdict{gate="not trained"} == 1
    labels: {severity: ticket}
    annotations:
      summary: "{{ $labels.problem }}: a budget stopped the training."
      remedy: "`offline-dqn nights` says how to go on."
  - alert: OfflineDqnDisabled
    expr: offline_dqn_disabled == 1
    for: 1h
    labels: {severity: ticket}
    annotations:
      summary: "The kill switch has had version 0 act for an hour."
      remedy: "`offline-dqn enable` once the cause is gone."
"""


def alerts() -> str:
    """The rule file."""
    return (
        "# Made by `make derived` from pipelines/metrics/alerts.py.\n"
        "# Tested by `promtool test rules dashboards/alerts_test.yml`.\n"
        "groups:\n- name: offline_dqn_error_budgets\n  interval: 1m\n  rules:\n"
        + "".join(_recorded(window) for window in _WINDOWS)
        + "".join(_burn(*objective, *burn) for objective in _OBJECTIVES for burn in _BURNS)
        + "- name: offline_dqn_nights\n  rules:\n"
        + _NIGHT_RULES
    )


def _recorded(window: str) -> str:
    count = f"(sum(rate(offline_dqn_act_seconds_count[{window}])) or vector(0))"
    faults = f"(sum(rate({_FAULTS}[{window}])) or vector(0))"
    quick = f'sum(rate(offline_dqn_act_seconds_bucket{{le="{IN_TIME_S}"}}[{window}]))'
    return (
        f"  - record: offline_dqn:request_errors:ratio_rate{window}\n"
        f"    expr: {faults} / ({count} + {faults} > 0)\n"
        f"  - record: offline_dqn:slow_requests:ratio_rate{window}\n"
        f"    expr: 1 - {quick} / ({count} > 0)\n"
    )


def _burn(
    what: str, errors: str, objective: float, does: str, severity: str, burn: float, long: str, short: str, lasting: str
) -> str:
    series, limit = f"offline_dqn:{errors}:ratio_rate", f"{burn:g} * {may_fail(what.lower(), objective)}"
    return (
        f"  - alert: OfflineDqn{what}Burn{long}\n"
        f"    expr: {series}{long} > {limit} and {series}{short} > {limit}\n"
        f"    for: {lasting}\n"
        f"    labels: {{severity: {severity}}}\n"
        f"    annotations:\n"
        f'      summary: "{{{{ $value | humanizePercentage }}}} of the requests {does}: the error budget of 30 days '
        f'burns {burn:g} times too fast."\n'
        f'      remedy: "The on-call dashboard shows cause and release; `offline-dqn disable` has version 0 act."\n'
    )
