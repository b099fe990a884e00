"""The command `slo`: what is left of each error budget, and whether promotions are stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.command import REFUSED, AsOfOption, JsonOption, WorkspaceOption, command, open_workspace_of

if TYPE_CHECKING:  # a command loads what it needs when it runs
    from pipelines.slo.standing import Standing

slo_app = typer.Typer(rich_markup_mode=None)


@command(slo_app, "slo")
def slo(
    workspace: WorkspaceOption = Path(),
    check: Annotated[
        bool, typer.Option("--check", help="End with exit code 3 where promotions are stopped now.")
    ] = False,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is left of each error budget, and how fast it burns."""
    from pipelines.slo.standing import read_now, standings, stopped_now

    opened = open_workspace_of(workspace, as_of)
    reading = read_now(opened)  # once: both are to speak of the same instant
    found, warnings = standings(opened, live=True, reading=reading)
    stopped = list(stopped_now(opened, reading=reading).by)  # of now, whatever --as-of shows
    if as_json:
        values = {standing.objective.name: standing.to_json() for standing in found}
        console.print_json({"slo": values, "promotions_stopped_by": stopped, "warnings": warnings})
    else:
        _print(found, stopped)
        for warning in warnings:
            console.warn(warning)
    if check and stopped:
        raise typer.Exit(REFUSED)


def _print(found: Sequence[Standing], stopped: Sequence[str]) -> None:
    if not found:
        example = "[slo.availability]"
        console.print_account("No objective is watched", {"next": f"a table such as {example} in offline_dqn.toml"})
        return
    columns = ["objective", "wants", "events", "bad", "allowed", "budget left", "burn rate", "spent in", "state"]
    title = f"Error budgets over {found[0].objective.window_nights} nights"
    console.print_table(title, columns, [_row(standing) for standing in found], right=columns[1:-1])
    unknown = {s.objective.name: s.absent for s in found if s.budget is None}
    if unknown:
        console.print_account("Unknown", unknown)
    stops = f"stopped by {', '.join(stopped)}; rollbacks are not" if stopped else "not stopped by any budget"
    console.print_account("", {"promotions": stops})


def _row(standing: Standing) -> list[str]:
    wants, budget = f"{100 * standing.objective.share:g} %", standing.budget
    if budget is None:
        return [standing.objective.name, wants, *["-"] * 6, standing.state]
    nights = budget.nights_left
    return [
        standing.objective.name,
        wants,
        f"{budget.n_events:,.0f}",
        f"{budget.n_bad:,.0f}",
        f"{budget.n_allowed:,.4g}",
        f"{100 * budget.left:,.{0 if abs(budget.left) >= 1 else 1}f} %",
        console.number(budget.burn_rate, 3),
        "-" if nights is None else f"{nights:.2g} nights",
        standing.state,
    ]
