"""Drift in words: the verdict of a night and what to do about it, for the terminal, the page and the report alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from drift.binning import UNSEEN_LABEL
from drift.decision import RetrainDecision
from drift.findings import changed_since, drift_clause, has_drifted
from drift.records import ColumnDrift, DriftReport, JointDrift, SlowDrift
from reports.formatting import apart, counted, number, share
from reports.night_checks import NightCheck

Tone = Literal["calm", "moved", "unknown"]

_MISSING_JUMP = 0.05
"""Rise of the missing share, or share of unseen labels, from which on the logging itself is the first suspect."""
_MANY = 3
_ADVICE = " Look at where these rows come from."
"""Where the advice begins in the sentence of a held retrain: what to do stands on lines of its own."""

_BADGES: dict[str, tuple[Tone, str]] = {
    "no champion": ("unknown", "First champion"),
    "drift": ("moved", "Drift"),
    "performance": ("moved", "Promise broken"),
    "age": ("calm", "Champion too old"),
    "forced": ("calm", "Asked for"),
    "suspicious": ("moved", "Held for a person"),
    "cool-down": ("moved", "Cooling down"),
    "not enough data": ("unknown", "Not enough data"),
    "none": ("calm", "No drift"),
}


_HEADLINES = {
    "no champion": "Train: no policy has been promoted yet",
    "drift": "Retrain: the world has moved",
    "performance": "Retrain: the champion earns less than was promised",
    "age": "Retrain: the champion is old",
    "forced": "Retrain: a person asked for it",
    "suspicious": "A person must look first",
    "cool-down": "Keep the champion tonight: it cools down after a training",
    "not enough data": "Keep the champion: too little data to judge drift",
    "none": "Keep the champion: nothing has moved",
}


@dataclass(frozen=True)
class Verdict:
    """A night's decision at a glance.

    Attributes:
        tone, badge, headline: what a person sees first.
        sentence: the decision's own, with the drift in it made short.
        to_do: what a person should do, the first thing first.
    """

    tone: Tone
    badge: str
    headline: str
    sentence: str
    to_do: tuple[str, ...]


def verdict_of(check: NightCheck) -> Verdict:
    """The verdict of a night, and what follows from it."""
    decision, report = check.decision, check.report
    tone, badge = _BADGES.get(decision.cause, ("unknown", decision.cause))
    if tone == "calm" and report is not None and has_drifted(report):
        tone = "moved"
    if decision.cause == "none" and report is not None and _mostly_unjudged(report):
        tone, badge = "unknown", "Mostly not judged"
    sentence = decision.sentence
    if report is not None and has_drifted(report):
        sentence = sentence.replace(drift_clause(report), _short_clause(report))
    if decision.cause == "suspicious":
        sentence = sentence.partition(_ADVICE)[0]
    return Verdict(tone, badge, _headline(decision, report), sentence, tuple(_to_do(decision, report)))


def _mostly_unjudged(report: DriftReport) -> bool:
    """Whether more columns were not judged than were: then "nothing has moved" would say too much."""
    return len(ranked(report)) < len(report.columns) / 2


def _short_clause(report: DriftReport) -> str:
    """What drifted, without the numbers of each column: those stand in the table and the pictures."""
    columns = ranked(report)
    n_drifted = sum(column.drifted for column in columns)
    together = ", also together" if any(test.drifted for test in report.joint) else ""
    slowly = f", {counted(len(report.slow), 'column')} over several nights" if report.slow else ""
    if not n_drifted:
        return f"none of {counted(len(columns), 'column')} drifted tonight{together.replace('also', 'but')}{slowly}"
    since = since_of(report)[0]
    since = f" since {since}" if since else ""
    return (
        f"{n_drifted} of {counted(len(columns), 'column')} drifted{since}{together}{slowly}; "
        f"furthest is {columns[0].name}, at {times_words(times_allowed(columns[0], report.min_psi))} what is allowed"
    )


def ranked(report: DriftReport) -> tuple[ColumnDrift, ...]:
    """The columns that could be judged: the drifted first, then those nearest to what they are allowed."""
    judged = [c for c in report.columns if c.status != "not enough data" and c.psi is not None and math.isfinite(c.psi)]
    return tuple(sorted(judged, key=lambda c: (not c.drifted, -times_allowed(c, report.min_psi))))


def unjudged(report: DriftReport) -> dict[str, list[str]]:
    """The names of the columns that could not be judged, by cause."""
    judged = {id(column) for column in ranked(report)}
    by_cause: dict[str, list[str]] = {}
    for column in report.columns:
        if id(column) not in judged:
            by_cause.setdefault(column.reason or "not enough data", []).append(column.name)
    return by_cause


def times_allowed(column: ColumnDrift, min_psi: float) -> float:
    """PSI over what the column is allowed; 0 where it was not measured, infinite where nothing at all is allowed."""
    psi, allowed = column.psi or 0.0, column.allowed(min_psi) or min_psi
    if allowed > 0:
        return psi / allowed
    return math.inf if psi > 0 else 0.0


def column_words(column: ColumnDrift, min_psi: float) -> str:
    """What became of a column, in a few words."""
    if column.status == "not enough data":
        return f"not judged: {column.reason or 'not enough data'}"
    if not column.drifted:
        return column.reason or "stable"
    return f"drifted, {times_words(times_allowed(column, min_psi))} what is allowed"


def times_words(times: float) -> str:
    """A ratio as a person says it."""
    return f"{apart(times, 1.0, 2) if times < 100 else 'over 100'} times"


def folded_words(report: DriftReport, shown: int) -> str:
    """What is to be said of the columns beyond those shown; "" where there are none."""
    rest = ranked(report)[shown:]
    if not rest:
        return ""
    most = max(times_allowed(column, report.min_psi) for column in rest)
    drifted = sum(column.drifted for column in rest)
    if drifted:
        return f"and {len(rest):,} more, {drifted:,} of them drifted"
    bound = "half its threshold" if most <= 0.5 else "its threshold" if most <= 1.0 else ""
    return f"and {len(rest):,} more, none above {bound}" if bound else f"and {len(rest):,} more, none drifted"


def joint_words(joint: JointDrift) -> str:
    """A test of all columns at once in a sentence."""
    name = (
        "A classifier"
        if joint.method == "classifier"
        else "The mean discrepancy of what pairs of columns do together (MMD)"
    )
    if joint.status == "not enough data" or joint.statistic is None:
        return f"{name} was not asked: {joint.reason or 'not enough data'}."
    chance = "" if joint.p_value is None else f" (p {_chance(joint.p_value)})"
    small = not joint.drifted and joint.reason.startswith("beyond chance")
    if joint.method == "classifier":
        better = "better than it tells" if joint.drifted or small else "no better than it tells"
        does = f"tells live rows from the reference {better} unchanged nights"
        found = f"area under its curve {joint.statistic:.3f}{'' if small else _usual(joint, most=1.0)}"
    else:
        does = "is beyond chance" if joint.drifted or small else "is within chance"
        found = f"{number(joint.statistic, 3)}{'' if small else _usual(joint)}"
    said = f"{name} {does}{', but too little to matter' if small else ''}: {found}{chance}."
    if joint.reason:
        said += f" {joint.reason[:1].upper()}{joint.reason[1:]}."
    if joint.drifted and joint.columns:
        said += f" Most telling: {', '.join(f'{column} ({share(part)})' for column, part in joint.columns[:_MANY])}."
    return said


def _usual(joint: JointDrift, most: float = math.inf) -> str:
    """What an unchanged night shows beside it; `most` is what no night can exceed."""
    if joint.threshold is None:
        return ""
    if joint.threshold >= most:
        return f", and so few unchanged nights are known that not even {number(most)} would be beyond chance"
    return f"; an unchanged night stays below {number(joint.threshold, 3)}"


def _chance(p_value: float) -> str:
    """Of unchanged nights; never 0, as no finite number of them shows that."""
    return "below 0.0001" if p_value < 1e-4 else number(p_value, 2)


def slow_words(slow: SlowDrift) -> str:
    """A column that moved over several nights, in a sentence."""
    return (
        f"{slow.name} has moved since {slow.since}, over {counted(slow.n_nights, 'night')}: "
        f"PSI {apart(slow.psi, slow.threshold)} together, {number(slow.threshold, 3)} allowed "
        f"(p {_chance(slow.p_value)})."
    )


def slow_lines(report: DriftReport, most: int = _MANY) -> tuple[str, ...]:
    """Slow drift in sentences: the columns that the live window alone does not show, then a count of the others."""
    drifted = {column.name for column in report.drifted_columns}
    alone = [slow for slow in report.slow if slow.name not in drifted]
    lines = [slow_words(slow) for slow in alone[:most]]
    if len(alone) > most:
        lines.append(f"{counted(len(alone) - most, 'further column')} moved over several nights, too.")
    if len(alone) < len(report.slow):
        lines.append(f"{counted(len(report.slow) - len(alone), 'drifted column')} moved over several nights, too.")
    return tuple(lines)


def since_of(report: DriftReport | None) -> tuple[str, str]:
    """First night of the new world, an ISO date, and what moved first; both "" where no night is told."""
    since = changed_since(report) if report is not None else None
    if report is None or since is None:
        return "", ""
    names = [c.name for c in report.drifted_columns if c.since == since]
    return since, (names or [slow.name for slow in report.slow if slow.since == since])[0]


def _headline(decision: RetrainDecision, report: DriftReport | None) -> str:
    moved = _moved(report)
    if decision.cause == "suspicious" and report is not None and report.suspicions:
        return f"A person must look: {report.suspicions[0].column} moved in a suspicious way"
    if moved and decision.cause in ("drift", "cool-down"):
        return f"Retrain: {moved}" if decision.retrain else f"Keep the champion tonight, although {moved}"
    if decision.cause == "none" and report is not None and _mostly_unjudged(report):
        judged = len(ranked(report))
        return f"Keep the champion: none of the {judged} of {len(report.columns)} columns that could be judged moved"
    return (
        _HEADLINES.get(decision.cause) or f"{'Retrain' if decision.retrain else 'Keep the champion'}: {decision.cause}"
    )


def _moved(report: DriftReport | None) -> str:
    """What moved: "request_rate and 2 more moved", of one column also since when; "" where nothing did."""
    if report is None or not has_drifted(report):
        return ""
    names = [column.name for column in ranked(report) if column.drifted] or [slow.name for slow in report.slow]
    if not names:
        return "the columns moved together"
    if len(names) > 1:
        return f"{names[0]} and {len(names) - 1} more moved"
    since = since_of(report)[0]
    return f"{names[0]} moved{f', since {since}' if since else ''}"


def _to_do(decision: RetrainDecision, report: DriftReport | None) -> Iterator[str]:
    if decision.cause == "suspicious" and report is not None:
        yield "Look at where the rows come from that the sentence above names."
        yield "If they are as they should be: `offline-dqn nightly --force-train` trains."
        yield "If not: stop their source, and take them out with `offline-dqn erase --episode ID`."
        return
    broken = [c for c in report.columns if c.drifted and _new_values(c)] if report is not None else []
    if broken:
        listed = "; ".join(f"{c.name}: {_new_values(c)}" for c in broken[:_MANY])
        yield f"Rule out the logging first: {listed}."
    if decision.retrain:
        yield (
            "The nightly run trains a candidate because of this; the candidate's report says whether it may be "
            "promoted. Nothing changes before it is."
        )
    elif decision.cause == "cool-down":
        yield "Nothing: a training was just made. `offline-dqn nightly --force-train` does not wait."
    elif decision.cause == "not enough data":
        yield "Nothing tonight. Should it stay so for several nights, look at what the log still brings."
    elif decision.cause == "none" and report is not None and _mostly_unjudged(report):
        reasons = [c.reason for c in report.columns if c.status == "not enough data" and c.reason]
        yield f"Nothing tonight, but most columns were not judged{f': {reasons[0]}' if reasons else ''}."
    else:
        yield "Nothing."


def _new_values(column: ColumnDrift) -> str:
    """What a fault of the logging would look like: values gone, or labels that were never there; "" for neither."""
    before, now = column.reference_missing_share or 0.0, column.live_missing_share or 0.0
    found = [f"{share(now)} of its values are missing, {share(before)} before"] if now - before >= _MISSING_JUMP else []
    known = dict(zip(column.bins, column.reference_probs, strict=True)).get(UNSEEN_LABEL, 0.0)
    if (column.unseen_share or 0.0) - known >= _MISSING_JUMP:
        found.append(f"{share(column.unseen_share)} are values that the reference hardly knows, {share(known)} before")
    return ", ".join(found)
