"""The commands `serve`, `disable` and `enable`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datasets.errors import OfflineDqnError
from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of, user_name

if TYPE_CHECKING:
    from pipelines.serving.acting_releases import ActingReleases
    from pipelines.workspace import Workspace

serve_app = typer.Typer(rich_markup_mode=None)

ByOption = Annotated[str | None, typer.Option("--reviewer", help="Who answers for it; default: the user.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why.")]


@command(serve_app, "serve")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: serve.host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Serve decisions over HTTP, and log them for the next night."""
    from pipelines.serving.log_format import WithoutRows
    from pipelines.serving.server import serve as run

    opened = open_workspace_of(workspace, follow=False)
    asked = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    lines = logging.StreamHandler()
    lines.setFormatter(WithoutRows("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    logging.getLogger("offline_dqn.serve").setLevel(logging.INFO)

    def started(address: str, acting: ActingReleases) -> None:
        now = acting.current
        in_charge = now.fallback if now.disabled is not None else now.champion
        if as_json:
            console.print_json({"address": address, "release": in_charge.number, "disabled": now.disabled is not None})
        else:
            who = "version 0, the rules" if in_charge.number == 0 else f"release {in_charge.number}"
            facts = {"acting": who, "log": opened.logs_path, "stop": "Ctrl+C, or SIGTERM"}
            console.print_account(f"Serving '{opened.contract.name}' on {address}", facts)
        console.out.file.flush()

    run(opened, opened.config.serve.model_copy(update=asked), started)


@command(serve_app, "disable")
def disable(
    reviewer: ByOption = None, note: NoteOption = "", workspace: WorkspaceOption = Path(), as_json: JsonOption = False
) -> None:
    """The kill switch: within a second version 0 acts and no release does, whatever else is down."""
    from pipelines.serving.switch import SwitchError
    from pipelines.serving.switch import disable as throw

    opened = open_workspace_of(workspace, follow=False)
    disabled, is_new = throw(opened.serving_path, by=user_name() if reviewer is None else reviewer, note=note)
    has_zero = _may_have_version_zero(opened)
    if as_json:
        console.print_json({"disabled": True, "new": is_new, "version_zero": has_zero, **disabled.to_json()})
    if not has_zero:
        raise SwitchError(
            "The switch is thrown and no canary acts, but this workspace has no version 0 that could act in the "
            "champion's place: the champion goes on. `offline-dqn rollback` puts an earlier release in charge; "
            "[baseline] in offline_dqn.toml describes version 0, for the next start of the server."
        )
    if as_json:
        return
    facts = {"since": f"{disabled.at:%Y-%m-%d %H:%M:%S} UTC", "by": disabled.by, "note": disabled.note}
    console.print_account(
        "Version 0 acts" if is_new else "Version 0 acts already; nothing was changed",
        {**facts, "undo": "offline-dqn enable"},
    )


def _may_have_version_zero(workspace: Workspace) -> bool:
    """False only where there surely is none; the switch works also where the settings cannot be read."""
    try:
        return workspace.release_path(0).exists() or workspace.config.baseline is not None
    except OfflineDqnError:
        return True


@command(serve_app, "enable")
def enable(
    reviewer: ByOption = None, note: NoteOption = "", workspace: WorkspaceOption = Path(), as_json: JsonOption = False
) -> None:
    """Undo `disable`: the champion acts again."""
    from pipelines.serving.switch import enable as undo

    by = user_name() if reviewer is None else reviewer
    opened = open_workspace_of(workspace, follow=False)
    found = undo(opened.serving_path, by=by, note=note)
    if as_json:
        console.print_json({"disabled": False, "was": found.to_json() if found else None})
        return
    if found is None:
        console.print_account("Nothing is disabled; nothing was changed", {"to disable": "offline-dqn disable"})
        return
    champion = opened.registry.champion()  # None too where the records of releases are out of reach
    console.print_account(
        f"The champion{'' if champion is None else f', release {champion},'} acts again",
        {"was disabled by": found.by, "since": f"{found.at:%Y-%m-%d %H:%M:%S} UTC"},
    )
