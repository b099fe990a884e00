"""Panels of Grafana dashboards as plain JSON, titled and explained by the definitions of the metrics they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.operating_metrics import GOOD, METRICS, OperatingMetric

Json = dict[str, Any]

PROMETHEUS: Json = {"type": "prometheus", "uid": "${datasource}"}
OF_PROBLEM = 'problem=~"$problem"'
"""Every query asks for the workspace that is chosen above the panels."""

_UNITS = {"share": "percentunit", "s": "s"}
_COLORS = {"good": "green", "warn": "orange", "bad": "red"}
_COLUMNS = 24
"""Of Grafana's grid."""


def of(key: str) -> OperatingMetric:
    """One of the ten."""
    return next(metric for metric in METRICS if metric.key == key)


def about(key: str) -> Json:
    """Title, description and unit of a panel that shows a metric."""
    metric = of(key)
    return {
        "title": metric.title,
        "description": f"{metric.formula}\n\nFrom {metric.source}. {GOOD[metric.good]}.",
        "unit": _UNITS.get(metric.unit, "none"),
    }


def target(expression: str, legend: str = "", *, instant: bool = False) -> Json:
    """A query; `instant` takes its newest value alone, as a table."""
    return {
        "datasource": PROMETHEUS,
        "expr": expression,
        "legendFormat": legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": "table" if instant else "time_series",
        "refId": "A",
    }


def panel(
    kind: str,
    title: str,
    targets: Sequence[Json],
    *,
    description: str,
    unit: str = "none",
    width: int = 12,
    height: int = 8,
    steps: Sequence[tuple[float | None, str]] = (),
    options: Mapping[str, Any] | None = None,
    custom: Mapping[str, Any] | None = None,
    transformations: Sequence[Json] = (),
) -> Json:
    """A panel without its place.

    Args:
        kind: Grafana's name of the panel type.
        steps: limits from which on a value is "good", "warn" or "bad"; None begins.
        options, custom: of the panel type.
        transformations: of the answers, in order.
    """
    defaults: Json = {"unit": unit, "custom": dict(custom or {})}
    if steps:
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"value": limit, "color": _COLORS[name]} for limit, name in steps],
        }
        defaults["color"] = {"mode": "thresholds"}
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": PROMETHEUS,
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "targets": [{**one, "refId": chr(ord("A") + i)} for i, one in enumerate(targets)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": dict(options or {}),
        **({"transformations": list(transformations)} if transformations else {}),
    }


def stat(key: str, expression: str, **more: Any) -> Json:
    """The newest value of a metric, large."""
    options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "area"}
    given = {**about(key), "width": 6, "height": 5, "options": options, **more}
    return panel("stat", given.pop("title"), [target(expression)], **given)


def lines(title: str, targets: Sequence[Json], *, description: str, **more: Any) -> Json:
    """Values over time; nights are a day apart, so gaps are bridged."""
    custom = {"lineWidth": 2, "fillOpacity": 8, "spanNulls": True, "showPoints": "auto"}
    return panel("timeseries", title, targets, description=description, custom=custom, **more)


def metric_lines(key: str, targets: Sequence[Json], **more: Any) -> Json:
    """A metric over time."""
    given = {**about(key), **more}
    return lines(given.pop("title"), targets, **given)


def table(title: str, targets: Sequence[Json], *, description: str, hidden: Sequence[str] = (), **more: Any) -> Json:
    """The newest values as rows, without columns that say the same in each."""
    hide = {"Time": True, "__name__": True, "job": True, "instance": True, "problem": True}
    organize = {"id": "organize", "options": {"excludeByName": {**hide, **dict.fromkeys(hidden, True)}}}
    merged = [{"id": "merge", "options": {}}] if len(targets) > 1 else []
    return panel("table", title, targets, description=description, transformations=[*merged, organize], **more)


def dashboard(uid: str, title: str, description: str, panels: Sequence[Json], *, since: str) -> Json:
    """A dashboard with its panels in rows from left to right, a choice of workspace, and releases as annotations."""
    query = "label_values(offline_dqn_run_timestamp_seconds, problem)"
    changed = f"changes(offline_dqn_champion_release{{{OF_PROBLEM}}}[5m]) > 0"
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["offline-dqn"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": since, "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "problem",
                    "type": "query",
                    "label": "Workspace",
                    "datasource": PROMETHEUS,
                    "query": {"query": query, "refId": "problem"},
                    "refresh": 2,
                    "includeAll": True,
                    "multi": False,
                },
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Champion changed",
                    "datasource": PROMETHEUS,
                    "enable": True,
                    "iconColor": "purple",
                    "target": {"expr": changed, "refId": "Anno"},
                }
            ]
        },
        "panels": _placed(panels),
    }


def _placed(panels: Sequence[Json]) -> list[Json]:
    placed: list[Json] = []
    x = y = row = 0
    for number, one in enumerate(panels, start=1):
        width, height = one["gridPos"]["w"], one["gridPos"]["h"]
        if x + width > _COLUMNS:
            x, y, row = 0, y + row, 0
        placed.append({"id": number, **one, "gridPos": {"h": height, "w": width, "x": x, "y": y}})
        x, row = x + width, max(row, height)
    return placed
