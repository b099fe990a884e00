"""What a night leaves in Prefect's UI: its table, its verdict in words, and a state that says how it ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from pipelines.markdown import as_markdown
from pipelines.nights import COLUMNS, NightRecord
from pipelines.scheduler_app import PAGES_URL
from pipelines.workspace import Workspace


def show_night(workspace: Workspace, record: NightRecord) -> None:
    """The night as Prefect artefacts."""
    name = "".join(c if c.isalnum() else "-" for c in workspace.contract.name.lower()).strip("-") or "workspace"
    create_table_artifact(
        table=[dict(zip(COLUMNS, record.row(), strict=True))],
        key=f"night-{name}",
        description=f"The night of {record.as_of[:10]} in {workspace.root.name}",
    )
    create_markdown_artifact(
        markdown=verdict_of(workspace, record), key=f"verdict-{name}", description="What the night decided"
    )


def verdict_of(workspace: Workspace, record: NightRecord) -> str:
    """What the night decided, in Markdown; what came from logs is no markup."""
    parts = [f"**{record.gate or record.decision}**: {as_markdown(record.reason)}"]
    if record.warnings:
        parts.append("\n".join(f"- {as_markdown(warning)}" for warning in record.warnings))
    if record.resumed:
        parts.append(as_markdown(record.resumed))
    if record.review:
        parts.append(f"Review: {as_markdown(record.review)}")
    if record.report:
        parts.append(f"Report: {page_link(workspace, record.report)}")
    if record.drift_page:
        parts.append(f"Drift: {page_link(workspace, record.drift_page)}")
    return "\n\n".join(parts)


def page_link(workspace: Workspace, page: str | Path) -> str:
    """Where a page of the workspace lies, and a link to it where the scheduler shows it.

    Args:
        page: path relative to the workspace, or absolute.
    """
    path, base = workspace.root / page, os.environ.get(PAGES_URL)
    if not base:
        return f"`{path}`"
    # Shown as releases/N wherever [store] has them.
    inside = path.relative_to(workspace.releases_path) if path.is_relative_to(workspace.releases_path) else None
    shown = path.relative_to(workspace.root) if inside is None else f"releases/{inside}"
    return f"[{shown}]({base}/{shown}) (`{path}`)"


def ended(record: NightRecord) -> State[Any]:
    """The state that a list of runs shows: in one or a few words how the night ended, and why beside it."""
    name = {
        "passed": "Gate passed",
        "refused": "Gate refused",
        "not read": "Gate not read",
        "not trained": "Not trained",
    }.get(record.gate or "")
    if name is None:
        name = "Batch held" if record.decision == "batch held" else "Champion kept"
    return Completed(name=name, message=record.reason[:1000], data=record.to_json())
