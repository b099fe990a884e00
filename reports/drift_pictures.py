"""From a drift check to its pictures: columns against what they are allowed, distributions, nights, decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from markupsafe import Markup

from drift.binning import MISSING_LABEL, UNSEEN_LABEL
from drift.findings import has_drifted
from drift.records import ColumnDrift, DriftReport
from reports import charts
from reports.drift_charts import CalendarNight, NightKind, Reign, nights_along_calendar, steps_over_each_other
from reports.drift_words import ranked, times_allowed, times_words, unjudged
from reports.formatting import counted, number
from reports.heat import Heat, heat
from reports.night_checks import NightCheck
from reports.pictures import Panel, Picture, Refused, Row

_COLUMNS, _PANELS, _NIGHTS = 20, 6, 31
_LONGEST_NAME, _LONGEST_CAUSE = 60, 160
_NAMED = 5
_QUIET_ROWS = 10
"""Of a heatmap in which fewer columns than that ever moved."""
_ASIDE = {MISSING_LABEL: "missing", UNSEEN_LABEL: "unseen"}


def column_picture(report: DriftReport, most: int = _COLUMNS) -> Picture:
    """PSI of each column over what it is allowed, the worst first."""
    rows = []
    for column in ranked(report)[:most]:
        allowed = column.allowed(report.min_psi)
        text = f"{number(column.psi, 3)} of {number(allowed, 3)}"
        words = f"drifted{f' since {column.since}' if column.since else ''}" if column.drifted else "stable"
        times = times_allowed(column, report.min_psi)
        mark = charts.ratio_bar(times, alarmed=column.drifted, label=f"{column.name}: PSI {text} allowed, {words}")
        detail = f"{column.role}, {column.reason or words}"
        name = charts.shortened(column.name, _LONGEST_NAME)
        rows.append(Row(name, charts.shortened(detail, _LONGEST_CAUSE), text, mark, alarmed=column.drifted))
    refused = tuple(
        Refused(_listed(names), charts.shortened(cause, _LONGEST_CAUSE), "not measured")
        for cause, names in unjudged(report).items()
    )
    return Picture(tuple(rows), refused=refused)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(charts.shortened(name, _LONGEST_NAME) for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


@dataclass(frozen=True)
class DistributionPanel:
    """A column's two distributions, and its numbers: each a term of the glossary, its name and its value."""

    panel: Panel
    facts: tuple[tuple[str, str, str], ...]
    says: str


def distribution_panels(report: DriftReport, most: int = _PANELS) -> tuple[DistributionPanel, ...]:
    """Reference and live over each other, for the columns that moved most; those that did not only to fill two."""
    shown = [c for c in ranked(report) if c.bins]
    drifted = [c for c in shown if c.drifted]
    effects = {effect.column: effect.sentence for effect in report.effects}
    return tuple(
        DistributionPanel(_distribution(column), tuple(_facts(column, report)), effects.get(column.name, ""))
        for column in (drifted if len(drifted) > 1 else shown[:2])[:most]
    )


def _distribution(column: ColumnDrift) -> Panel:
    slots = [*zip(column.bins, column.reference_probs, column.live_probs, strict=True)]
    label = f"{column.name}: shares of {len(slots)} bins in the reference and the live window"
    inside = [slot for slot in slots if slot[0] not in _ASIDE]
    if column.kind == "numeric" and len(inside) > 2 and all(_is_interval(name) for name, *_ in inside):
        aside = [(_ASIDE[name], before, now) for name, before, now in slots if name in _ASIDE and (before or now)]
        names, reference, live = zip(*inside, strict=True)
        return Panel(column.name, steps_over_each_other(names, reference, live, aside, label))
    seen = [slot for slot in slots if slot[1] or slot[2]] or slots
    names, reference, live = zip(*seen, strict=True)
    note = f"{len(seen) - 14} further bins differ less" if len(seen) > 14 else ""
    return Panel(column.name, charts.paired_histogram(names, reference, live, label), note=note)


def _is_interval(name: str) -> bool:
    return name[:1] in "<>[("


def _facts(column: ColumnDrift, report: DriftReport) -> Iterator[tuple[str, str, str]]:
    allowed = column.allowed(report.min_psi)
    yield "psi", "PSI", f"{number(column.psi, 3)}, {number(allowed, 3)} allowed"
    yield "kl", "KL", number(column.kl, 3)
    yield "kl_reverse", "reverse", number(column.kl_reverse, 3)
    yield "js", "JS", number(column.js, 3)
    if column.wasserstein is not None:
        yield "wasserstein", "Wasserstein", number(column.wasserstein, 3)
    if column.since:
        yield "drift_since", "since", column.since


def heat_of(
    report: DriftReport, checks: Sequence[NightCheck] = (), *, columns: int = _COLUMNS, nights: int = _NIGHTS
) -> Heat | None:
    """The columns that were furthest from what they are allowed, on the newest nights; None where there is no night.

    Nights that the report does not compare any more, because its reference is newer, stand as their own check found
    them, against the reference of their time.
    """
    cells = {**_cells_of_checks(checks), **_nightly_cells(report)}
    if not cells:
        return None
    shown = sorted(cells)[-nights:]
    named = {name: None for night in reversed(shown) for name in cells[night].psi}
    drifted = {column.name for column in report.drifted_columns}

    def furthest(name: str) -> float:
        return max((_times(*cells[night].psi[name]) for night in shown if name in cells[night].psi), default=0.0)

    order = sorted(named, key=lambda name: (name not in drifted, -furthest(name)))
    n_beyond = sum(furthest(name) > 1 for name in order)
    order = order[: min(columns, max(n_beyond, _QUIET_ROWS))]
    pairs = [[cells[night].psi.get(name) for night in shown] for name in order]
    psi = [[pair[0] if pair else None for pair in row] for row in pairs]
    allowed = [[pair[1] if pair else 0.0 for pair in row] for row in pairs]
    return heat(order, shown, [cells[night].n_episodes for night in shown], psi, allowed, "allowed")


@dataclass(frozen=True)
class _NightCells:
    """A night of the heatmap: its episodes, and PSI and what is allowed by column."""

    n_episodes: int
    psi: dict[str, tuple[float, float]]


def _nightly_cells(report: DriftReport) -> dict[str, _NightCells]:
    found = report.nightly
    if found is None:
        return {}
    relative = found.relative or (1.0,) * len(found.nights)
    cells = {}
    for m, night in enumerate(found.nights):
        allowed = [max(relative[m] * (threshold or 0.0), report.min_psi) for threshold in found.threshold]
        row = zip(found.columns, found.psi, allowed, strict=True)
        cells[night] = _NightCells(
            found.n_episodes[m], {name: (value, bound) for name, psi, bound in row if (value := psi[m]) is not None}
        )
    return cells


def _cells_of_checks(checks: Sequence[NightCheck]) -> dict[str, _NightCells]:
    """Checks of one live night each; several nights together are no night of the calendar."""
    return {
        check.live_nights[-1]: _NightCells(
            check.report.live_episodes,
            {c.name: (c.psi or 0.0, c.allowed(check.report.min_psi) or 0.0) for c in ranked(check.report)},
        )
        for check in checks
        if check.report is not None and check.live_nights is not None and check.live_nights[0] == check.live_nights[-1]
    }


def _times(psi: float, allowed: float) -> float:
    return psi / allowed if allowed > 0 else psi


def timeline(checks: Sequence[NightCheck], changes: Mapping[str, str]) -> Markup | None:
    """Every night's check on the calendar, with what acted; None where there is no second one."""
    if len(checks) < 2:
        return None
    first = date.fromisoformat(checks[0].night)
    days = [(date.fromisoformat(check.night) - first).days for check in checks]
    nights = [
        _calendar_night(check, day, changes.get(check.night, "")) for check, day in zip(checks, days, strict=True)
    ]
    reigns: list[Reign] = []
    for check, day in zip(checks, days, strict=True):
        name = f"release {check.champion}" if check.champion else "the rules"
        if reigns and reigns[-1].name == name:
            reigns[-1] = Reign(reigns[-1].first, day, name)
        else:
            if reigns:
                reigns[-1] = Reign(reigns[-1].first, max(day - 1, reigns[-1].last), reigns[-1].name)
            reigns.append(Reign(day, day, name))
    ends = {days[0]: checks[0].night, days[-1]: checks[-1].night}
    trained = sum(check.decision.retrain for check in checks)
    drifted = sum(_kind(check) == "drifted" for check in checks)
    label = (
        f"Drift checks of {counted(len(checks), 'night')} from {checks[0].night} to {checks[-1].night}: drift in "
        f"{drifted}, training asked for in {trained}"
    )
    return nights_along_calendar(nights, reigns, sorted(ends.items()), label)


def _calendar_night(check: NightCheck, day: int, change: str) -> CalendarNight:
    return CalendarNight(day, furthest_of(check)[1], _kind(check), check.decision.retrain, night_words(check, change))


def night_words(check: NightCheck, change: str = "") -> str:
    """A night of the timeline in a sentence."""
    name, times = furthest_of(check)
    furthest = "" if times is None else f", furthest {name} at {times_words(times)} what is allowed"
    decided = "asked for a training" if check.decision.retrain else "kept the champion"
    return f"{check.night}: {decided} ({check.decision.cause}){furthest}{f'; {change}' if change else ''}"


def furthest_of(check: NightCheck) -> tuple[str, float | None]:
    """The column that was furthest from what it is allowed, and how many times that; None where none was judged."""
    columns = ranked(check.report) if check.report is not None else ()
    if check.report is None or not columns:
        return "", None
    worst = max(columns, key=lambda c: times_allowed(c, check.report.min_psi if check.report else 0.0))
    return worst.name, times_allowed(worst, check.report.min_psi)


def _kind(check: NightCheck) -> NightKind:
    report = check.report
    if report is None or report.status == "not enough data":
        return "not judged"
    if check.decision.cause == "suspicious":
        return "held"
    return "drifted" if has_drifted(report) else "stable"
