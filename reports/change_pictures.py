"""The pictures of what a candidate changes: effects of features, and own Q-values against the log."""

from __future__ import annotations

from collections.abc import Mapping

from reports import charts, formatting
from reports.change_records import Changes, QCalibration, RegionChange
from reports.charts import Series
from reports.pictures import Panel, Picture, Row
from reports.plane import Axis, Mark, plane

_FEATURES_SHOWN = 15
_MOVED = 4


def feature_picture(changes: Changes) -> Picture:
    """A bar for each feature, the strongest first; a bar ends where the strongest feature's does."""
    effects = changes.features
    amounts = [e.probability_moved if e.gap_lost is None else e.gap_lost for e in effects]
    largest = max([*amounts, 0.0])
    rows = []
    for effect, amount in list(zip(effects, amounts, strict=True))[:_FEATURES_SHOWN]:
        said = formatting.share(amount) if effect.gap_lost is None else formatting.number(amount, 3)
        turned = f"first choice turns on {formatting.share(effect.decisions_turned)} of the steps"
        part = max(amount, 0.0) / largest if largest > 0 else 0.0
        mark = charts.part_bar(part, f"{effect.feature}: {said}, {turned}")
        rows.append(Row(effect.feature, turned, said, mark))
    return Picture(tuple(rows))


def reliability_picture(calibration: QCalibration) -> Panel:
    """Own value across, corrected value up, with the line on which they are the same."""
    bins = [b for b in calibration.bins if b.evaluated is not None]
    ends = [x for b in bins for x in (b.evaluated, b.low, b.high, b.own) if x is not None]
    across, up = charts.scale_over([b.own for b in bins]), charts.scale_over(ends)
    marks = []
    for b in bins:
        assert b.evaluated is not None
        span = "" if b.low is None else f" [{formatting.number(b.low)}, {formatting.number(b.high)}]"
        said = f"own {formatting.number(b.own)}, corrected {formatting.number(b.evaluated)}{span}, {b.n_steps:,} steps"
        marks.append(Mark(b.own, b.evaluated, said, b.low, b.high))
    same = (across.low, across.high)
    chart = plane(
        Axis(across, "own Q-value of the best action"),
        Axis(up, "corrected by the log"),
        f"Own Q-values against the log in {len(bins)} bins: {'; '.join(mark.said for mark in marks)}",
        lines=[Series("own = corrected", same, same, "reference")],
        marks=marks,
    )
    note = f"reward units, with {formatting.share(calibration.level)} intervals"
    return Panel("Corrected by the log, over own Q-value", chart, note=note)


def first_choice(probs: Mapping[str, float]) -> tuple[str, float]:
    """The most probable action, and its probability."""
    return max(probs.items(), key=lambda pair: pair[1])


def moved_actions(region: RegionChange) -> list[tuple[str, float]]:
    """Actions of a region with the candidate's share, those whose share moves most first, at most four."""
    shares = region.candidate_shares
    ranked = sorted(shares, key=lambda name: -abs(shares[name] - region.other_shares.get(name, 0.0)))
    return [(name, shares[name]) for name in ranked[:_MOVED]]


def observed(value: float | str | bool | None) -> str:
    """A feature's value as a reader wants it."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return formatting.number(value) if isinstance(value, float | int) else charts.shortened(value, 40)
