"""What is known of a night's metrics: numbers by series and labels, and why the others are absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reports.operating_metrics import METRICS, all_series

_LABELS = {series.name: series.labels for series in all_series()}

_DIGITS = 12
"""Kept of a number: the last ones depend on the order in which threads added up, and would change every night."""


@dataclass(frozen=True)
class Value:
    """A number of a series, at a value of each of its labels."""

    series: str
    labels: Mapping[str, str]
    value: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"series": self.series, "labels": dict(self.labels), "value": self.value}


@dataclass
class Values:
    """Numbers of a night as they are found.

    Attributes:
        values: in the order in which they were found.
        absent: by key of a metric, why it cannot be known. A metric is in one of the two.
    """

    values: list[Value] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, series: str, value: float | int | None, **labels: object) -> None:
        """Adds a number that is known; None and what is no finite number are left out.

        Raises:
            ValueError: the series is not defined, or has other labels.
        """
        if series not in _LABELS or set(labels) != set(_LABELS[series]):
            raise ValueError(f"{series} has the labels {_LABELS.get(series)}, and was given {tuple(labels)}.")
        if value is not None and math.isfinite(value):
            rounded = float(f"{value:.{_DIGITS}g}")
            self.values.append(Value(series, {name: str(labels[name]) for name in _LABELS[series]}, rounded))

    def missing(self, key: str, reason: str) -> None:
        """Says why a metric is absent."""
        self.absent[key] = reason

    def of(self, series: str) -> float | None:
        """The number of a series without labels, or of the first of its labels; None where it is absent."""
        return next((value.value for value in self.values if value.series == series), None)

    def update(self, other: Values) -> None:
        """Takes over what another found; what it knows stands in place of what was known here."""
        known = {value.series for value in other.values}
        self.values = [value for value in self.values if value.series not in known] + other.values
        self.absent.update(other.absent)
        for metric in METRICS:
            if self.of(metric.name) is not None:
                self.absent.pop(metric.key, None)
