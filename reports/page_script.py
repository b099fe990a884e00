"""The one script of the report, and the content security policy that lets it run and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from markupsafe import Markup

from reports.charts import Series
from reports.formatting import visible

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_POINTS = 2_000


@cache
def page_script() -> Markup:
    """uPlot with its license, and what the report does with it: the same bytes in every report."""
    license_text = (_TEMPLATES / "vendor" / "uPlot.LICENSE").read_text(encoding="utf-8")
    library = (_TEMPLATES / "vendor" / "uPlot.iife.min.js").read_text(encoding="utf-8")
    own = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    text = f"/*! uPlot\n{license_text}*/\n{library}\n{own}"
    # The report drops blank lines and what trails a line: the hash is of what remains.
    kept = "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
    if "</script" in kept.lower():
        raise ValueError("The report's script holds '</script', which would end it early; write it as '<\\/script'.")
    return Markup(kept)  # our own files, no text of a log


def content_security_policy() -> str:
    """Nothing is fetched, and only a script with the hash of ours runs."""
    digest = base64.b64encode(hashlib.sha256(page_script().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def plot_data(
    series: Sequence[Series],
    x_name: str,
    *,
    dots: Sequence[Series] = (),
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines as JSON for the script: all places in order, and each line's height there, null where it has none.

    "" where no line has two points: there is nothing to point at.

    Args:
        series: lines; points that are not finite are left out.
        x_name: what stands before the place that is pointed at.
        dots: points that are drawn without a line.
        y_range: lowest and highest of the axis; None lets the script choose.
    """
    lines = [
        (s, {x: y for x, y in zip(s.xs, s.ys, strict=True) if math.isfinite(x) and math.isfinite(y)}) for s in series
    ]
    lines = [(s, points) for s, points in lines if len(points) >= 2]
    if not lines:
        return ""
    n_lines = len(lines)
    lines += [(s, _points(s)) for s in dots]
    places = sorted({x for _, points in lines for x in points})
    every = max(1, math.ceil(len(places) / _MOST_POINTS))
    places = places[::every]
    found = {
        "x": [_short(x) for x in places],
        "x_name": visible(x_name),
        "series": [
            {"name": visible(s.name), "kind": s.kind, "y": [_short(points[x]) if x in points else None for x in places]}
            | ({"dots": True} if i >= n_lines else {})
            for i, (s, points) in enumerate(lines)
        ],
    }
    return json.dumps(found | ({"y_range": [_short(y) for y in y_range]} if y_range else {}), separators=(",", ":"))


def _points(line: Series) -> dict[float, float]:
    pairs = zip(line.xs, line.ys, strict=True)
    return {x: y for x, y in pairs if math.isfinite(x) and math.isfinite(y)}


def _short(value: float) -> float:
    """Six digits: more cannot be seen."""
    return float(f"{value:.6g}")
