"""The commands `drift ...`: live nights against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipelines import console
from pipelines.command import AsOfOption, JsonOption, WorkspaceOption, expected, open_workspace_of
from pipelines.compare_command import add_compare_command

if TYPE_CHECKING:  # the stages load torch and more; a command loads what it needs when it runs
    from pipelines.stages import DriftOutcome

drift_app = typer.Typer(help="Compare live nights with the reference.", rich_markup_mode=None)

add_compare_command(drift_app)


@drift_app.callback(invoke_without_command=True)
def drift(
    context: typer.Context,
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare live nights with the reference, and decide whether to retrain."""
    if context.invoked_subcommand is None:
        decide(workspace, as_of, as_json)
    elif workspace != Path() or as_of is not None or as_json:
        raise typer.BadParameter(
            f"options go behind the command: offline-dqn drift {context.invoked_subcommand} --workspace ..."
        )


@expected
def decide(workspace: Path, as_of: AsOfOption, as_json: bool) -> None:
    from pipelines import stages

    outcome = stages.measure(open_workspace_of(workspace, as_of))
    if as_json:
        console.print_json(outcome.to_json())
    else:
        _print_drift(outcome)


def _print_drift(outcome: DriftOutcome) -> None:
    console.print_account("Drift", {"decision": outcome.decision.sentence})
    if outcome.report is None:
        return
    for suspicion in outcome.report.suspicions:
        console.warn(f"suspicious: {suspicion.sentence}")
    rows = [
        [
            column.name,
            console.number(column.psi),
            console.number(column.kl),
            console.number(column.allowed(outcome.report.min_psi)),
            console.number(column.typical_psi),
            column.status if column.status != "not enough data" else column.reason,
        ]
        for column in sorted(outcome.report.columns, key=lambda c: -(c.psi or 0.0))
    ]
    heads = ["column", "PSI", "KL(live || reference)", "threshold", "unchanged nights", ""]
    console.print_table("In nats; a column drifts above its threshold", heads, rows, right=heads[1:5])
