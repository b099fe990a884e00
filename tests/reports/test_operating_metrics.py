"""The ten metrics are defined once, whole, and as Prometheus wants its names."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from reports.operating_metrics import (
    GOOD,
    METRICS,
    UNITS,
    OperatingMetric,
    all_series,
    definitions_as_markdown,
    metric_of_series,
)

TEN = {
    "mean_episode_return", "action_success_rate", "regret", "decision_latency", "drift", "safety_violation_rate",
    "training_convergence", "replay_coverage", "resource_spend", "availability",
}  # fmt: skip


def test_there_are_the_ten() -> None:
    assert {metric.key for metric in METRICS} == TEN
    assert len(METRICS) == 10


def test_every_series_has_one_definition_and_a_name_that_prometheus_takes() -> None:
    series = list(all_series())
    assert len({one.name for one in series}) == len(series)
    for one in series:
        assert re.fullmatch(r"offline_dqn_[a-z0-9_]+", one.name), one.name
        assert one.name.endswith("_total") == one.counts, one.name
        assert one.meaning.endswith("."), one.name
        assert "problem" not in one.labels  # every series of the file has it


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_a_metric_says_what_it_is(metric: OperatingMetric) -> None:
    assert metric.unit in UNITS
    assert metric.good in GOOD
    assert metric.formula.endswith(".")
    assert metric.source
    assert set(metric.series[0].labels) <= {"currency"}  # the metric itself is one number of a night
    module, _, name = metric.computed_by.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    assert all(metric_of_series(one.name) is metric for one in metric.series)


def test_the_page_shows_the_ten_as_they_are_defined() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")

    shown = page.partition("<!-- the ten: begin -->\n")[2].partition("\n<!-- the ten: end -->")[0]

    assert shown == definitions_as_markdown(), "run `make derived`"
