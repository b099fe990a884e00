"""The command `drill`: faults on purpose, in a scratch workspace."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.command import REFUSED, JsonOption, command

if TYPE_CHECKING:
    from pipelines.drill.trial import Outcome

drill_app = typer.Typer(rich_markup_mode=None)


@command(drill_app, "drill")
def drill(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="New folder to drill in, kept; default: a temporary one.")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", help="A fault to inject; may be given often. Default: every one.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Trials of each fault.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="From which all moments follow.")] = 0,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Markdown page whose table of figures is written anew.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Disturb nights of a scratch workspace on purpose, repeat each, and compare with an undisturbed one."""
    from pipelines.drill.drill import free_folder, run_drill
    from pipelines.drill.faults import FAULTS
    from pipelines.drill.page import table_rows, write_figures

    where = folder or free_folder()
    try:
        done = run_drill(
            where,
            faults=fault or tuple(FAULTS),
            rounds=rounds,
            seed=seed,
            tell=lambda what: console.err.print(f"{what} ...", highlight=False),
            tell_outcome=_tell_outcome,
        )
    except BaseException:
        if folder is None:
            shutil.rmtree(where, ignore_errors=True)
        raise
    broken = [outcome for outcome in done.outcomes if outcome.wrong]
    if figures is not None:
        write_figures(figures, done)
    if folder is None and not broken:
        shutil.rmtree(where)
    if as_json:
        console.print_json(done.to_json())
    else:
        heads, rows = table_rows(done)
        console.print_table("Faults injected", heads, rows, right=heads[2:])
        facts = {
            "seed": seed,
            "CPU": f"{done.cpu_s:,.0f} s",
            "kept in": where if folder is not None or broken else None,
        }
        console.print_account("", facts)
    for name, why in done.left_out.items():
        console.warn(f"{name} was left out: {why}")
    if broken:
        raise typer.Exit(REFUSED)


def _tell_outcome(outcome: Outcome) -> None:
    what = f"{outcome.trial.number}. {outcome.trial.fault} {outcome.variant}".rstrip()
    console.err.print(
        f"{what}, at {outcome.moment}: {'survived' if not outcome.wrong else 'NOT SURVIVED'}", markup=False
    )
    for line in outcome.wrong:
        console.fail(line)
