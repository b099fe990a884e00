"""What a drift report comes to in words: what drifted, since which night, how much it matters, or what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drift.config import DriftConfig
from drift.records import ColumnDrift, DriftReport, JointDrift, SlowDrift

MOST_NAMED = 5
"""Columns that a sentence names; the rest are counted."""


def has_drifted(report: DriftReport) -> bool:
    """Whether any column, any joint test or any stretch of nights says so."""
    return report.status == "drifted" or bool(report.slow) or any(test.drifted for test in report.joint)


def as_clause(sentence: str) -> str:
    """A sentence to be put into another one: lower-case at its start, no full stop."""
    return (sentence[:1].lower() + sentence[1:]).removesuffix(".")


def drift_clause(report: DriftReport) -> str:
    """What drifted with its numbers, since when, and how much it matters, as a clause without a full stop.

    Raises:
        ValueError: nothing drifted.
    """
    if not has_drifted(report):
        raise ValueError(f"nothing drifted in a report whose status is '{report.status}'")
    parts = []
    if report.drifted_columns:
        parts.append(_columns(report.drifted_columns, report))
    parts += [joint_clause(test) for test in report.joint if test.drifted]
    named = {column.name for column in report.drifted_columns}
    slow = [found for found in report.slow if found.name not in named]
    if slow:
        parts.append(_slow(slow))
    if report.effects:
        parts.append(f"what it does to the champion: {report.effects[0].sentence.removesuffix('.')}")
    return f"{'; '.join(parts)} ({_basis(report)})"


def changed_since(report: DriftReport) -> str | None:
    """First night of the new world as ISO date, where everything that drifted tells; else None.

    The earliest of the nights from which drifted columns stand out. A stretch of nights only where no column of the
    live window drifted: it begins where the change was not yet large enough to be seen. A joint test tells no night.
    """
    columns = [column.since for column in report.drifted_columns]
    if not columns:
        return min((found.since for found in report.slow), default=None)
    known = [since for since in columns if since is not None]
    return min(known) if len(known) == len(columns) else None


def missing_data(report: DriftReport, config: DriftConfig) -> str:
    """What a report lacks that could not judge, and when that will be there, as a clause without a full stop."""
    wanted, found = config.min_live_episodes, as_clause(report.sentence)
    if report.live_episodes < wanted:
        if not report.live_episodes:
            return f"{found}; it is judged once a night brings {wanted} episodes"
        per_night = report.live_episodes / report.live_nights
        nights = math.ceil(wanted / per_night)
        at_this_pace = f"a night brings about {per_night:.3g}"
        if nights <= config.live_nights:
            return f"{found}; {at_this_pace}, so {nights} nights are enough, {nights - report.live_nights} from now"
        return f"{found}; {at_this_pace}, so set [drift] live_nights = {nights} to judge as many nights together"
    if report.reference_episodes < wanted or report.effective_reference_episodes < wanted:
        return (
            f"{found}; waiting does not mend that, as what the champion was judged on never grows: `offline-dqn "
            "nightly --force-train` trains a successor that is judged on more, or lower [drift] min_live_episodes"
        )
    if report.unit is None and report.reference_nights < config.min_nights:
        return (
            f"{found}; a successor's reference will hold more: `offline-dqn nightly --force-train` once the lake holds "
            f"{config.min_nights} nights"
        )
    return found


def _columns(columns: Sequence[ColumnDrift], report: DriftReport) -> str:
    judged = sum(column.status != "not enough data" for column in report.columns)
    named = [
        f"{column.name} (PSI {column.psi:.3f}, {column.allowed(report.min_psi) or report.min_psi:.3f} allowed"
        f"{f', since {column.since}' if column.since else ''})"
        for column in columns[:MOST_NAMED]
    ]
    more = f" and {len(columns) - MOST_NAMED} more" if len(columns) > MOST_NAMED else ""
    return f"{len(columns)} of {judged} columns drifted: {', '.join(named)}{more}"


def joint_clause(test: JointDrift) -> str:
    """What a joint test found, as a clause without a full stop."""
    by = f", most by {', '.join(name for name, _ in test.columns[:MOST_NAMED])}" if test.columns else ""
    if test.method == "classifier":
        return (
            "all columns together tell live from reference: a classifier's area under the curve is "
            f"{test.statistic:.3f} ({test.threshold:.3f} allowed){by}"
        )
    return (
        f"what pairs of columns do together differs: squared maximum mean discrepancy {test.statistic:.3g} "
        f"({test.threshold:.3g} allowed){by}"
    )


def _slow(slow: Sequence[SlowDrift]) -> str:
    named = [
        f"{found.name} over {found.n_nights} nights since {found.since} (PSI {found.psi:.3f}, {found.threshold:.3f} "
        "allowed)"
        for found in slow[:MOST_NAMED]
    ]
    more = f" and {len(slow) - MOST_NAMED} more" if len(slow) > MOST_NAMED else ""
    return f"moved slowly: {', '.join(named)}{more}"


def _basis(report: DriftReport) -> str:
    units = f", {report.n_units} reference {report.unit}s" if report.unit else ""
    caveat = ", optimistic: it knows of no shocks that nights share" if report.optimistic else ""
    return f"false-alarm rate {report.false_alarm_rate:.2g}{units}{caveat}"
