"""What a drift check found, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from drift.config import DriftConfig
from drift.null import PsiNull
from drift.records import ColumnDrift, SlowDrift


def drift_sentence(
    columns: Sequence[ColumnDrift],
    slow: Sequence[SlowDrift],
    null: PsiNull | None,
    problem: str,
    left_out: str,
    config: DriftConfig,
) -> str:
    """The report in one sentence, and which live episodes were left out in another."""
    found = _found(columns, slow, null, problem, config)
    return f"{found} Left out: {left_out}." if left_out and null is not None else found


def _found(
    columns: Sequence[ColumnDrift], slow: Sequence[SlowDrift], null: PsiNull | None, problem: str, config: DriftConfig
) -> str:
    if null is None:
        return f"Not enough data: {problem or 'the two windows have no column in common'}."
    judged = [column for column in columns if column.status != "not enough data"]
    shown = [
        f"{c.name} (PSI {c.psi:.3f}, {c.allowed(config.min_psi):.3f} allowed{f', since {c.since}' if c.since else ''})"
        for c in sorted((c for c in judged if c.drifted), key=lambda c: -(c.psi or 0.0))
    ]
    basis = f"{null.n_units} reference {null.unit}s"
    if null.unit == "cluster":
        basis += f", optimistic before {config.min_nights} nights"
    basis = f"(false-alarm rate {config.false_alarm_rate:.2g}, {basis})"
    named = {column.name for column in judged if column.drifted}
    slowly = [
        f"{one.name} over {one.n_nights} nights (PSI {one.psi:.3f}, {one.threshold:.3f} allowed, since {one.since})"
        for one in slow
        if one.name not in named
    ]
    parts = [_listed(shown, f"{len(shown)} of {len(judged)} columns drifted")] if shown else []
    parts += [_listed(slowly, f"{len(slowly)} moved slowly")] if slowly else []
    if not parts:
        untold = sum(column.status == "not enough data" and column.psi is not None for column in columns)
        more = f"; {untold} more vary too much from night to night to tell" if untold else ""
        return f"None of {len(judged)} columns drifted{more} {basis}."
    return f"{'; '.join(parts)} {basis}."


def _listed(texts: Sequence[str], head: str) -> str:
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return f"{head}: {', '.join(texts[:5])}{more}"
