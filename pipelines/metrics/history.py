"""Every night's metrics, kept for good: one line per night in a file per month, and the view `metrics`.

A night is measured again as long as late rows may change it. A line is added where something did; the newest stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets.catalog import Added
from datasets.durable import append_record, read_records
from pipelines.metrics.values import Value, Values
from reports.operating_metrics import METRICS, metric_of_series

SCHEMA = pa.schema(
    [
        ("night", pa.date32()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("unit", pa.string()),
        ("reason", pa.string()),
        ("series", pa.string()),
        ("labels", pa.map_(pa.string(), pa.string())),
        ("is_detail", pa.bool_()),
        ("recorded_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""Ten rows a night that are the metrics, with a value or the reason why there is none, and one for each detail."""


@dataclass(frozen=True)
class NightMetrics:
    """What stands for a night.

    Attributes:
        night: UTC date.
        recorded_at: by the clock.
        values: what is known, and why the rest is not.
        server: the policy server's counters when they were read, which the next reading is compared with.
    """

    night: date
    recorded_at: datetime
    values: Values
    server: Mapping[str, Any] | None = None

    def of(self, key: str) -> float | None:
        """One of the ten; None where it is absent."""
        return self.values.of(next(metric.name for metric in METRICS if metric.key == key))


@dataclass
class MetricHistory:
    """The files in a workspace's folder `metrics`; only ever appended to, by whoever holds the workspace's lock."""

    folder: Path
    _standing: dict[date, NightMetrics] | None = field(default=None, init=False)

    def nights(self) -> dict[date, NightMetrics]:
        """What stands for each night, oldest first."""
        if self._standing is None:
            found = {}
            for path in self._files():
                for line in read_records(path):
                    night = _from_json(line)
                    found[night.night] = night
            self._standing = dict(sorted(found.items()))
        return self._standing

    def record(self, night: date, values: Values, server: Mapping[str, Any] | None) -> bool:
        """Adds what was found for a night, through to the disk; nothing and False where it stands there already."""
        found = json.loads(json.dumps(_to_json(night, values, server)))
        before = self.nights().get(night)
        if before is not None and json.loads(json.dumps(_to_json(night, before.values, before.server))) == found:
            return False
        line = {**found, "recorded_at": datetime.now(UTC).isoformat(timespec="seconds")}
        append_record(self.folder / f"nights-{night:%Y-%m}.jsonl", line)
        self._standing = dict(sorted({**self.nights(), night: _from_json(line)}.items()))
        return True

    def view(self) -> Added:
        """The table `metrics`, made when a file of the folder has changed."""
        stats = {path.name: path.stat() for path in self._files()}
        made_from = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

        def rows() -> pa.Table:
            found = [row for night in self.nights().values() for row in _rows(night)]
            return pa.Table.from_pylist(found, schema=SCHEMA)

        return Added(made_from, {"metrics": rows}, {})

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("nights-[0-9][0-9][0-9][0-9]-[0-9][0-9].jsonl"))


def _to_json(night: date, values: Values, server: Mapping[str, Any] | None) -> dict[str, Any]:
    found = [value.to_json() for value in values.values]
    return {"night": night.isoformat(), "values": found, "absent": values.absent, "server": server}


def _from_json(line: Mapping[str, Any]) -> NightMetrics:
    """What a later version may have called otherwise is left out."""
    known = {series.name for metric in METRICS for series in metric.series}
    values = [Value(v["series"], v["labels"], v["value"]) for v in line["values"] if v["series"] in known]
    absent = {key: reason for key, reason in line["absent"].items() if any(m.key == key for m in METRICS)}
    recorded_at = datetime.fromisoformat(line["recorded_at"])
    return NightMetrics(date.fromisoformat(line["night"]), recorded_at, Values(values, absent), line.get("server"))


def _rows(night: NightMetrics) -> Iterator[dict[str, Any]]:
    of_night = {"night": night.night, "recorded_at": night.recorded_at}
    own = {metric.name for metric in METRICS}
    for metric in METRICS:
        if metric.key in night.values.absent:
            row = {"metric": metric.key, "unit": metric.unit, "series": metric.name, "labels": {}, "is_detail": False}
            yield {**of_night, **row, "value": None, "reason": night.values.absent[metric.key]}
    for value in night.values.values:
        metric = metric_of_series(value.series)
        is_detail = value.series not in own
        yield {
            **of_night,
            "metric": metric.key,
            "value": value.value,
            "unit": None if is_detail else metric.unit,
            "reason": None,
            "series": value.series,
            "labels": dict(value.labels),
            "is_detail": is_detail,
        }
