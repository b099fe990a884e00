"""The commands `compact` and `retain`: what keeps a workspace small and fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datasets.locking import exclusive_lock
from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of

upkeep_app = typer.Typer(rich_markup_mode=None)


@command(upkeep_app, "compact")
def compact(
    workspace: WorkspaceOption = Path(),
    above: Annotated[int, typer.Option(help="Merge where there are more files than this.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Merge the lake's small files; an ingest does it by itself where there are many."""
    from pipelines.upkeep import compact_lake

    opened = open_workspace_of(workspace)
    lake = opened.open_lake()
    done = compact_lake(opened, lake, above=above)
    opened.refresh_catalog(lake)
    if as_json:
        console.print_json(done.to_json())
        return
    facts = {
        "files before": f"{done.n_before:,}",
        "files now": f"{done.n_after:,}",
        "rows in merged files": f"{done.n_rows:,}",
        "tables": ", ".join(done.tables) or "none: there was nothing to merge",
    }
    console.print_account("Lake compacted", facts)


@command(upkeep_app, "retain")
def retain(
    workspace: WorkspaceOption = Path(),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what is older than [retention] says; `nightly` does it by itself."""
    from pipelines import upkeep

    opened = open_workspace_of(workspace)
    with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
        done = upkeep.retain(opened, dry_run=dry_run, may_empty=True)
    if as_json:
        console.print_json(done.to_json())
        return
    facts = {
        **{(name if name == "raw text" else f"rows of {name}"): f"{n:,}" for name, n in done.n_rows.items()},
        "snapshots": ", ".join(done.snapshots) or "none",
        "files of former versions": f"{done.n_files:,}",
    }
    console.print_account("Would be removed" if dry_run else "Removed", facts)
