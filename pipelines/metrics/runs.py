"""What the records of a nightly run tell: drift, training, replay, what was spent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datasets.snapshot_bucket import COVERAGE_SUMMARY, COVERAGE_TABLE
from offline_dqn.metrics import split_name
from pipelines.drift_history import DriftCheck
from pipelines.metrics.config import CostConfig
from pipelines.metrics.usage import StageUsage, UsageLog, together
from pipelines.metrics.values import Values
from pipelines.nights import NightRecord
from pipelines.workspace import Workspace
from reports.operating_metrics import METRICS

TRAINING_STAGES = ("train", "choose")
"""Stages that a training consists of: the networks, and the choice among the candidates."""

_MOST_POINTS = 20
"""Of a training's curve."""

_QUARTERS = 4
_RUN_KEYS = tuple(metric.key for metric in METRICS if metric.of == "run")


def run_metrics(workspace: Workspace, night: date, record: NightRecord | None, check: DriftCheck | None) -> Values:
    """The metrics of the nightly run whose `as_of` lies in a night, latency and availability apart.

    Args:
        record: of the run; None where there was none, or it did not end.
        check: its drift check, if there was one.
    """
    values = Values()
    if record is None:
        for key in _RUN_KEYS:
            values.missing(key, "no nightly run of this night has ended")
    else:
        _drift(values, check, record)
        training = _training_of(workspace, record.release)
        _convergence(values, training, record)
        _coverage(values, workspace.snapshots_path, training, record)
    _spend(values, UsageLog(workspace.metrics_path), night, workspace.config.cost)
    return values


def _drift(values: Values, check: DriftCheck | None, record: NightRecord) -> None:
    report = check.report if check is not None else None
    if report is None:
        sentence = check.decision["sentence"] if check is not None else ""
        values.missing("drift", f"drift was not measured: {sentence}" if sentence else _unchecked(record))
        return
    ratios = {}
    for column in report.get("columns", ()):
        psi, threshold = column.get("psi"), column.get("threshold")
        values.add("offline_dqn_column_psi", psi, column=column["name"])
        if psi is not None and threshold is not None and (least := max(threshold, report["min_psi"])) > 0:
            ratios[column["name"]] = psi / least
    for name, ratio in ratios.items():
        values.add("offline_dqn_column_drift_ratio", ratio, column=name)
    if ratios:
        values.add("offline_dqn_drift_ratio", max(ratios.values()))
    else:
        values.missing("drift", f"no column could be judged: {report.get('status', '')}")


def _unchecked(record: NightRecord) -> str:
    if record.decision == "batch held":
        return f"drift was not measured: {record.reason}"
    return "the records hold no drift check of this night"


def _training_of(workspace: Workspace, release: int | None) -> Mapping[str, Any] | None:
    path = workspace.release_path(release) / "training.json" if release is not None else None
    if path is None or not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _why_untrained(record: NightRecord) -> str:
    if record.gate == "not trained":
        return "a budget ended the training before its candidates were there (`offline-dqn nights` says more)"
    return f"the run trained nothing (decision: {record.decision})"


def _convergence(values: Values, training: Mapping[str, Any] | None, record: NightRecord) -> None:
    if training is None:
        values.missing("training_convergence", _why_untrained(record))
        return
    history: Sequence[Mapping[str, float]] = training["history"]
    every = -(-len(history) // _MOST_POINTS) if history else 1
    for metrics in history[::-1][::every][::-1]:
        for name, value in metrics.items():
            learner, metric = split_name(name)
            if metric in ("td_error_abs", "td_loss"):
                series = "offline_dqn_training_td_error" if metric == "td_error_abs" else "offline_dqn_training_td_loss"
                values.add(series, value, learner=learner, update=int(metrics["step"]))
    errors = _td_errors(history, training["chosen"])
    quarter = len(errors) // _QUARTERS
    if not quarter:
        values.missing("training_convergence", f"the training was measured {len(errors)} times; 4 are needed")
        return
    before, last = (sum(part) / quarter for part in (errors[-2 * quarter : -quarter], errors[-quarter:]))
    if before > 0:
        values.add("offline_dqn_training_td_error_change_ratio", last / before - 1)
    else:
        values.missing("training_convergence", "the TD error was 0 in the quarter before the last")


def _td_errors(history: Sequence[Mapping[str, float]], chosen: str) -> list[float]:
    """By measurement: of the chosen learner, else the mean of all that have one."""
    found = []
    for metrics in history:
        own = {split_name(name)[0]: value for name, value in metrics.items() if name.endswith("/td_error_abs")}
        learner = next((name for name in sorted(own, key=len, reverse=True) if chosen.startswith(name)), None)
        if own:
            found.append(own[learner] if learner is not None else sum(own.values()) / len(own))
    return found


def _coverage(values: Values, snapshots_path: Path, training: Mapping[str, Any] | None, record: NightRecord) -> None:
    if training is None:
        values.missing("replay_coverage", _why_untrained(record))
        return
    folder = snapshots_path / training["snapshot"]
    if not (folder / COVERAGE_SUMMARY).is_file():
        values.missing("replay_coverage", f"snapshot {training['snapshot']} is no longer there")
        return
    summary = json.loads((folder / COVERAGE_SUMMARY).read_text())
    values.add("offline_dqn_replay_covered_ratio", summary["covered_share"])
    rows = pq.read_table(folder / COVERAGE_TABLE, columns=["split", "action", "n_steps"]).to_pylist()
    by_split: dict[str, int] = {}
    by_action: dict[str, int] = {}
    for row in rows:
        by_split[row["split"]] = by_split.get(row["split"], 0) + row["n_steps"]
        if row["split"] == "train":
            by_action[row["action"]] = by_action.get(row["action"], 0) + row["n_steps"]
    for split, n in by_split.items():
        values.add("offline_dqn_replay_steps", n, split=split)
    for action, n in by_action.items():
        values.add("offline_dqn_replay_action_ratio", n / max(1, sum(by_action.values())), action=action)


def _spend(values: Values, log: UsageLog, night: date, prices: CostConfig) -> None:
    lines = log.of_night(night.isoformat())
    stages: dict[str, list[StageUsage]] = {}
    for line in lines:
        stages.setdefault(line.stage, []).append(line)
    for stage, attempts in stages.items():
        used = together(attempts)
        values.add("offline_dqn_stage_cpu_seconds", used.cpu_s, stage=stage)
        values.add("offline_dqn_stage_wall_seconds", used.wall_s, stage=stage)
        values.add("offline_dqn_stage_peak_memory_bytes", used.peak_bytes, stage=stage)
        values.add("offline_dqn_stage_read_bytes", used.read_bytes, stage=stage)
        values.add("offline_dqn_stage_written_bytes", used.written_bytes, stage=stage)
    if not lines:
        values.missing("resource_spend", "nothing was measured in this night")
        return
    if not prices.priced:
        values.missing("resource_spend", "offline_dqn.toml has no price under [cost], such as cpu_hour")
        return
    currency = prices.currency
    values.add("offline_dqn_night_cost", sum(line.cost(prices) for line in lines), currency=currency)
    for stage, attempts in stages.items():
        cost = sum(line.cost(prices) for line in attempts)
        values.add("offline_dqn_stage_cost", cost, stage=stage, currency=currency)
    training = [line for line in lines if line.stage in TRAINING_STAGES]
    hours = sum(line.wall_s for line in training) / 3600
    if hours > 0:
        per_hour = sum(line.cost(prices) for line in training) / hours
        values.add("offline_dqn_training_cost_per_hour", per_hour, currency=currency)
    month = log.of_month(datetime.fromisoformat(lines[-1].began_at))
    values.add("offline_dqn_month_cost", sum(line.cost(prices) for line in month), currency=currency)
    values.add("offline_dqn_budget", prices.training_budget, per="training", currency=currency)
    values.add("offline_dqn_budget", prices.month_budget, per="month", currency=currency)
