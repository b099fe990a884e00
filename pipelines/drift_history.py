"""Every night's drift check, kept for good: one line per check in a file per month, and the view `drift_history`.

Nothing is changed or removed: a night that runs again adds a line where it found something else, and one of a night's
lines stands for it: the newest of those that trained, or else the newest. A month's file holds at most a few megabytes
(up to about 2.6 kB per column and night, at 60 nights), so adding a line stays cheap however long a workspace lives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets.catalog import Added
from datasets.durable import append_record, read_records, write_durably

SCHEMA = pa.schema(
    [
        ("night", pa.date32()),
        ("as_of", pa.timestamp("us", tz="UTC")),
        ("live_from", pa.date32()),
        ("live_to", pa.date32()),
        ("champion", pa.int64()),
        ("retrain", pa.bool_()),
        ("cause", pa.string()),
        ("sentence", pa.string()),
        ("drift", pa.string()),
        ("live_episodes", pa.int64()),
        ("joint_p_value", pa.float64()),
        ("column_name", pa.string()),
        ("role", pa.string()),
        ("kind", pa.string()),
        ("status", pa.string()),
        ("psi", pa.float64()),
        ("threshold", pa.float64()),
        ("min_psi", pa.float64()),
        ("typical_psi", pa.float64()),
        ("p_value", pa.float64()),
        ("kl", pa.float64()),
        ("kl_reverse", pa.float64()),
        ("js", pa.float64()),
        ("wasserstein", pa.float64()),
        ("reference_missing_share", pa.float64()),
        ("live_missing_share", pa.float64()),
        ("unseen_share", pa.float64()),
        ("since", pa.date32()),
        ("slow_since", pa.date32()),
        ("share_change", pa.float64()),
        ("value_change", pa.float64()),
        ("overlap_change", pa.float64()),
        ("suspicion", pa.string()),
    ]
)
"""One row per night and column; one with nothing but the night's own columns where nothing was compared."""


_DATES = frozenset({"night", "as_of", "recorded_at", "live_nights", "since", "nights"})


@dataclass(frozen=True)
class DriftCheck:
    """What a night's drift check found, as it was recorded: plain JSON values.

    Attributes:
        night: ISO date of `as_of`, in UTC, as in the table of nights.
        as_of: the instant that the night took for now.
        recorded_at: when it was written down, by the clock.
        champion: release that acted; None before the first promotion.
        decision: as `RetrainDecision.to_json`.
        live_nights: first and last night of the live window, ISO dates; None where there was none.
        report: as `DriftReport.to_json`; None where nothing was compared.
    """

    night: str
    as_of: str
    recorded_at: str
    champion: int | None
    decision: Mapping[str, Any]
    live_nights: Sequence[str] | None
    report: Mapping[str, Any] | None

    @property
    def retrain(self) -> bool:
        """Whether the night was to train."""
        return bool(self.decision["retrain"])

    @property
    def drifted(self) -> bool:
        """Whether the live window had drifted, whatever was decided."""
        report = self.report
        if report is None:
            return False
        joint = any(test["status"] == "drifted" for test in report.get("joint", ()))
        return report["status"] == "drifted" or joint or bool(report.get("slow"))

    @property
    def held(self) -> bool:
        """Whether the night waited for a person, as its shift looked like poisoned or gamed data."""
        return bool(self.decision["cause"] == "suspicious")


def record_check(folder: Path, outcome: Mapping[str, Any], *, as_of: datetime, champion: int | None) -> None:
    """Adds a night's check, through to the disk; nothing where the night's newest line says the same already.

    The caller holds the workspace's lock. Killed at any moment, whole lines are left.

    Args:
        outcome: as `DriftOutcome.to_json`.
        as_of: the instant that the night took for now.
        champion: release that acted, if any.
    """
    instant = as_of.astimezone(UTC)
    about = {"night": instant.date().isoformat(), "as_of": instant.isoformat(timespec="seconds"), "champion": champion}
    found = json.loads(json.dumps({**about, **outcome}))  # as it will be read: tuples are lists there
    path = folder / f"{instant:%Y-%m}.jsonl"
    same_night = [record for record in read_records(path) if record["night"] == found["night"]]
    if not same_night or {k: v for k, v in same_night[-1].items() if k != "recorded_at"} != found:
        append_record(path, {**found, "recorded_at": datetime.now(UTC).isoformat(timespec="seconds")})


def read_drift_history(folder: Path, *, newest: int | None = None) -> list[DriftCheck]:
    """The check that stands for each night, oldest first.

    Args:
        folder: where they were recorded: `Workspace.drift_path`.
        newest: how many nights at most; None for all.
    """
    found: list[DriftCheck] = []
    for path in reversed(_months(folder)):
        found = [*_standing(path), *found]
        if newest is not None and len(found) >= newest:
            return found[len(found) - newest :]
    return found


def erase_from_history(folder: Path, without: Callable[[str], str]) -> None:
    """Takes an erased subject's names out of every check, by `without`; dates stay. Can be repeated."""
    for path in _months(folder):
        records = read_records(path)
        redacted = [_redacted(record, without) for record in records]
        if redacted != records:
            write_durably(path, "".join(json.dumps(record) + "\n" for record in redacted))


def _redacted(value: Any, without: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {name: part if name in _DATES else _redacted(part, without) for name, part in value.items()}
    if isinstance(value, list):
        return [_redacted(part, without) for part in value]
    return without(value) if isinstance(value, str) else value


def drift_history_view(folder: Path) -> Added:
    """The table `drift_history`, made when a file of the folder has changed."""
    stats = {path.name: path.stat() for path in _months(folder)}
    made_from = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

    def rows() -> pa.Table:
        by_month = [
            pa.Table.from_pylist([row for check in _standing(path) for row in _rows(check)], schema=SCHEMA)
            for path in _months(folder)
        ]
        return pa.concat_tables([SCHEMA.empty_table(), *by_month])

    return Added(made_from, {"drift_history": rows}, {})


def _months(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9][0-9][0-9]-[0-9][0-9].jsonl"))


def _standing(path: Path) -> list[DriftCheck]:
    """Of each of a month's nights the newest check that trained, or else the newest."""
    by_night: dict[str, DriftCheck] = {}
    for record in read_records(path):
        known: dict[str, Any] = {field.name: record.get(field.name) for field in fields(DriftCheck)}
        check = DriftCheck(**known)
        before = by_night.get(check.night)
        if before is None or check.retrain or not before.retrain:
            by_night[check.night] = check
    return [by_night[night] for night in sorted(by_night)]


def _rows(check: DriftCheck) -> Iterator[dict[str, Any]]:
    report = check.report or {}
    live = check.live_nights or (None, None)
    joint = [test["p_value"] for test in report.get("joint", ()) if test["p_value"] is not None]
    of_night = {
        "night": _day(check.night),
        "as_of": datetime.fromisoformat(check.as_of),
        "live_from": _day(live[0]),
        "live_to": _day(live[1]),
        "champion": check.champion,
        "retrain": check.retrain,
        "cause": check.decision["cause"],
        "sentence": check.decision["sentence"],
        "drift": report.get("status", "not measured"),
        "min_psi": report.get("min_psi"),
        "live_episodes": report.get("live_episodes"),
        "joint_p_value": min(joint, default=None),
    }
    slow = {found["name"]: _day(found["since"]) for found in report.get("slow", ())}
    effects = {found["column"]: found for found in report.get("effects", ())}
    suspicions: dict[str, list[str]] = {}
    for found in report.get("suspicions", ()):
        for name in (found["column"], *found.get("also", ())):
            suspicions.setdefault(name, []).append(found["sentence"])
    for column in report.get("columns", ()):
        effect = effects.get(column["name"], {})
        own = {field: column.get(field) for field in SCHEMA.names if field in column}
        yield {
            **of_night,
            **own,
            "column_name": column["name"],
            "since": _day(column.get("since")),
            "slow_since": slow.get(column["name"]),
            **{name: effect.get(name) for name in ("share_change", "value_change", "overlap_change")},
            "suspicion": "; ".join(suspicions.get(column["name"], ())) or None,
        }
    if not report.get("columns"):
        yield of_night


def _day(text: str | None) -> date | None:
    return None if text is None else date.fromisoformat(text)
