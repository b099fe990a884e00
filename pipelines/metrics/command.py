"""The command `metrics`: the ten metrics of the last nights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datasets.locking import exclusive_lock
from pipelines import console
from pipelines.command import FAILED, AsOfOption, JsonOption, WorkspaceOption, command, open_workspace_of
from reports.operating_metrics import GOOD, METRICS, OperatingMetric

if TYPE_CHECKING:  # reading what was kept loads DuckDB and more; a command loads what it needs when it runs
    from pipelines.metrics.history import NightMetrics

metrics_app = typer.Typer(rich_markup_mode=None)


@command(metrics_app, "metrics")
def metrics(
    workspace: WorkspaceOption = Path(),
    nights: Annotated[int, typer.Option(min=1, help="Newest nights to show.")] = 5,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure every night of the lake anew first.")] = False,
    export: Annotated[bool, typer.Option("--export", help="Write the Prometheus file again, and push.")] = False,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """The ten metrics of the last nights; what cannot be known is absent, with the reason."""
    from pipelines.metrics.history import MetricHistory

    opened = open_workspace_of(workspace, as_of)
    warnings: list[str] = []
    if refresh or export:
        from pipelines.metrics import exposition, measuring

        with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
            warnings = measuring.measure(opened, everything=True).warnings if refresh else exposition.export(opened)
    found = list(MetricHistory(opened.metrics_path).nights().values())[-nights:]
    if as_json:
        console.print_json({"nights": [_plain(night) for night in found], "warnings": warnings})
    else:
        _print(found, opened.config.cost.currency)
        for warning in warnings:
            console.warn(warning)
    if warnings:
        raise typer.Exit(FAILED)


def _plain(night: NightMetrics) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for metric in METRICS:
        value = night.of(metric.key)
        unit = {"unit": metric.unit, "good": metric.good}
        values[metric.key] = (
            {"value": value, **unit}
            if value is not None
            else {"value": None, "reason": night.values.absent.get(metric.key, ""), **unit}
        )
    return {
        "night": night.night.isoformat(),
        "recorded_at": night.recorded_at.isoformat(),
        "metrics": values,
        "series": [value.to_json() for value in night.values.values],
    }


def _print(found: Sequence[NightMetrics], currency: str) -> None:
    if not found:
        console.print_account(
            "No metrics yet", {"next": "`offline-dqn nightly` measures them; `metrics --refresh` does it now"}
        )
        return
    columns = [night.night.isoformat() for night in found]
    rows = [
        [
            metric.title,
            *(_shown(night.of(metric.key), metric) for night in found),
            _unit(metric, currency),
            _good(metric),
        ]
        for metric in METRICS
    ]
    console.print_table("Metrics by night", ["metric", *columns, "unit", "good"], rows, right=columns)
    reasons = _reasons(found)
    if any(reasons.values()):
        console.print_account("Absent", reasons)


def _reasons(found: Sequence[NightMetrics]) -> Mapping[str, str]:
    """Of each metric that is absent in any of the nights: why, and in which, the newest reason first."""
    reasons = {}
    for metric in METRICS:
        nights: dict[str, list[date]] = {}
        for night in reversed(found):
            if metric.key in night.values.absent:
                nights.setdefault(night.values.absent[metric.key], []).append(night.night)
        reasons[metric.title] = "; ".join(f"{reason} ({_when(when)})" for reason, when in nights.items())
    return reasons


def _when(nights: Sequence[date]) -> str:
    """Nights, newest first, in words."""
    newest, oldest = nights[0], nights[-1]
    if len(nights) > 2 and (newest - oldest).days == len(nights) - 1:
        return f"{oldest} to {newest}"
    return ", ".join(str(night) for night in reversed(nights))


def _shown(value: float | None, metric: OperatingMetric) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.3g} %" if metric.unit == "share" else f"{value:.4g}"


def _unit(metric: OperatingMetric, currency: str) -> str:
    return {"currency": currency, "share": "", "ratio": "x threshold"}.get(metric.unit, metric.unit)


def _good(metric: OperatingMetric) -> str:
    return GOOD[metric.good].removesuffix(" is better")
