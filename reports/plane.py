"""Charts with a number on each axis: lines and marks with intervals. Like `reports.charts`, they stretch with their
column while text and strokes keep their size, and need no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reports import svg
from reports.charts import ROUND, Scale, Series
from reports.formatting import number

_SMALL = "M0,-3.5 a3.5,3.5 0 1 1 0,7 a3.5,3.5 0 1 1 0,-7 z"
"""The mark of a point whose interval must be seen beside it."""
_BELOW = 34
"""Pixels under the plane for ticks and the name of the axis."""


@dataclass(frozen=True)
class Mark:
    """A point, with the interval of its height where there is one; `said` is what pointing at it shows."""

    x: float
    y: float
    said: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axis:
    """A scale, the name under or beside it, and how its ticks are written."""

    scale: Scale
    name: str
    written: Callable[[float], str] = number


def plane(
    x: Axis, y: Axis, label: str, *, lines: Sequence[Series] = (), marks: Sequence[Mark] = (), height: int = 210
) -> Markup:
    """Lines and marks over two axes; what lies beyond an axis is drawn at its edge, and a line is cut there.

    Args:
        x, y: axes; the name of `y` stands above the values.
        label: what a screen reader says.
        lines: with their CSS classes; points that are not finite are left out.
        marks: drawn over the lines.
        height: of the plane itself, in pixels.
    """

    def down(value: float) -> float:
        inside = min(max(value, y.scale.low), y.scale.high)
        return height * (1 - (inside - y.scale.low) / (y.scale.high - y.scale.low))

    ticks = y.scale.ticks(4)
    parts = [svg.horizontal(0, 100, down(tick), "grid") for tick in ticks]
    parts += [svg.horizontal(0, 100, height, "baseline-rule")]
    parts.append(f'<svg viewBox="0 0 1000 {height}" preserveAspectRatio="none" width="100%" height="{height}">')
    for line in lines:
        points = " ".join(
            f"{10 * x.scale.percent(a):.1f},{down(b):.1f}"
            for a, b in _cut(line, x.scale, y.scale)
            if math.isfinite(a) and math.isfinite(b)
        )
        parts.append(svg.tag("polyline", class_=line.kind, points=points))
    parts.append("</svg>")
    for mark in marks:
        at = x.scale.percent(mark.x)
        parts.append("<g>" + svg.titled(mark.said))
        spanned = mark.low is not None and mark.high is not None
        if mark.low is not None and mark.high is not None:
            parts.append(svg.vertical(at, down(mark.high), down(mark.low), "whisker"))
        parts.append(svg.shape(at, down(mark.y), _SMALL if spanned else ROUND, "mark") + "</g>")
    for tick in x.scale.ticks():
        at = x.scale.percent(tick)
        parts.append(svg.vertical(at, height, height + 5, "baseline-rule"))
        parts.append(svg.text(at, height + 18, x.written(tick), svg.anchor(at)))
    parts.append(svg.text(100, height + _BELOW, x.name, "end"))
    values = "".join(svg.text(100, down(tick) + 4, y.written(tick), "end") for tick in ticks)
    left = f'<svg class="chart values" width="62" height="{height + _BELOW + 4}" aria-hidden="true">{values}</svg>'
    return Markup(left) + svg.picture(parts, height + _BELOW + 4, label, "plane lines")


def _cut(line: Series, across: Scale, up: Scale) -> list[tuple[float, float]]:
    """The points of a line, with one where it leaves through the top or bottom: drawn flat there it would lie."""
    points = list(zip(line.xs, line.ys, strict=True))
    found: list[tuple[float, float]] = []
    for i, (a, b) in enumerate(points):
        if not across.low <= a <= across.high:
            continue
        if i and math.isfinite(b) and math.isfinite(points[i - 1][1]):
            before_a, before_b = points[i - 1]
            edges = [edge for edge in (up.low, up.high) if (before_b - edge) * (b - edge) < 0]
            edges.sort(key=lambda edge: abs(edge - before_b))
            found += [(before_a + (a - before_a) * (edge - before_b) / (b - before_b), edge) for edge in edges]
        if up.low <= b <= up.high:
            found.append((a, b))
    return found
