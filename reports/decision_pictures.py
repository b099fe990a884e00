"""The pictures of the decision: what each share of the traffic would risk."""

from __future__ import annotations

from reports import formatting
from reports.certified import CertifiedCurve
from reports.charts import Scale, Series
from reports.page_script import plot_data
from reports.pictures import Panel
from reports.plane import Axis, Mark, plane


def certified_picture(curve: CertifiedCurve) -> Panel:
    """Worst-case loss of a night by the share of traffic, the budget as a line, and the share that was certified."""
    worst = [*curve.harms, 1.25 * curve.budget]
    top, blind = max(worst) or 1.0, max(curve.blind_harms, default=0.0)
    lines = [
        Series("budget of a night", (0.0, 1.0), (curve.budget, curve.budget), "reference"),
        Series("worst case", curve.shares, curve.harms, "worst"),
    ]
    if curve.blind_harms:
        lines.insert(0, Series("if nothing were known", curve.shares, curve.blind_harms, "blind"))
    at, risked = curve.certified_share, curve.certified_share * curve.harms[-1]
    said = f"{formatting.share(at)} certified, at most {formatting.number(risked)} lost in a night"
    label = f"Worst-case loss of a night by share of traffic: {said}; the budget is {formatting.number(curve.budget)}"
    chart = plane(
        Axis(Scale(0.0, 1.0), "share of traffic", formatting.share),
        Axis(Scale(-0.02 * top, 1.04 * top), "loss of a night"),
        label,
        lines=lines,
        marks=[Mark(at, risked, said)],
    )
    dot = Series("certified", (at,), (risked,), "dot")
    data = plot_data(lines, "share of traffic", dots=[dot], y_range=(0.0, 1.04 * top))
    note = "reward units, by share of traffic"
    if not any(curve.harms):
        note += "; no loss at this confidence"
    if blind > top:  # the axis is the curve's, so the line leaves it
        note += f"; if nothing were known, up to {formatting.number(blind, 3)} at all traffic"
    return Panel("Worst-case loss of one night", chart, note=note, data=data)
