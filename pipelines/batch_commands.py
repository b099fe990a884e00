"""The commands `batches ...`: what came in, and what is held."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of, user_name

if TYPE_CHECKING:
    from datasets.validation import ValidationResult

batches_app = typer.Typer(help="What came in, and what is held.", no_args_is_help=True, rich_markup_mode=None)


@batches_app.callback()
def _batches() -> None:
    """What came in, and what is held."""


@command(batches_app, "list")
def batches_list(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Every batch with the account of its rows."""
    from datasets.batches import list_batches

    found = list_batches(open_workspace_of(workspace).open_lake())
    if as_json:
        console.print_json({"batches": [{**b.to_json(), "validation": None} for b in found]})
        return
    counted = ["n_in", "n_lake", "n_quarantined", "n_duplicates", "n_held", "n_pending", "n_erased"]
    rows = [[b.batch_id, b.status, *[f"{getattr(b.counts, c):,}" for c in counted]] for b in found]
    heads = ["batch", "status", "in", "lake", "quarantined", "duplicates", "held", "pending", "erased"]
    title = "Batches: in = lake + quarantined + duplicates + held + pending + erased"
    console.print_table(title, heads, rows, right=heads[2:])


@command(batches_app, "show")
def batches_show(
    batch: Annotated[str, typer.Argument(help="Its id, or the beginning of it.")],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """One batch with its validation, and the page of Data Docs that shows it."""
    from datasets.batches import find_batch
    from datasets.validation import ValidationResult
    from pipelines import stages

    opened = open_workspace_of(workspace)
    found = find_batch(opened.open_lake(), batch)
    page = None
    with contextlib.suppress(OSError):  # a workspace that cannot be written still shows its batches
        page = stages.batch_docs(opened, found)
    if as_json:
        console.print_json(found.to_json() | {"docs": str(page) if page else None})
        return
    facts = {**found.to_json(), "validation": None, "dropped_columns": ", ".join(found.dropped_columns)}
    console.print_account(f"Batch {found.batch_id}", {k: v for k, v in facts.items() if k != "batch_id"})
    if found.validation is not None:
        print_validation(ValidationResult.from_json(found.validation), page)


@command(batches_app, "release")
def batches_release(
    batch: Annotated[str, typer.Argument(help="A held batch.")],
    workspace: WorkspaceOption = Path(),
    reviewer: Annotated[str, typer.Option(help="Who lets it in.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Let a held batch into the lake although its suite failed."""
    from datasets.batches import release_batch

    _settle(workspace, release_batch, batch, reviewer, as_json)


@command(batches_app, "reject")
def batches_reject(
    batch: Annotated[str, typer.Argument(help="A held batch.")],
    workspace: WorkspaceOption = Path(),
    reviewer: Annotated[str, typer.Option(help="Who turns it away.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Send every row of a held batch to quarantine."""
    from datasets.batches import reject_batch

    _settle(workspace, reject_batch, batch, reviewer, as_json)


def _settle(workspace: Path, settle: Callable[..., Any], batch: str, reviewer: str, as_json: bool) -> None:
    opened = open_workspace_of(workspace)
    lake = opened.open_lake()
    settled = settle(lake, batch, by=reviewer or user_name(), at=datetime.now(UTC))
    opened.refresh_catalog(lake)
    if as_json:
        console.print_json({**settled.to_json(), "validation": None})
        return
    counts = settled.counts
    console.print_account(
        f"Batch {settled.status}",
        {"batch": settled.batch_id, "in the lake": f"{counts.n_lake:,}", "quarantined": f"{counts.n_quarantined:,}"},
    )


def print_validation(result: ValidationResult, page: Path | None) -> None:
    broken = {"hold": "FAILED", "warn": "warning"}
    rows = [
        ["ok" if r.success else broken[r.severity], f"{r.column} {r.says}".strip(), "" if r.success else r.sentence]
        for r in result.records
    ]
    console.print_table(
        f"{len(result.records)} expectations on {result.n_rows:,} rows in {result.seconds:.1f} s",
        ["", "expected", "found"],
        sorted(rows, key=lambda row: row[0] == "ok"),
    )
    for sentence in result.not_judged:
        console.warn(f"not judged: {sentence}")
    if page is not None:
        console.print_account("Data Docs", {"page": page})
