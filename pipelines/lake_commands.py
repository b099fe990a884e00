"""The commands `lake ...`: where the lake lies, and how it gets into a bucket."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of

lake_app = typer.Typer(help="Where the lake lies.", no_args_is_help=True, rich_markup_mode=None)


@lake_app.callback()
def _lake() -> None:
    """Where the lake lies."""


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
