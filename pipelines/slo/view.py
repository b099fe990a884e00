"""The view `error_budgets`: how each objective stood at the end of each night."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets.catalog import Added
from pipelines.metrics.history import MetricHistory
from pipelines.nights import read_nights
from pipelines.slo.config import SloConfig
from reports.error_budgets import error_budget

SCHEMA = pa.schema(
    [
        ("night", pa.date32()),
        ("slo", pa.string()),
        ("objective", pa.float64()),
        ("n_events", pa.float64()),
        ("n_bad", pa.float64()),
        ("budget_left", pa.float64()),
        ("burn_rate", pa.float64()),
        ("spent", pa.bool_()),
        ("burning", pa.bool_()),
    ]
)
"""A row for each objective and each night with an event of it: its own counts, and the budget of the window that it
ends."""


def error_budgets_view(config: SloConfig, metrics: Path, nights: Path) -> Added:
    """The table `error_budgets`, made when a record or the settings change, and once a day.

    Args:
        metrics: folder of the metric history.
        nights: the record of nightly runs.
    """
    stats = {path.name: path.stat() for path in [*sorted(metrics.glob("nights-*.jsonl")), nights] if path.exists()}
    now = datetime.now(UTC)
    made_from = {
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        "settings": config.model_dump(mode="json"),
        "day": now.date().isoformat() if config.nights is not None else "",  # a deadline may have passed
    }

    def rows() -> pa.Table:
        return pa.Table.from_pylist(list(_rows(config, metrics, nights, now)), schema=SCHEMA)

    return Added(made_from, {"error_budgets": rows}, {})


def _rows(config: SloConfig, metrics: Path, nights: Path, now: datetime) -> Iterator[dict[str, Any]]:
    from pipelines.slo.events import counted_events  # late: it loads Prometheus' parser, which few queries need

    if not config.tables():
        return
    counted = counted_events(config, MetricHistory(metrics).nights(), read_nights(nights), now=now)
    for name, objective in config.objectives().items():
        events = sorted(counted[name].nights, key=lambda events: events.night)
        of_night: dict[date, Any] = {one.night: one for one in events if one.n_events}
        for night, one in of_night.items():
            budget = error_budget(objective, events, night)
            assert budget is not None  # the night itself has events
            yield {
                "night": night,
                "slo": name,
                "objective": objective.share,
                "n_events": one.n_events,
                "n_bad": one.n_bad,
                "budget_left": budget.left,
                "burn_rate": budget.burn_rate,
                "spent": budget.spent,
                "burning": budget.burning,
            }
