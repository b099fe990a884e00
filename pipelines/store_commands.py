"""The commands `store show`, `store upload` and `store download`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of

store_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

KindArgument = Annotated[list[str] | None, typer.Argument(help="snapshots, releases, or both; default: both.")]
_KINDS = ("snapshots", "releases")


@command(store_app, "show")
def show(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Show where snapshots and releases lie, and whether their bucket answers and keeps conditional writes."""
    from pipelines.storing import places

    found = places(open_workspace_of(workspace))
    if as_json:
        console.print_json({"places": [each.to_json() for each in found]})
        return
    rows = [
        (
            each.name,
            each.place,
            "-" if each.n_objects is None else f"{each.n_objects:,}",
            "-" if each.n_bytes is None else f"{each.n_bytes / 1e6:,.1f}",
            each.copy or "-",
        )
        for each in found
    ]
    console.print_table("Where things lie", ["what", "where", "objects", "MB", "copy here"], rows)


@command(store_app, "upload")
def upload(
    kinds: KindArgument = None,
    snapshots: Annotated[Path | None, typer.Option(help="Their folder; default: snapshots.")] = None,
    releases: Annotated[Path | None, typer.Option(help="Their folder; default: releases.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Copy snapshots and releases from folders into the buckets that [store] names."""
    from datasets.locking import exclusive_lock
    from pipelines.storing import upload_folders

    opened, chosen = open_workspace_of(workspace), _chosen(kinds)
    with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
        done = upload_folders(
            opened,
            snapshots=(snapshots or opened.root / "snapshots") if "snapshots" in chosen else None,
            releases=(releases or opened.root / "releases") if "releases" in chosen else None,
        )
    if as_json:
        console.print_json(done.to_json())
        return
    facts = {"releases": ", ".join(map(str, done.releases)) or "none", "snapshots": ", ".join(done.snapshots) or "none"}
    console.print_account("Copied; the folders are as they were, and nothing reads them any more", {**facts, **done.to})


@command(store_app, "download")
def download(
    kinds: KindArgument = None,
    to: Annotated[Path | None, typer.Option(help="Folder for them; default: the workspace.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Copy snapshots and releases out of their buckets into new folders."""
    from datasets.locking import exclusive_lock
    from pipelines.storing import download_folders

    opened, chosen = open_workspace_of(workspace), _chosen(kinds)
    target = (to or opened.root).absolute()
    with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
        done = download_folders(
            opened,
            snapshots=target / "snapshots" if "snapshots" in chosen else None,
            releases=target / "releases" if "releases" in chosen else None,
        )
    if as_json:
        console.print_json(done.to_json())
        return
    facts = {"releases": ", ".join(map(str, done.releases)) or "none", "snapshots": ", ".join(done.snapshots) or "none"}
    console.print_account(
        "Copied; the buckets are as they were", {**facts, **{f"{kind} in": place for kind, place in done.to.items()}}
    )


def _chosen(kinds: list[str] | None) -> tuple[str, ...]:
    unknown = sorted(set(kinds or ()) - set(_KINDS))
    if unknown:
        raise typer.BadParameter(f"'{unknown[0]}' is neither snapshots nor releases.")
    return tuple(kinds or _KINDS)
