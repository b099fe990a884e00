"""Pictures of how far the log can be trusted: what wrong probabilities would do, and where it shows too little."""

from __future__ import annotations

from collections.abc import Sequence

from reports import formatting
from reports.charts import Scale, Series
from reports.pictures import Panel
from reports.plane import Axis, Mark, plane
from reports.records import Evaluation, Sensitivity, WeightHistogram

_REACH = 2.0
"""Worst cases are drawn down to so many times the estimate's distance from what it must clear; beyond, all is lost."""


def sensitivity_picture(evaluation: Evaluation) -> Panel | None:
    """The bound on the difference by how wrong the odds may be, with what it must clear; None where there is none."""
    found = evaluation.sensitivity
    if found is None or found.refused is not None or len(found.points) < 2:
        return None
    must = 0.0 - evaluation.decision.margin if evaluation.decision is not None else 0.0
    bounds = [p.worst_bound if found.passes else p.best_bound for p in found.points]
    height = max(abs(bounds[0] - must), 1e-9)
    drawn = [i for i, bound in enumerate(bounds) if abs(bound - must) <= _REACH * height]
    last = min(max(drawn, default=0) + 1, len(bounds) - 1)
    factors = tuple(p.factor for p in found.points[: last + 1])
    shown = tuple(bounds[: last + 1])
    low, high = must - _REACH * height, must + _REACH * height
    at = found.turns_at
    marks = [Mark(at, must, sensitivity_words(found))] if at is not None and at <= factors[-1] else []
    chart = plane(
        Axis(Scale(1.0, factors[-1]), "odds wrong by a factor of", formatting.number),
        Axis(Scale(low, high), "bound on the difference"),
        f"Bound on the difference by factor on the odds: {sensitivity_words(found)}",
        lines=[
            Series("must clear", (1.0, factors[-1]), (must, must), "reference"),
            Series("worst case" if found.passes else "best case", factors, shown, "worst"),
        ],
        marks=marks,
    )
    return Panel("Bound if probabilities are wrong", chart, note="reward units, by factor on the odds")


def sensitivity_words(found: Sensitivity) -> str:
    """What it takes to turn the verdict on the value, in one sentence."""
    if found.refused is not None:
        return f"Not measured: {found.refused}."
    if found.turns_at is None:
        most = formatting.number(found.largest_factor)
        holds = "still clears the margin" if found.passes else "still does not clear the margin"
        return f"The value {holds} with the odds of every logged action wrong by a factor of {most}."
    factor = formatting.apart(found.turns_at, 1.0)
    if found.passes:
        return f"The value clears the margin as long as no odds are wrong by more than a factor of {factor}."
    return f"Odds wrong by a factor of {factor}, all in the candidate's favor, could hide that it clears the margin."


def weight_picture(histogram: WeightHistogram) -> Panel:
    """Share of episodes and of the whole weight by size of the weight, as outlines of a histogram on a log scale."""
    edges, unit = histogram.log10_edges, histogram.unit
    tallest = max(*histogram.shares, *histogram.weight_shares)
    lines = [
        Series(f"{unit}s", *_outline(edges, histogram.shares), "blind"),
        Series("weight", *_outline(edges, histogram.weight_shares), "worst"),
    ]
    zero = f"; {formatting.share(histogram.zero_share)} of the {unit}s weigh nothing" if histogram.zero_share else ""
    chart = plane(
        Axis(
            Scale(edges[0], edges[-1]), f"weight of an {unit}" if unit == "episode" else f"weight of a {unit}", _power
        ),
        Axis(Scale(0.0, 1.04 * tallest), "share", formatting.share),
        f"Share of {unit}s and of their weight by size of the weight{zero}",
        lines=lines,
        height=150,
    )
    return Panel("Where the weight lies", chart, note=f"shares by size of the weight{zero}")


def _outline(edges: Sequence[float], shares: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Corners of the bars' upper rim."""
    xs = [x for edge in edges for x in (edge, edge)]
    return tuple(xs), (0.0, *(y for share in shares for y in (share, share)), 0.0)


def _power(log10: float) -> str:
    return formatting.number(10.0**log10, 2)
