"""Charts of drift as inline SVG: two distributions over each other, and nights along a calendar."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from reports import svg
from reports.charts import Scale
from reports.formatting import number, share

_HEIGHT = 132
_FIRST_NUMBER = re.compile(r"-?[0-9.]+(?:e[+-]?[0-9]+)?|-?inf")
_LONGEST_EDGE = 5
"""Letters of an edge; with longer ones there is room for every second."""
_LEFT = 40
"""Pixels for the shares at the left."""


def steps_over_each_other(
    bins: Sequence[str], reference: Sequence[float], live: Sequence[float], aside: Sequence[tuple[str, float, float]],
    label: str,
) -> Markup:  # fmt: skip
    """Shares of consecutive intervals: the reference as filled bars, live as a line of steps over it.

    Args:
        bins: (K,) intervals in order, each but the first with its lower edge as its first number, such as "[0.1, 0.2)".
        reference, live: (K,) shares.
        aside: slots without a place on the axis, such as missing values: name and the two shares; drawn at the right.
        label: what a screen reader says.
    """
    n_places = len(bins) + (len(aside) + 0.5 if aside else 0)
    top = max([*reference, *live, *(max(pair[1:]) for pair in aside), 1e-9]) * 1.06
    slots = [(float(i), before, now) for i, (before, now) in enumerate(zip(reference, live, strict=True))]
    apart = [(len(bins) + 0.5 + i, before, now) for i, (_, before, now) in enumerate(aside)]

    def height(value: float) -> float:
        return _HEIGHT * (1 - value / top)

    ticks = Scale(0.0, top).ticks(3)
    drawn = [svg.horizontal(0, 100, height(tick), "grid") for tick in ticks]
    for place, before, _ in (*slots, *apart):
        left, wide = 100 * (place + 0.04) / n_places, 100 * 0.92 / n_places
        box = {"x": f"{left:.2f}%", "width": f"{wide:.2f}%", "y": f"{height(before):.1f}"}
        drawn.append(svg.tag("rect", class_="window-reference", height=f"{_HEIGHT - height(before):.1f}", **box))
    inner = f'<svg viewBox="0 0 1000 {_HEIGHT}" preserveAspectRatio="none" width="100%" height="{_HEIGHT}">'
    drawn.append(inner)
    for group in (slots, *([slot] for slot in apart)):
        drawn += _steps(group, n_places, height)
    drawn.append("</svg>")
    drawn += _edges(bins, n_places)
    for (name, before, now), (place, *_) in zip(aside, apart, strict=True):
        middle = 100 * (place + 0.5) / n_places
        said = f"{name}: {share(before)} in the reference, {share(now)} live"
        drawn.append(svg.text(middle, _HEIGHT + 16, name, "middle", title=said))
    values = "".join(svg.text(100, height(tick) + 4, share(tick), "end", dx=-6) for tick in ticks)
    axis = f'<svg class="chart values" width="{_LEFT}" height="{_HEIGHT + 22}" aria-hidden="true">{values}</svg>'
    return Markup(axis) + svg.picture(drawn, _HEIGHT + 22, label, "over")


def _steps(slots: Sequence[tuple[float, float, float]], n_places: float, height: Callable[[float], float]) -> list[str]:
    first, last = slots[0][0], slots[-1][0] + 1
    points = [(first, 0.0), *((x, now) for place, _, now in slots for x in (place, place + 1)), (last, 0.0)]
    path = " ".join(f"{1000 * x / n_places:.1f},{height(y):.1f}" for x, y in points)
    return [
        svg.tag("polygon", class_="over-ground", points=path),
        svg.tag("polyline", class_="over-live", points=path),
    ]


def _edges(bins: Sequence[str], n_places: float) -> list[str]:
    """The lower edge of each interval under it; every second one on a narrow screen, or where they are long."""
    found = [(i, _FIRST_NUMBER.search(name)) for i, name in enumerate(bins) if i]
    edges = {i: float(match[0]) for i, match in found if match}
    texts = {i: number(edge, 2) for i, edge in edges.items()}
    if len(set(texts.values())) < len(texts):
        texts = {i: number(edge, 4) for i, edge in edges.items()}
    long = max(map(len, texts.values()), default=0) > _LONGEST_EDGE
    drawn = []
    for i, shown in texts.items():
        text = svg.text(100 * i / n_places, _HEIGHT + 16, shown, "middle")
        if i % 2 or not long:
            drawn.append(text if i % 2 else f'<g class="second">{text}</g>')
    return drawn


NightKind = Literal["drifted", "stable", "not judged", "held"]


@dataclass(frozen=True)
class CalendarNight:
    """A night of the timeline.

    Attributes:
        day: days since the first.
        times: the furthest column's PSI over what it is allowed; None where nothing was judged.
        kind: whether drift was found, was not, could not be judged, or the night waits for a person.
        trained: whether it asked for a training.
        said: what pointing at it shows.
    """

    day: int
    times: float | None
    kind: NightKind
    trained: bool
    said: str


@dataclass(frozen=True)
class Reign:
    """A champion's nights: days `first` to `last`, and its name."""

    first: int
    last: int
    name: str


_MOST_TIMES = 3.0
_BARS, _LANE = 74, 24


def nights_along_calendar(
    nights: Sequence[CalendarNight], reigns: Sequence[Reign], dates: Sequence[tuple[int, str]], label: str
) -> Markup:
    """A bar for each night's distance from the reference, a line at what is allowed; below, trainings and champions.

    Args:
        nights: in order; days without one stay empty.
        reigns: in order.
        dates: days that get a date at the axis.
        label: what a screen reader says.
    """
    n_days = max(8, nights[-1].day + 1)  # one or two nights must not be as wide as the page

    def left(day: float) -> float:
        return 100 * day / n_days

    allowed = _BARS * (1 - 1 / _MOST_TIMES)
    drawn = [svg.horizontal(0, 100, _BARS + 0.5, "baseline-rule")]
    for night in nights:
        drawn.append(f"<g>{svg.titled(night.said)}")
        box = {"x": f"{left(night.day + 0.12):.2f}%", "width": f"{left(0.76):.2f}%"}
        if night.times is None:
            drawn.append(svg.tag("rect", class_="unjudged", y=_BARS - 9, height=9, **box))
        else:
            tall = max(1.5, _BARS * min(night.times, _MOST_TIMES) / _MOST_TIMES)
            kind = "bar alarmed" if night.kind in ("drifted", "held") else "bar"
            drawn.append(svg.tag("rect", class_=kind, y=f"{_BARS - tall:.1f}", height=f"{tall:.1f}", **box))
            if night.times > _MOST_TIMES:
                drawn.append(svg.shape(left(night.day + 0.5), 0, "M-5,1 l5,-6 l5,6 z", kind))
        if night.trained:
            drawn.append(svg.shape(left(night.day + 0.5), _BARS + 13, "M0,-6 l6,11 h-12 z", "trained"))
        elif night.kind == "held":
            drawn.append(svg.shape(left(night.day + 0.5), _BARS + 13, "M0,-6 l6,6 l-6,6 l-6,-6 z", "held"))
        drawn.append("</g>")
    drawn.append(svg.horizontal(0, 100, allowed, "reference"))
    band = _BARS + _LANE
    for i, reign in enumerate(reigns):
        wide = left(reign.last + 1 - reign.first)
        box = {"x": f"{left(reign.first):.2f}%", "width": f"{wide:.2f}%"}
        drawn.append(f'<svg {_attributes(box)} y="{band}" height="20" overflow="hidden">{svg.titled(reign.name)}')
        drawn.append(svg.tag("rect", class_=f"reign-{i % 2}", x=0, y=0, width="100%", height=20))
        drawn.append(f"{svg.text(0, 14.5, reign.name, 'start', dx=6)}</svg>")
    for day, date in dates:
        place = left(day + 0.5)
        drawn.append(svg.text(place, band + 36, date, svg.anchor(place)))
    return svg.picture(drawn, band + 42, label, "calendar")


def _attributes(values: dict[str, str]) -> str:
    return " ".join(f'{name}="{value}"' for name, value in values.items())
