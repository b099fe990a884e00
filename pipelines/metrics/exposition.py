"""Metrics for Prometheus: a file for the node exporter's textfile collector, and a push gateway."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from urllib.parse import quote

from datasets.durable import write_durably
from datasets.errors import OfflineDqnError
from pipelines.metrics.history import MetricHistory, NightMetrics
from pipelines.metrics.values import Value, Values
from pipelines.nights import NightRecord, read_nights
from pipelines.slo.standing import standings
from pipelines.workspace import Workspace
from reports.history import read_history
from reports.operating_metrics import METRICS, all_series

_MOST_REASON = 200
"""Characters of a reason that a label holds."""


class ExportError(OfflineDqnError):
    """The metrics could not be written for Prometheus, or not be pushed."""


def exported_values(workspace: Workspace, nights: Mapping[date, NightMetrics], record: NightRecord | None) -> Values:
    """What Prometheus is told: of each metric the newest night that says anything of its kind, and the state of nights
    and releases.

    The run's metrics are those of the newest run alone: where it trained nothing, convergence is absent, and the time
    series holds the last one that there was.
    """
    values = Values()
    run = date.fromisoformat(record.as_of[:10]) if record is not None else None
    over = [night for night, found in nights.items() if found.of("mean_episode_return") is not None]
    newest = {"run": run, "episodes": max(over, default=None)}
    for metric in METRICS:
        night = newest[metric.of]
        if night is None or night not in nights:
            what = "no nightly run has ended" if metric.of == "run" else "no night has a complete episode"
            values.add("offline_dqn_metric_absent", 1, metric=metric.key, reason=what)
            continue
        found, own = nights[night].values, {series.name for series in metric.series}
        values.values += [value for value in found.values if value.series in own]
        if metric.key in found.absent:
            values.add("offline_dqn_metric_absent", 1, metric=metric.key, reason=_short(found.absent[metric.key]))
        else:
            midnight = datetime.combine(night, time(), UTC).timestamp()
            values.add("offline_dqn_metric_night_timestamp_seconds", midnight, metric=metric.key)
    if record is not None:
        if run is not None and run in nights:
            values.add("offline_dqn_run_timestamp_seconds", nights[run].recorded_at.timestamp())
        values.add("offline_dqn_run_verdict", 1, decision=record.decision, gate=record.gate or "none")
        values.add("offline_dqn_run_rows", record.n_in, fate="in")
        values.add("offline_dqn_run_rows", record.n_quarantined, fate="quarantined")
    _budgets(values, workspace)
    _champion(values, workspace)
    return values


def _budgets(values: Values, workspace: Workspace) -> None:
    found, _ = standings(workspace, live=False)
    for standing in found:
        slo, budget = standing.objective.name, standing.budget
        values.add("offline_dqn_slo_objective_ratio", standing.objective.share, slo=slo)
        if budget is None:
            values.add("offline_dqn_slo_absent", 1, slo=slo, reason=_short(standing.absent))
            continue
        values.add("offline_dqn_slo_budget_left_ratio", budget.left, slo=slo)
        values.add("offline_dqn_slo_burn_rate", budget.burn_rate, slo=slo)
        values.add("offline_dqn_slo_spent", int(budget.spent), slo=slo)
        values.add("offline_dqn_slo_burning", int(budget.burning), slo=slo)


def _champion(values: Values, workspace: Workspace) -> None:
    history = read_history(workspace.releases_path / "history.jsonl")
    if history:
        values.add("offline_dqn_champion_release", history[-1].to_release)
    for action in ("promote", "rollback"):
        of_action = [change for change in history if change.action == action]
        values.add("offline_dqn_champion_changes_total", len(of_action), action=action)
        if of_action:
            changed = of_action[-1].at.timestamp()
            values.add("offline_dqn_champion_changed_timestamp_seconds", changed, action=action)


def _short(reason: str) -> str:
    text = " ".join(reason.split())
    return text if len(text) <= _MOST_REASON else text[: _MOST_REASON - 1] + "…"


def exposition(values: Iterable[Value], problem: str) -> str:
    """The text format of Prometheus, version 0.0.4, without timestamps, which the textfile collector refuses.

    Args:
        problem: name of the contract: a label of every series, since one machine may hold several workspaces.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats
    """
    by_series: dict[str, list[Value]] = {}
    for value in values:
        by_series.setdefault(value.series, []).append(value)
    lines = []
    for series in all_series():
        if series.name not in by_series:
            continue
        lines.append(f"# HELP {series.name} {_escaped(series.meaning, quote='')}")
        lines.append(f"# TYPE {series.name} {'counter' if series.counts else 'gauge'}")
        for value in by_series[series.name]:
            labels = {"problem": problem, **value.labels}
            shown = ",".join(f'{name}="{_escaped(text, quote=chr(34))}"' for name, text in labels.items())
            lines.append(f"{series.name}{{{shown}}} {value.value!r}")
    return "".join(line + "\n" for line in lines)


def _escaped(text: str, *, quote: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace(quote, "\\" + quote) if quote else escaped


def prometheus_path(workspace: Workspace) -> Path:
    """The file for the textfile collector."""
    configured = workspace.config.metrics.prometheus_file
    return workspace.root / configured if configured else workspace.metrics_path / "offline_dqn.prom"


def write_exposition(path: Path, text: str) -> None:
    """Replaces the file in one step, readable by everyone: the collector never sees half of it.

    Raises:
        ExportError: it cannot be written.
    """
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(2, "the folder does not exist", str(path.parent))
        write_durably(path, text)
        path.chmod(0o644)
    except OSError as error:
        raise ExportError(
            f"The metrics could not be written to {path}: {error.strerror or error}. Prometheus goes on with what it "
            "read last. See to the folder that [metrics] prometheus_file names, then `offline-dqn metrics --export`."
        ) from error


def push_exposition(gateway: str, text: str, *, problem: str, timeout_s: float) -> None:
    """Replaces this problem's group at a push gateway (PUT), so that what is absent tonight does not stay there.

    Raises:
        ExportError: the gateway cannot be reached, or refuses.

    Source: https://github.com/prometheus/pushgateway, API.
    """
    address = f"{gateway.rstrip('/')}/metrics/job/offline_dqn/problem/{quote(problem, safe='')}"
    request = urllib.request.Request(address, data=text.encode(), method="PUT")
    request.add_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return
    except urllib.error.HTTPError as error:
        said = error.read(500).decode(errors="replace").strip()
        cause = f"it refused with status {error.code}: {said}"
    except (OSError, ValueError) as error:
        cause = str(getattr(error, "reason", error))
    raise ExportError(
        f"The metrics could not be pushed to {gateway}: {cause}. See to [metrics] push_gateway, then run `offline-dqn "
        "metrics --export`; the file for the node exporter is written all the same."
    )


def export(workspace: Workspace) -> list[str]:
    """Writes the file for the textfile collector and pushes, as configured; what went wrong, in words."""
    records = read_nights(workspace.nights_path)
    nights = MetricHistory(workspace.metrics_path).nights()
    config, problem = workspace.config.metrics, workspace.contract.name
    text = exposition(exported_values(workspace, nights, records[-1] if records else None).values, problem)
    warnings = []
    path = prometheus_path(workspace)
    if config.prometheus_file is None:
        path.parent.mkdir(exist_ok=True)
    try:
        write_exposition(path, text)
    except ExportError as error:
        warnings.append(str(error))
    if config.push_gateway is not None:
        try:
            push_exposition(config.push_gateway, text, problem=problem, timeout_s=config.push_timeout_s)
        except ExportError as error:
            warnings.append(str(error))
    return warnings
