"""The commands `drift ...`: live nights against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.command import (
    AsOfOption,
    JsonOption,
    WorkspaceOption,
    command,
    expected,
    open_in_browser,
    open_workspace_of,
)
from pipelines.compare_command import add_compare_command

if TYPE_CHECKING:  # the stages load torch and more; a command loads what it needs when it runs
    from pipelines.training import StageError

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
    from pipelines.drift_pages import checks_now
    from pipelines.drift_table import print_check

    opened = open_workspace_of(workspace, as_of)
    outcome = stages.measure(opened)
    if as_json:
        console.print_json(outcome.to_json())
        return
    where = "" if workspace == Path() else f" --workspace {workspace}"
    print_check(checks_now(opened, outcome.to_json()).newest, console.out, page=f"offline-dqn drift page{where} --open")


@command(drift_app, "page")
def page(
    night: Annotated[
        datetime | None,
        typer.Option(help="Page of this night's recorded check; default: a check made now.", formats=["%Y-%m-%d"]),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file; default: in the folder drift of the workspace.")
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a drift check as one HTML file: what moved, how much, since when, and what was decided."""
    from pipelines import stages
    from pipelines.drift_pages import checks_now, checks_of_night, night_page, recorded_nights, write_page

    opened = open_workspace_of(workspace, as_of)
    if night is None:
        checks = checks_now(opened, stages.measure(opened).to_json())
        path = opened.drift_path / "now.html"
    else:
        found = checks_of_night(opened, night.date())
        if found is None:
            raise _no_such_night(night.date(), recorded_nights(opened))
        checks, path = found, night_page(opened, night.date().isoformat())
    path = write_page(opened, checks, (output or path).absolute())
    if as_json:
        console.print_json({"page": str(path), "night": checks.newest.night})
        return
    print(path)
    if show and not open_in_browser(path):
        console.err.print("(no display: open the file above in a browser)", style="dim")


def _no_such_night(night: date, recorded: Sequence[str]) -> StageError:
    from pipelines.training import StageError

    known = f"those from {recorded[0]} to {recorded[-1]} have" if recorded else "no night has"
    return StageError(
        f"No drift check was recorded of the night {night}: {known} one. `offline-dqn nightly` records one each night; "
        "without --night the page is of a check made now."
    )
