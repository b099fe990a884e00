"""Small inline SVG charts, without scripts: they stretch with their column while text and strokes keep their size.

Horizontal places are percentages of the chart's width and vertical ones are pixels, so the same chart is legible on a
phone, on a screen and on paper. Colors are CSS classes of the page. Every label is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reports import svg
from reports.formatting import number, share

TRACK_HEIGHT = 30
_INSET = 2.5  # percent left free at both ends, so that a mark at the edge is not cut
_MOST_POINTS = 400


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`; what lies beyond is drawn at the edge, with an arrow."""

    low: float
    high: float

    def percent(self, value: float) -> float:
        """The value's place in percent of the width, held within the chart."""
        inside = min(max(value, self.low), self.high)
        return _INSET + (100 - 2 * _INSET) * (inside - self.low) / (self.high - self.low)

    def ticks(self, n: int = 5) -> tuple[float, ...]:
        """About `n` round values within the axis, ascending."""
        rough = (self.high - self.low) / max(1, n)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1))


def scale_over(values: Iterable[float], others: Iterable[float] = ()) -> Scale:
    """An axis that holds all `values`, and `others` up to one more width on each side: an outlier must not flatten
    what matters. Without a finite value it is [0, 1]."""
    core = [v for v in values if math.isfinite(v)]
    more = [v for v in others if math.isfinite(v)]
    if not core and not more:
        return Scale(0.0, 1.0)
    core = core or more
    low, high = min(core), max(core)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        reach = 0.1 * abs(low) or 1.0
        low, high = low - reach, high + reach
    width = high - low
    low = max(low - width, min([low, *more]))
    high = min(high + width, max([high, *more]))
    padding = 0.04 * (high - low)
    return Scale(low - padding, high + padding)


def interval_mark(
    scale: Scale,
    value: float,
    low: float,
    high: float,
    *,
    role: str,
    label: str,
    reference: float | None = None,
    good_above: float | None = None,
    bound: float | None = None,
    emphasis: bool = True,
) -> Markup:
    """A value with its interval on one line of a forest plot.

    Args:
        scale: the axis that all lines share.
        role: "log", "candidate", "baseline", "version_zero" or "neutral": color and shape of the mark.
        label: what a screen reader says.
        reference: where a line is drawn, such as zero.
        good_above: from where on the ground is tinted as passing.
        bound: a one-sided bound, drawn as a bracket.
        emphasis: False draws a number that is shown only in a quieter way.
    """
    middle = TRACK_HEIGHT / 2
    parts = [_grid(scale)]
    if good_above is not None:
        place = scale.percent(good_above)
        parts.insert(
            0, svg.tag("rect", class_="good", x=f"{place:.2f}%", y=0, width=f"{100 - place:.2f}%", height="100%")
        )
    if reference is not None:
        parts.append(svg.vertical(scale.percent(reference), 0, TRACK_HEIGHT, "reference"))
    left, right = scale.percent(low), scale.percent(high)
    parts.append(svg.horizontal(left, right, middle, "whisker"))
    for end, place, beyond, direction in ((low, left, low < scale.low, -1), (high, right, high > scale.high, 1)):
        if beyond:
            parts.append(svg.shape(place, middle, f"M{7 * direction},0 l{-7 * direction},-4.5 v9 z", "arrow"))
        elif end != value:
            parts.append(svg.vertical(place, middle - 4, middle + 4, "whisker"))
    if bound is not None and scale.low <= bound <= scale.high:
        parts.append(svg.shape(scale.percent(bound), middle, "M5,-10 h-5 v20 h5", "bound"))
    if scale.low <= value <= scale.high:
        parts.append(svg.shape(scale.percent(value), middle, _MARKS.get(role, _MARKS["neutral"]), "mark"))
    quiet = "" if emphasis else " quiet"
    return svg.picture(parts, TRACK_HEIGHT, label, f"track role-{role if role in _MARKS else 'neutral'}{quiet}")


def empty_track(scale: Scale, label: str, reference: float | None = None) -> Markup:
    """The line of a number that was refused: the grid alone."""
    parts = [_grid(scale)]
    if reference is not None:
        parts.append(svg.vertical(scale.percent(reference), 0, TRACK_HEIGHT, "reference"))
    return svg.picture(parts, TRACK_HEIGHT, label, "track")


def axis(scale: Scale, label: str = "") -> Markup:
    """The ticks and values under a forest plot."""
    parts = [svg.horizontal(0, 100, 0.5, "baseline-rule")]
    for tick in scale.ticks():
        place = scale.percent(tick)
        parts.append(svg.vertical(place, 0, 5, "baseline-rule"))
        parts.append(svg.text(place, 18, number(tick), svg.anchor(place)))
    return svg.picture(parts, 24, label or "axis", "axis", hidden=True)


def ratio_bar(ratio: float, *, alarmed: bool, label: str, most: float = 3.0) -> Markup:
    """A bar of `ratio`, with a line where it reaches 1; from `most` on it ends in an arrow."""
    end = 100 * min(max(ratio, 0.0), most) / most - (2 if ratio > most else 0)
    kind = "bar alarmed" if alarmed else "bar"
    parts = [svg.tag("rect", class_=kind, x=0, y=9, width=f"{max(end, 0.3):.2f}%", height=12, rx=2)]
    if ratio > most:
        parts.append(svg.shape(end, 15, "M0,-10 l9,10 l-9,10 z", kind))
    parts.append(svg.vertical(100 / most, 0, TRACK_HEIGHT, "reference"))
    return svg.picture(parts, TRACK_HEIGHT, label, "track")


def part_bar(part: float, label: str) -> Markup:
    """A bar of `part` in [0, 1] of the whole width."""
    width = f"{max(100 * min(max(part, 0.0), 1.0), 0.3):.2f}%"
    return svg.picture(
        [svg.tag("rect", class_="bar", x=0, y=9, width=width, height=12, rx=2)], TRACK_HEIGHT, label, "track"
    )


def share_bars(shares: Sequence[tuple[str, float]], label: str) -> Markup:
    """Horizontal bars of shares in [0, 1], one per (role, share), each with its value."""
    parts = []
    for i, (role, value) in enumerate(shares):
        top = 3 + 18 * i
        width = 82 * min(max(value, 0.0), 1.0)
        kind = f"bar role-{role if role in _MARKS else 'neutral'}"
        parts.append(svg.tag("rect", class_=kind, x=0, y=top, width=f"{max(width, 0.3):.2f}%", height=13, rx=2))
        parts.append(svg.text(width, top + 11, share(value), "start", dx=6))
    return svg.picture(parts, 4 + 18 * len(shares), label, "bars")


def paired_histogram(
    bins: Sequence[str], reference: Sequence[float], live: Sequence[float], label: str, *, most: int = 14
) -> Markup:
    """Shares of each bin in two windows, as pairs of bars; with more than `most` bins those that differ most, in
    the bins' order."""
    rows = list(range(min(len(bins), len(reference), len(live))))
    if len(rows) > most:
        rows = sorted(sorted(rows, key=lambda i: -abs(reference[i] - live[i]))[:most])
    largest = max([*(reference[i] for i in rows), *(live[i] for i in rows), 1e-9])
    parts: list[str] = []
    for place, i in enumerate(rows):
        top = 26 * place
        parts.append(svg.text(0, top + 15, shortened(bins[i], 20), "start", title=bins[i]))
        for kind, value, y in (("reference", reference[i], top + 2), ("live", live[i], top + 12)):
            width = f"{max(0.3, 34 * value / largest) if value > 0 else 0:.2f}%"
            parts.append(svg.tag("rect", class_=f"bar window-{kind}", x="39%", y=y, width=width, height=9, rx=1.5))
        widest = 39 + 34 * max(reference[i], live[i]) / largest
        parts.append(svg.text(widest, top + 15, f"{share(reference[i])} → {share(live[i])}", "start", dx=6))
    return svg.picture(parts, 26 * len(rows) + 2, label, "histogram")


@dataclass(frozen=True)
class Series:
    """One line of a chart; `kind` is its CSS class."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    kind: str = "line-1"


def line_chart(series: Sequence[Series], label: str, *, height: int = 150) -> Markup | None:
    """Lines over a shared axis, values at the left, first and last place below; None with fewer than two points.

    The axis holds the last three quarters of all lines that stay finite; what lies far beyond is drawn at its edge.
    """
    lines = [s for s in map(_finite, series) if len(s.xs) >= 2]
    if not lines:
        return None
    xs = [x for s in lines for x in s.xs]
    x_low, x_high = min(xs), max(xs)
    # A line that ran away must not flatten the others, nor the first updates the rest.
    whole = [s for s in series if all(map(math.isfinite, s.ys))] or lines
    core = [y for s in whole for y in s.ys[len(s.ys) // 4 :] if math.isfinite(y)]
    y_scale = scale_over(core, [y for s in lines for y in s.ys])
    span = (x_high - x_low) or 1.0

    def place(y: float) -> float:
        inside = min(max(y, y_scale.low), y_scale.high)
        return height * (1 - (inside - y_scale.low) / (y_scale.high - y_scale.low))

    ticks = y_scale.ticks(4)
    rules = [svg.horizontal(0, 100, place(tick), "grid") for tick in ticks]
    drawn = []
    for line in lines:
        points = " ".join(
            f"{1000 * (x - x_low) / span:.1f},{place(y):.1f}" for x, y in zip(line.xs, line.ys, strict=True)
        )
        drawn.append(svg.tag("polyline", class_=line.kind, points=points))
    inner = f'<svg viewBox="0 0 1000 {height}" preserveAspectRatio="none" width="100%" height="{height}">'
    parts = [*rules, inner, *drawn, "</svg>"]
    parts += [svg.text(0, height + 15, number(x_low), "start"), svg.text(100, height + 15, number(x_high), "end")]
    values = "".join(svg.text(100, place(tick) + 4, number(tick, 3), "end") for tick in ticks)
    left = f'<svg class="chart values" width="58" height="{height + 20}" aria-hidden="true">{values}</svg>'
    return Markup(left) + svg.picture(parts, height + 20, label, "lines")


def shortened(text: str, most: int) -> str:
    """The text with its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


ROUND = "M0,-5.5 a5.5,5.5 0 1 1 0,11 a5.5,5.5 0 1 1 0,-11 z"

_MARKS = {
    "log": "M-4.5,-4.5 h9 v9 h-9 z",
    "candidate": ROUND,
    "baseline": "M0,-6.5 l6.5,6.5 l-6.5,6.5 l-6.5,-6.5 z",
    "version_zero": "M0,-6 l6.5,11 h-13 z",
    "neutral": "M0,-4.5 a4.5,4.5 0 1 1 0,9 a4.5,4.5 0 1 1 0,-9 z",
}


def _finite(series: Series) -> Series:
    pairs = [(x, y) for x, y in zip(series.xs, series.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(pairs) > _MOST_POINTS:
        every = (len(pairs) - 1) / (_MOST_POINTS - 1)
        pairs = [pairs[round(i * every)] for i in range(_MOST_POINTS)]
    return Series(series.name, [x for x, _ in pairs], [y for _, y in pairs], series.kind)


def _grid(scale: Scale) -> str:
    return "".join(svg.vertical(scale.percent(tick), 0, TRACK_HEIGHT, "grid") for tick in scale.ticks())
