"""The picture that a drill ends with: true return per day of what was served, beside what others would have earned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pipelines.loop_story import Event

_WIDTH, _LEFT, _RIGHT = 980, 64, 24
_TOP, _PLOT, _STRIP = 88, 300, 26
_COLORS = {"served": "#1b5fc1", "rules": "#6b7280", "best": "#c2570c", "exploring": "#c2570c"}
_RELEASES = ("#9ca3af", "#1b5fc1", "#0f8a6d", "#7c3aed", "#be185d", "#a16207", "#0e7490", "#4d7c0f")
_MARKS = {
    "world": ("traffic shift", "#111827"),
    "gate": ("gate passed", "#0f8a6d"),
    "promotion": ("promotion", "#0f8a6d"),
    "rollback": ("canary stopped", "#b91c1c"),
    "planted": ("bad release planted", "#b91c1c"),
    "switch": ("kill switch", "#7c3aed"),
    "crash": ("server killed", "#7c3aed"),
}


@dataclass(frozen=True)
class Curve:
    """Mean true return of a service-hour, by day; `key` is one of "served", "rules", "best", "exploring"."""

    key: str
    label: str
    values: Sequence[float]


def draw(curves: Sequence[Curve], releases: Sequence[Mapping[str, int]], events: Sequence[Event]) -> str:
    """A standalone SVG: one line each, a strip of who acted, and the events that mattered.

    Args:
        curves: of equal length, the days.
        releases: decisions by release ("0" are the rules), by day.
        events: those of kinds that are marked; gates that refused, and steps of canaries, are in the table only.
    """
    n_days = len(curves[0].values)
    low = min(min(curve.values) for curve in curves)
    high = max(max(curve.values) for curve in curves)
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    step = (_WIDTH - _LEFT - _RIGHT) / n_days

    def x(at: float) -> float:
        return _LEFT + (at - 1) * step

    def y(value: float) -> float:
        return _TOP + _PLOT * (high - value) / (high - low)

    parts = [f'<rect width="{_WIDTH}" height="{_height()}" fill="#ffffff"/>']
    parts += [_text(_LEFT, 22, "True return of a service-hour, mean by simulated day", size=15, weight="600")]
    parts += _legend(curves)
    for value in _round_values(low, high):
        parts.append(_line(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "#e5e7eb"))
        parts.append(_text(_LEFT - 8, y(value) + 4, f"{value:g}".replace("-", "−"), anchor="end"))
    parts += _event_marks(events, x)
    for curve in curves:
        points = " ".join(f"{x(day + 1.5):.1f},{y(v):.1f}" for day, v in enumerate(curve.values))
        dash = {"best": ' stroke-dasharray="7 4"', "exploring": ' stroke-dasharray="2 3"'}.get(curve.key, "")
        width = 3 if curve.key == "served" else 1.8
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{_COLORS[curve.key]}" stroke-width="{width}"{dash}/>'
        )
        if curve.key == "served":
            parts += [
                f'<circle cx="{x(day + 1.5):.1f}" cy="{y(v):.1f}" r="3.2" fill="{_COLORS["served"]}"/>'
                for day, v in enumerate(curve.values)
            ]
    parts += _strip(releases, x, step)
    said = "; ".join(f"{c.label}: {', '.join(f'{v:.1f}' for v in c.values)}" for c in curves)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_height()}" role="img" '
        f'font-family="system-ui, sans-serif"><title>True return per simulated day. {escape(said)}</title>'
        f"{''.join(parts)}</svg>"
    )


def page(svg: str, counts: Sequence[tuple[str, str]], events: Sequence[Event], notes: Sequence[str]) -> str:
    """The picture, the counts and every event as one HTML page that needs no network."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in counts)
    told = "".join(
        f"<tr><td>{_when(event.at)}</td><td>{escape(event.kind)}</td><td>{escape(event.text)}</td></tr>"
        for event in events
    )
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>make loop</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #111827 }}
svg {{ width: 100%; height: auto }} table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #e5e7eb; vertical-align: top }}
td {{ font-variant-numeric: tabular-nums }}
</style><h1>The loop, closed</h1>{svg}{said}<h2>Counts</h2><table>{rows}</table><h2>What happened</h2>
<table><tr><th>day</th><th>kind</th><th>what</th></tr>{told}</table></html>
"""


def _height() -> int:
    return _TOP + _PLOT + _STRIP + 72


def _legend(curves: Sequence[Curve]) -> list[str]:
    parts, at = [], float(_LEFT)
    for curve in curves:
        dash = {"best": ' stroke-dasharray="7 4"', "exploring": ' stroke-dasharray="2 3"'}.get(curve.key, "")
        color = _COLORS[curve.key]
        parts.append(f'<line x1="{at}" y1="40" x2="{at + 26}" y2="40" stroke="{color}" stroke-width="2.5"{dash}/>')
        parts.append(_text(at + 32, 44, curve.label))
        at += 32 + 6.4 * len(curve.label) + 22
    return parts


def _event_marks(events: Sequence[Event], x: object) -> list[str]:
    assert callable(x)
    parts, taken = [], [0.0, 0.0, 0.0]
    for event in events:
        if event.kind not in _MARKS or not _is_marked(event):
            continue
        label, color = _MARKS[event.kind]
        place = x(event.at)
        row = min(range(3), key=lambda r: (taken[r] > place, taken[r]))
        taken[row] = place + 6.2 * len(label) + 10
        top = 58 + 12 * row
        parts.append(_line(place, top + 2, place, _TOP + _PLOT, color, dash="1 3"))
        parts.append(_text(place + 3, top + 4, label, color=color, size=11))
    return parts


def _is_marked(event: Event) -> bool:
    if event.kind == "gate":
        return "gate passed" in event.text
    return not (event.kind == "switch" and "undone" in event.text)


def _strip(releases: Sequence[Mapping[str, int]], x: object, step: float) -> list[str]:
    """A bar for each day, divided by who decided."""
    assert callable(x)
    top, parts = _TOP + _PLOT + 34, []
    names = sorted({name for day in releases for name in day}, key=int)
    for day, served in enumerate(releases):
        total, left = sum(served.values()), x(day + 1) + 1
        for name in names:
            width = (step - 2) * served.get(name, 0) / total if total else 0.0
            if width:
                color = _RELEASES[int(name) % len(_RELEASES)]
                parts.append(f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{_STRIP}" fill="{color}"/>')
            left += width
        parts.append(_text(x(day + 1.5), top - 10, str(day + 1), anchor="middle"))
    parts.append(_text(_LEFT - 8, top - 10, "day", anchor="end"))
    parts.append(_text(_LEFT - 8, top + 17, "acting", anchor="end", size=11))
    at = float(_LEFT)
    for name in names:
        shown = "version 0 (rules)" if name == "0" else f"release {name}"
        color = _RELEASES[int(name) % len(_RELEASES)]
        parts.append(f'<rect x="{at}" y="{top + _STRIP + 12}" width="12" height="12" fill="{color}"/>')
        parts.append(_text(at + 17, top + _STRIP + 22, shown))
        at += 17 + 6.4 * len(shown) + 20
    return parts


def _round_values(low: float, high: float) -> list[float]:
    size = next(s for s in (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if (high - low) / s <= 8)
    first = int(low // size) + 1
    return [i * size for i in range(first, int(high // size) + 1)]


def _when(at: float) -> str:
    day, hour = int(at), round((at - int(at)) * 24)
    return f"{day}, {hour:02d}:00"


def _line(x1: float, y1: float, x2: float, y2: float, color: str, *, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dashed}/>'


def _text(
    x: float,
    y: float,
    shown: str,
    *,
    anchor: str = "start",
    color: str = "#374151",
    size: int = 12,
    weight: str = "400",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
        f'font-weight="{weight}">{escape(shown)}</text>'
    )
