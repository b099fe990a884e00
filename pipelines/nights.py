"""The record of a night: one line in `nights.jsonl`, the table that `nightly` prints, and what Prefect shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datasets.durable import append_record, read_records


@dataclass(frozen=True)
class NightRecord:
    """What one night did, from logs to verdict. None where the night did not come that far.

    Attributes:
        as_of: the instant that the night took for now.
        batch: id and status of the batch, if there was one.
        drift: the drift status in one or a few words.
        decision: why it retrained, or kept the champion.
        release: the candidate, if one was trained.
        value, low, high: its estimated value per episode, with the 95 % interval.
        baseline: value of what runs today.
        gate: "passed", "refused", "not read" where the year's error is spent or too few episodes are there to
            decide, or "not trained" where a budget stopped the training; and `reason` why.
        report: path of the report, relative to the workspace.
        seconds: by stage, and "total".
        live_from: first night of the live window that drift was measured on.
        review: where a candidate that passed waits for its reviewer, or how it is decided from a shell.
        drift_page: path of the page of the drift check, relative to the workspace.
        started_at, ended_at: by the clock, ISO; `as_of` is of the log's.
        resumed: how often the night had died and was taken up again, and in which stages nothing was repeated.
        fallback_share: share of the champion's newest live decisions that version 0 made, by guard or lateness; None
            where no log says who decided.
        trace_id: of the night's trace, where [tracing] has an endpoint.
        warnings: what a person should look at although the night went on, such as files that could not be read.
    """

    as_of: str
    batch: str | None
    status: str
    n_in: int
    n_quarantined: int
    drift: str
    decision: str
    release: int | None
    value: float | None
    low: float | None
    high: float | None
    baseline: float | None
    gate: str | None
    reason: str
    report: str | None
    seconds: Mapping[str, float]
    live_from: str | None = None
    warnings: Sequence[str] = ()
    review: str | None = None
    drift_page: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    resumed: str | None = None
    fallback_share: float | None = None
    trace_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "seconds": dict(self.seconds), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NightRecord:
        """What `to_json` wrote; what a newer version may have added is left out."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def row(self) -> list[str]:
        """The night as a row of text; see COLUMNS."""
        estimate = "-" if self.value is None else f"{self.value:.4g}"
        if self.value is not None and self.low is not None and self.high is not None:
            estimate += f" [{self.low:.4g}, {self.high:.4g}]"
        return [
            self.as_of[:10],
            f"{self.n_in:,}",
            f"{self.n_quarantined:,}",
            self.drift,
            self.decision,
            "-" if self.fallback_share is None else f"{self.fallback_share:.1%}",
            "-" if self.release is None else str(self.release),
            estimate,
            "-" if self.baseline is None else f"{self.baseline:.4g}",
            self.gate or "-",
            f"{self.seconds.get('total', 0.0):.0f}",
        ]


COLUMNS = (
    "night",
    "rows in",
    "quarantined",
    "drift",
    "decision",
    "to version 0",
    "release",
    "estimate [95 %]",
    "baseline",
    "gate",
    "seconds",
)
RIGHT = ("rows in", "quarantined", "to version 0", "release", "baseline", "seconds")


def append_night(path: Path, record: NightRecord) -> None:
    """Adds a line, through to the disk; a line that a crash cut off is removed first."""
    append_record(path, record.to_json())


def read_nights(path: Path) -> list[NightRecord]:
    """Every night, oldest first; a last line that a crash cut off did not happen."""
    return [NightRecord.from_json(record) for record in read_records(path)]
