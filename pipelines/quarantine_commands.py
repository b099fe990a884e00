"""The commands `quarantine ...`: what did not fit, why, and as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.command import AsOfOption, JsonOption, WorkspaceOption, command, open_workspace_of

quarantine_app = typer.Typer(
    help="Rows that did not fit, with their reasons.", no_args_is_help=True, rich_markup_mode=None
)

BatchOption = Annotated[str | None, typer.Option("--batch", help="Id of a batch, or the beginning of it.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="How the reason begins, as `list` shows it.")]


@quarantine_app.callback()
def _quarantine() -> None:
    """Rows that did not fit, with their reasons."""


@command(quarantine_app, "list")
def quarantine_list(
    workspace: WorkspaceOption = Path(), batch: BatchOption = None, as_json: JsonOption = False
) -> None:
    """What is in quarantine, by reason."""
    from datasets.quarantine import list_reasons

    groups = list_reasons(open_workspace_of(workspace).open_lake(), batch=batch)
    if as_json:
        console.print_json({"n_rows": sum(g.n_rows for g in groups), "reasons": [g.to_json() for g in groups]})
        return
    rows = [
        [f"{g.n_rows:,}", g.reason, f"{g.first_at:%Y-%m-%d %H:%M}", f"{g.last_at:%Y-%m-%d %H:%M}", g.example]
        for g in groups
    ]
    total = f"{sum(g.n_rows for g in groups):,} rows in quarantine"
    console.print_table(total, ["rows", "reason", "first (UTC)", "last (UTC)", "example"], rows, right=["rows"])


@command(quarantine_app, "show")
def quarantine_show(
    workspace: WorkspaceOption = Path(),
    reason: ReasonOption = None,
    batch: BatchOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows at most.")] = 20,
    unseal: Annotated[bool, typer.Option("--unseal", help="Open sealed text with the privacy key.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Quarantined rows as they were written."""
    from datasets.quarantine import show_rows

    lake = open_workspace_of(workspace).open_lake()
    key = lake.privacy_key() if unseal else None
    rows = show_rows(lake, reason=reason, batch=batch, limit=limit, key=key)
    if as_json:
        console.print_json({"rows": [row.to_json() for row in rows]})
        return
    for row in rows:
        text = "(sealed: it could not be redacted; --unseal opens it)" if row.is_sealed else row.raw
        console.print_account(
            f"{row.source}:{row.source_line}",
            {"reason": row.reason, "episode": row.episode_id, "batch": row.batch_id, "text": text},
        )
    if not rows:
        console.print_account("Nothing in quarantine fits that", {"see": "offline-dqn quarantine list"})


@command(quarantine_app, "replay")
def quarantine_replay(
    workspace: WorkspaceOption = Path(),
    reason: ReasonOption = None,
    batch: BatchOption = None,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge quarantined rows again, by the contract as it is now; those that fit enter the lake, once."""
    from pipelines import stages

    reports = stages.replay_quarantined(open_workspace_of(workspace, as_of), reason=reason, batch=batch)
    if as_json:
        console.print_json({"replayed": [report.to_json() for report in reports]})
        return
    for report in reports:
        counts = report.batch.counts if report.batch else None
        console.print_account(
            f"Judged again: {report.kind}",
            {
                "batch": report.batch.batch_id if report.batch else None,
                "rows": f"{report.n_tried:,}",
                "in the lake": f"{counts.n_lake:,}" if counts else "0",
                "there already": f"{counts.n_duplicates:,}" if counts else "0",
                "still do not fit": f"{report.n_left:,}",
                "passed over": f"{report.n_passed_over:,}, which no contract can mend, or of rejected batches",
            },
        )
    if not reports:
        console.print_account("Nothing in quarantine fits that", {"see": "offline-dqn quarantine list"})
