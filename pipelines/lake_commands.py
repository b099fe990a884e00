"""The commands `lake ...`: where the lake lies, and how it gets into a bucket."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of, user_name

lake_app = typer.Typer(help="Where the lake lies, and its altered files.", no_args_is_help=True, rich_markup_mode=None)


@lake_app.callback()
def _lake() -> None:
    """Where the lake lies, and its altered files."""


@command(lake_app, "show")
def lake_show(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Where the lake lies, its last commit, and how many files it has; brings this machine's copy up to it."""
    from datasets.tables import TABLES

    lake = open_workspace_of(workspace).open_lake()
    files = [Path(file) for table in TABLES for file in lake.files(table)]
    facts = {
        "lake": str(lake.bucket or lake.root),
        "copy": str(lake.root) if lake.bucket else None,
        "commit": lake.commit_number(),
        "n_files": len(files),
        "n_bytes": sum(file.stat().st_size for file in files),
    }
    if as_json:
        console.print_json(facts)
        return
    console.print_account(
        "Lake",
        {
            "lies in": str(facts["lake"]),
            "copy on this machine": str(facts["copy"] or "none: the folder is the lake"),
            "last commit": f"{facts['commit']:,}",
            "files": f"{facts['n_files']:,}, {facts['n_bytes']:,} bytes",
        },
    )


@command(lake_app, "upload")
def lake_upload(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Take the workspace's lake to the bucket that [store] lake names; its folder becomes this machine's copy."""
    from datasets.lake_upload import upload_lake
    from datasets.locking import exclusive_lock
    from pipelines.workspace import WorkspaceError

    opened = open_workspace_of(workspace)
    address = opened.config.store.lake_address
    if address is None:
        raise WorkspaceError(
            f'[store] lake is "{opened.config.store.lake}", a folder. Name the bucket there first: lake = "s3://…".'
        )
    with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
        done = upload_lake(opened.lake_path, opened.contract, address)
    if as_json:
        console.print_json(asdict(done))
        return
    facts = {
        "lies in": done.address,
        "last commit": f"{done.commit:,}",
        "files": f"{done.n_files:,}, {done.n_bytes:,} bytes",
        "copy on this machine": str(opened.lake_path),
    }
    console.print_account("Lake taken to its bucket", facts)


@command(lake_app, "give-up")
def lake_give_up(
    note: Annotated[str, typer.Option("--note", help="Why there is no good copy.")] = "",
    reviewer: Annotated[str | None, typer.Option("--reviewer", help="Who answers for it; default: the user.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Take files out of the lake whose bytes the disk has lost or changed; their rows stand in `removals`."""
    from datasets.giving_up import give_up_altered
    from datasets.locking import exclusive_lock

    opened = open_workspace_of(workspace)
    by = user_name() if reviewer is None else reviewer
    with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
        lake = opened.open_lake()
        done = give_up_altered(lake, by=by, note=note, at=datetime.now(UTC), dry_run=dry_run)
        if done.files and not dry_run:
            opened.refresh_catalog(lake)
    if as_json:
        console.print_json({"dry_run": dry_run, **done.to_json()})
        return
    if not done.files:
        console.print_account("No file of the lake is altered; nothing was changed", {})
        return
    facts = {
        "files": ", ".join(done.files),
        **{f"rows of {table}": f"{n:,}" for table, n in done.n_rows.items()},
        "batches": ", ".join(batch or "nobody can tell" for batch in done.batches) or "none",
    }
    console.print_account("Would be given up" if dry_run else "Given up", facts)
    console.warn(
        "snapshots keep what they hold of these rows, and `erase --key` no longer finds an episode there that only "
        "these rows named: erase it by --episode"
    )
