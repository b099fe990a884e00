"""The command `erase`: everything of a subject leaves the workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of

if TYPE_CHECKING:
    from pipelines.erasing import ErasedWorkspace


def add_erase_command(app: typer.Typer) -> None:
    """Registers `erase`."""

    @command(app, "erase")
    def erase(
        workspace: WorkspaceOption = Path(),
        episode: Annotated[str | None, typer.Option(help="Id of an episode.")] = None,
        key: Annotated[str | None, typer.Option(help="COLUMN=VALUE of a column in privacy.hash.")] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
        finish: Annotated[bool, typer.Option("--finish", help="Finish an erasure that was cut off.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Erase an episode, or everything of a key, from lake, quarantine, outcomes and snapshots, for good."""
        from pipelines import erasing

        opened = open_workspace_of(workspace)
        if finish:
            finished = erasing.finish(opened)
            if as_json:
                console.print_json({"finished": finished})
            else:
                console.print_account("Erasure finished" if finished else "No erasure was cut off", {})
            return
        done = erasing.erase(opened, episode=episode, named=key, dry_run=dry_run)
        if as_json:
            console.print_json(done.to_json())
            return
        _print(done)


def _print(done: ErasedWorkspace) -> None:
    found = done.erasure
    standing = [f"{name} -> {after or 'nothing left'}" for name, after in found.snapshots.items()]
    facts = {
        "episodes": f"{len(found.episodes):,}",
        **{f"rows of {table}": f"{n:,}" for table, n in found.n_rows.items()},
        "snapshots": ", ".join(found.snapshots) if done.dry_run else ", ".join(standing),
        "releases": ", ".join(map(str, done.releases)),
    }
    console.print_account("Would be erased" if done.dry_run else "Erased", facts)
    if done.releases and not done.dry_run:
        console.warn("these releases rest on a snapshot that was redacted: their decisions are not replayable: erased")
    for file in done.log_files:
        console.warn(f"{file} still holds rows of it: logs are yours to change; what it brings again is refused")
    for file in done.still_named_in:
        console.warn(f"{file} still names it: it is no part of the lake; delete it or take the name out")
