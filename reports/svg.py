"""Pieces of inline SVG: horizontal places in percent of the width, vertical ones in pixels, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape


def picture(parts: Iterable[str], height: float, label: str, kind: str, *, hidden: bool = False) -> Markup:
    """A picture of a whole width and `height` pixels; `label` is what a screen reader says of it."""
    said = 'aria-hidden="true"' if hidden else f'role="img" aria-label="{escape(label)}"'
    title = "" if hidden else f"<title>{escape(label)}</title>"
    return Markup(f'<svg class="chart {kind}" width="100%" height="{height:g}" {said}>{title}{"".join(parts)}</svg>')


def tag(name: str, **attributes: object) -> str:
    """An empty element with escaped attributes; a trailing underscore of a name is dropped."""
    written = " ".join(f'{key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name} {written}/>"


def text(percent: float, y: float, shown: str, align: str, *, dx: float = 0, title: str = "") -> str:
    """Text at a place in percent; `title` is what pointing at it shows, where that is more."""
    hover = f"<title>{escape(title)}</title>" if title and title != shown else ""
    shift = f' dx="{dx:g}"' if dx else ""
    return f'<text x="{percent:.2f}%" y="{y:.1f}"{shift} text-anchor="{align}">{hover}{escape(shown)}</text>'


def vertical(percent: float, top: float, bottom: float, kind: str) -> str:
    """A line at a place in percent."""
    return tag("line", class_=kind, x1=f"{percent:.2f}%", x2=f"{percent:.2f}%", y1=top, y2=bottom)


def horizontal(left: float, right: float, y: float, kind: str) -> str:
    """A line between two places in percent."""
    return tag("line", class_=kind, x1=f"{left:.2f}%", x2=f"{right:.2f}%", y1=f"{y:.1f}", y2=f"{y:.1f}")


def shape(percent: float, y: float, path: str, kind: str) -> str:
    """A shape in pixels around a place in percent: a nested picture without a view box."""
    return f'<svg x="{percent:.2f}%" y="{y:g}" overflow="visible"><path class="{kind}" d="{path}"/></svg>'


def anchor(percent: float) -> str:
    """How a label at a place in percent is aligned so that it stays inside."""
    return "start" if percent < 6 else "end" if percent > 94 else "middle"


def titled(said: str) -> str:
    """What pointing at the surrounding group shows."""
    return f"<title>{escape(said)}</title>"
