"""What of the error budgets a person should hear of: one that burns too fast is a page, a spent one a ticket."""

from __future__ import annotations

from pipelines.notify.notices import Notice
from pipelines.slo.standing import burns, in_words, standings
from pipelines.workspace import Workspace

BURN, BUDGET = "burn", "error budget"
"""Causes."""


def budget_notices(workspace: Workspace, *, live: bool = True) -> tuple[tuple[Notice, ...], frozenset[str]]:
    """Notices on the budgets, and the causes that were looked for: none where no objective is watched.

    Args:
        live: ask the policy server what it has counted by now.
    """
    found, _ = standings(workspace, live=live)
    if not found:
        return (), frozenset()
    notices = []
    burning = burns(found)
    if burning:
        names = [s.objective.name for s in found if s.budget is not None and s.budget.burning]
        title = f"the error budget of {', '.join(names)} burns"
        text = (
            f"{'; '.join(burning)}. Look for the cause (`offline-dqn slo`, the on-call dashboard); `offline-dqn "
            "disable` has version 0 act, `offline-dqn rollback` the champion before."
        )
        notices.append(Notice(BURN, "page", title, f"{text[:1].upper()}{text[1:]}", ", ".join(names)))
    spent = [s for s in found if s.budget is not None and s.budget.spent]
    if spent:
        names = [s.objective.name for s in spent]
        stops = "Promotions are stopped meanwhile; rollbacks are not. " if any(s.stops for s in spent) else ""
        listed = "; ".join(in_words(s.budget) for s in spent if s.budget is not None)
        text = f"Spent: {listed}. {stops}`offline-dqn slo` shows how it stands."
        notices.append(
            Notice(BUDGET, "ticket", f"the error budget of {', '.join(names)} is spent", text, ", ".join(names))
        )
    return tuple(notices), frozenset({BURN, BUDGET})
