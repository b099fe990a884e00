"""The commands `backup` and `restore`: a whole workspace as one file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of

backup_app = typer.Typer(rich_markup_mode=None)


@command(backup_app, "backup")
def backup(
    archive: Annotated[Path, typer.Argument(help="New file to write, such as /backups/2026-01-05.tar.")],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write the whole workspace into one file, as it is at this instant."""
    from pipelines.backup import DERIVED, back_up

    done = back_up(open_workspace_of(workspace), archive)
    if done.warning:
        console.warn(done.warning)
    if as_json:
        console.print_json({"archive": str(archive), **done.to_json()})
        return
    facts = {
        "file": archive,
        "files": f"{done.n_files:,}, {done.n_bytes / 1e6:,.1f} MB",
        "left out": f"{', '.join(sorted(DERIVED))}: made anew when needed",
        "keys": "not in it: those of privacy and signing are in the environment; keep them elsewhere",
        "next": f"offline-dqn restore {archive} --check",
    }
    console.print_account(f"Workspace of '{done.problem}' backed up", facts)


@command(backup_app, "restore")
def restore(
    archive: Annotated[Path, typer.Argument(help="A file that `backup` wrote.")],
    directory: Annotated[Path | None, typer.Argument(help="New folder of the workspace.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only read the archive and compare every digest.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a workspace from a backup; it is there whole, every byte checked, or not at all."""
    from pipelines import backup as backups

    if check == (directory is not None):
        raise typer.BadParameter("name the new folder, or --check to read the archive alone")
    done = backups.check(archive) if directory is None else backups.restore(archive, directory)
    if as_json:
        console.print_json({"workspace": None if directory is None else str(directory), **done.to_json()})
        return
    facts = {
        "made": f"{done.created_at:%Y-%m-%d %H:%M} UTC",
        "files": f"{done.n_files:,}, {done.n_bytes / 1e6:,.1f} MB, every digest as backed up",
    }
    if directory is None:
        console.print_account(f"A whole backup of '{done.problem}'", facts)
        return
    console.print_account(
        f"Workspace of '{done.problem}' restored",
        {"folder": directory, **facts, "next": f"offline-dqn releases --workspace {directory}"},
    )
