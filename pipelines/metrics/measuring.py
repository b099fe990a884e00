"""The metrics of a workspace: measured at the end of a night, kept, and handed to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb

from datasets.duck import duck
from datasets.errors import OfflineDqnError
from datasets.lake import Lake
from pipelines.drift_history import read_drift_history
from pipelines.metrics.exposition import export
from pipelines.metrics.history import MetricHistory, NightMetrics
from pipelines.metrics.lake import lake_metrics
from pipelines.metrics.regret import regret_of_nights
from pipelines.metrics.runs import run_metrics
from pipelines.metrics.server import Counters, server_metrics
from pipelines.metrics.values import Values
from pipelines.nights import NightRecord, read_nights
from pipelines.workspace import Workspace
from reports.operating_metrics import METRICS, SERVER


@dataclass
class Measured:
    """What was found.

    Attributes:
        nights: that were measured, oldest first.
        changed: those whose record changed.
        warnings: what a person should look at.
    """

    nights: list[date] = field(default_factory=list)
    changed: list[date] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def measure(workspace: Workspace, *, everything: bool = False) -> Measured:
    """Measures the newest nights, keeps what changed, and exports it; what fails is a warning, and loses nothing.

    The caller holds the workspace's lock.

    Args:
        everything: every night of the lake, not just those that `[metrics] nights` names.
    """
    done = Measured()
    try:
        _measure(workspace, done, everything=everything)
    except (OfflineDqnError, OSError, duckdb.Error) as error:
        done.warnings.append(
            f"the metrics could not be measured: {str(error).splitlines()[0]}; `offline-dqn metrics --refresh` "
            "tries again"
        )
    done.warnings += export(workspace)
    return done


def _measure(workspace: Workspace, done: Measured, *, everything: bool) -> None:
    lake = workspace.open_lake()
    as_of = workspace.as_of(lake)
    today = as_of.astimezone(UTC).date()
    records, checks = _by_night(workspace)
    nights = sorted(set(_nights(workspace, lake, today, everything=everything)) | {today})
    over = today if workspace.config.ingest.as_of == "newest" else today - timedelta(days=1)
    of_lake = lake_metrics(lake, nights, as_of=as_of, newest_over=over)
    history = MetricHistory(workspace.metrics_path)
    changed = [night for night in nights if _has_other_episodes(of_lake[night], history.nights().get(night))]
    regrets = regret_of_nights(workspace, lake, changed, as_of=as_of)
    for night in nights:
        values, before = of_lake[night], history.nights().get(night)
        values.update(regrets[night] if night in regrets else _only_regret(before))
        values.update(run_metrics(workspace, night, records.get(night), checks.get(night)))
        of_server, state = _of_server(workspace, history, night, is_run=night == today)
        values.update(of_server)
        if history.record(night, values, state):
            done.changed.append(night)
    done.nights = nights
    workspace.refresh_catalog(lake)


def _has_other_episodes(values: Values, before: NightMetrics | None) -> bool:
    """Whether a night's episodes are others than when it was measured last; those of one without any need no look."""
    if values.of("offline_dqn_mean_episode_return") is None:
        return False
    own = next(metric for metric in METRICS if metric.key == "mean_episode_return").series
    names = {series.name for series in own}
    known = before.values.values if before is not None else []
    return [v for v in values.values if v.series in names] != [v for v in known if v.series in names]


def _only_regret(before: NightMetrics | None) -> Values:
    values = Values()
    if before is not None and before.of("regret") is not None:
        values.add("offline_dqn_regret", before.of("regret"))
    elif before is not None and "regret" in before.values.absent:
        values.missing("regret", before.values.absent["regret"])
    return values


def _of_server(
    workspace: Workspace, history: MetricHistory, night: date, *, is_run: bool
) -> tuple[Values, Mapping[str, Any] | None]:
    """Tonight's reading of the policy server; of an earlier night what was read then stands."""
    if is_run:
        states = [found.server for before, found in history.nights().items() if before < night and found.server]
        earlier = Counters.from_json(states[-1]) if states else None
        values, now = server_metrics(workspace.config.metrics.server, earlier)
        return values, now.to_json() if now is not None else None
    before = history.nights().get(night)
    values = Values()
    for metric in METRICS:
        if metric.computed_by == SERVER and before is not None:
            own = {series.name for series in metric.series}
            values.values += [value for value in before.values.values if value.series in own]
        if metric.computed_by == SERVER and (before is None or before.of(metric.key) is None):
            why = before.values.absent.get(metric.key) if before is not None else None
            values.missing(metric.key, why or "the policy server was not read in this night")
    return values, before.server if before is not None else None


def _by_night(workspace: Workspace) -> tuple[dict[date, NightRecord], dict[date, Any]]:
    """The record that stands for each night, the newest that has a release or else the newest, and the drift check."""
    records: dict[date, NightRecord] = {}
    for record in read_nights(workspace.nights_path):
        night = datetime.fromisoformat(record.as_of).astimezone(UTC).date()
        if night not in records or record.release is not None or records[night].release is None:
            records[night] = record
    checks = {date.fromisoformat(check.night): check for check in read_drift_history(workspace.drift_path)}
    return records, checks


def _nights(workspace: Workspace, lake: Lake, today: date, *, everything: bool) -> list[date]:
    """Nights of the lake to measure: of those that retention has begun to take rows of, what was measured stands."""
    with duck() as connection:
        rows = connection.execute(f"SELECT DISTINCT log_date FROM {lake.scan('steps')}").fetchall()
    found = sorted(row[0] for row in rows if row[0] <= today)
    days = workspace.config.retention.steps_days
    whole = [night for night in found if days is None or night > today - timedelta(days=days)]
    return whole if everything else whole[-workspace.config.metrics.nights :]
