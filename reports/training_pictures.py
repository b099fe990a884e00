"""The curves of a training: a picture for each metric, with a line for each learner."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offline_dqn.metrics import METRICS, Metric, split_name
from reports import charts
from reports.formatting import number
from reports.glossary import UNSEEN
from reports.page_script import plot_data
from reports.pictures import Panel

_N_KINDS = 8
"""Colors and dashes of lines that the page knows; more learners share them."""


@dataclass(frozen=True)
class TrainingPicture:
    """Small multiples over the updates, and what their lines mean: (CSS class, learner)."""

    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]


def training_picture(history: Sequence[Mapping[str, Any]]) -> TrainingPicture:
    """The measured metrics, in the order of the glossary.

    Args:
        history: metrics by update, each with its "step", named as the training loop names them.
    """
    names = list(dict.fromkeys(name for metrics in history for name in metrics))
    learners = [learner for learner in dict.fromkeys(split_name(name)[0] for name in names) if learner]
    kinds = {learner: f"line-{i % _N_KINDS + 1}" for i, learner in enumerate(learners)}
    panels = [
        _panel(metric, [_series(history, name, kinds) for name in measured])
        for metric in METRICS
        if metric.name not in UNSEEN and (measured := [n for n in names if split_name(n)[1] == metric.name])
    ]
    drawn = any(panel.chart is not None for panel in panels)
    return TrainingPicture(tuple(panels), tuple((kind, name) for name, kind in kinds.items()) if drawn else ())


def _panel(metric: Metric, series: Sequence[charts.Series]) -> Panel:
    return Panel(
        title=metric.title[0].upper() + metric.title[1:],
        term=metric.name,
        note=metric.unit,
        chart=charts.line_chart(series, f"{metric.title} over the updates: {_from_to(series)}"),
        instead=_at_once(series),
        data=plot_data(series, "update"),
    )


def _series(history: Sequence[Mapping[str, Any]], name: str, kinds: Mapping[str, str]) -> charts.Series:
    learner, _ = split_name(name)
    points = [(m["step"], m[name]) for m in history if m.get(name) is not None and m.get("step") is not None]
    kind = kinds.get(learner, "line-1")
    return charts.Series(learner or "all", [float(x) for x, _ in points], [float(y) for _, y in points], kind)


def _at_once(series: Iterable[charts.Series]) -> str:
    """What a panel says that has no curve: the one measurement of each learner, where there is one."""
    measured = [(s.name, s.xs[0], s.ys[0]) for s in series if len(s.ys) == 1 and math.isfinite(s.ys[0])]
    if not measured:
        return "not measured"
    updates = ", ".join(dict.fromkeys(number(x) for _, x, _ in measured))
    values = ", ".join(f"{name} = {number(y)}" for name, _, y in measured)
    return f"measured once, at update {updates}: {values}; lower train.log_every to see a curve"


def _from_to(series: Iterable[charts.Series]) -> str:
    return "; ".join(f"{s.name} from {number(s.ys[0])} to {number(s.ys[-1])}" for s in series if s.ys) or "not measured"
