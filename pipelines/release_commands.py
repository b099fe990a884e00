"""The commands `ledger` and `reject`, and what `evaluate --replay` prints: decisions as records that can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.command import REFUSED, JsonOption, WorkspaceOption, command, open_workspace_of
from reports.formatting import counted
from reports.json_differences import JsonDifference

if TYPE_CHECKING:
    from pipelines.workspace import Workspace
    from reports.ledger import Budget

_SHOWN = 12
"""Differences that are listed; --json has them all."""

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


@command(release_app, "reject")
def reject(
    version: Annotated[int, typer.Argument(help="Number of the release.")],
    reviewer: Annotated[str, typer.Option("--reviewer", help="Who says no.")],
    note: Annotated[str, typer.Option("--note", help="Why.")],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Record a reviewer's no to a release."""
    from pipelines import promoting

    rejection = promoting.reject(open_workspace_of(workspace), version, reviewer=reviewer, note=note)
    if as_json:
        console.print_json(rejection.to_json())
        return
    console.print_account(
        f"Release {rejection.release} is rejected", {"reviewer": rejection.reviewer, "note": rejection.note}
    )


def print_budget(now: Budget) -> None:
    """What the year has spent, and what it may still spend."""
    following = (
        f"{now.n_left} more now"
        if now.possible_at is None
        else f"the next from {now.possible_at:%Y-%m-%d %H:%M} UTC on"
    )
    spent = f"{now.spent:.3g} of {now.allowed:.3g}, spent by {counted(now.n_readings, 'reading')} of gate"
    console.print_account(
        "",
        {
            "error of the last 365 days": spent,
            f"readings at {now.alpha:.3g} each": following,
        },
    )


def print_replay(workspace: Workspace, release: int, as_json: bool) -> None:
    """Replays a recorded decision and says whether every bit is the same; exit 3 where not."""
    from pipelines.replaying import replay_decision

    with console.progress("judging again", None):
        replayed = replay_decision(workspace, release)
    if as_json:
        console.print_json(replayed.to_json())
    else:
        same = replayed.same and not replayed.altered
        console.print_account(
            f"Release {release}: {'every bit is the same' if same else 'the replay differs'}",
            {
                "first difference": None if replayed.first_byte is None else f"byte {replayed.first_byte:,}",
                "stored file": replayed.altered or "as the ledger has it",
                "spent": "nothing: the decision is known already",
            },
        )
        _print_differences("evaluation.json, stored -> replayed", replayed.differences)
        _print_differences("Inputs that changed since, as entered -> as found", replayed.changed)
        _print_differences("A new reading would use, as entered -> today", replayed.changed_since)
    if not replayed.same or replayed.altered:
        raise typer.Exit(REFUSED)


def _print_differences(title: str, differences: Sequence[JsonDifference]) -> None:
    if differences:
        shown = {d.path or "the whole": str(d).partition(": ")[2] for d in differences[:_SHOWN]}
        more = {"and": f"{len(differences) - _SHOWN} more"} if len(differences) > _SHOWN else {}
        console.print_account(title, {**shown, **more})
