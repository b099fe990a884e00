"""The command `ledger`: the readings of `gate`, and what a year may still spend."""

from __future__ import annotations

from pathlib import Path

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of
from reports.ledger import Budget

release_app = typer.Typer(rich_markup_mode=None)


@command(release_app, "ledger")
def ledger(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Every reading of gate, and what a year may still spend."""
    from pipelines.readings import budget, ledger_of

    opened = open_workspace_of(workspace)
    readings, now = ledger_of(opened).readings(), budget(opened)
    if as_json:
        console.print_json({"readings": [reading.to_json() for reading in readings], "budget": now.to_json()})
        return
    rows = [
        [
            r.number,
            f"{r.at:%Y-%m-%d %H:%M}",
            ", ".join(map(str, r.releases)),
            r.terms.snapshot[:12],
            f"{r.terms.nights[0]} .. {r.terms.nights[-1]}" if len(r.terms.nights) > 1 else r.terms.nights[0],
            f"{r.terms.n_episodes:,}",
            console.number(r.terms.alpha),
            r.verdict or "not finished",
        ]
        for r in readings
    ]
    heads = ["reading", "at", "release", "snapshot", "nights of gate", "episodes", "alpha", "verdict"]
    console.print_table("Readings of gate", heads, rows, right=["reading", "episodes", "alpha"])
    print_budget(now)


def print_budget(now: Budget) -> None:
    """What the year has spent, and what it may still spend."""
    following = (
        f"{now.n_left} more now"
        if now.possible_at is None
        else f"the next from {now.possible_at:%Y-%m-%d %H:%M} UTC on"
    )
    spent = f"{now.spent:.3g} of {now.allowed:.3g}, spent by {now.n_readings} readings of gate"
    console.print_account(
        "",
        {
            "error of the last 365 days": spent,
            f"readings at {now.alpha:.3g} each": following,
        },
    )
