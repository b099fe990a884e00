"""The flows beside the night: hourly ingest, weekly calibration, and promotion and rollback by hand."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from pipelines import bound, promoting
from pipelines.engines import spreading
from pipelines.flow import ingest_logs
from pipelines.markdown import as_markdown
from pipelines.metrics.exposition import export
from pipelines.night_record import Ingested
from pipelines.notify.night import Found, check_now, of_broken_calibration, of_failed_ingest
from pipelines.notify.telling import tell
from pipelines.sentry.telling import tell_sentry
from pipelines.tracing.flows import flow_trace
from pipelines.training import StageError
from pipelines.untold import warn_of_untold
from pipelines.workspace import Workspace, open_workspace
from reports.history import Promotion

PROJECT = Path(__file__).resolve().parents[1]

WorkspaceFolder = Annotated[str, Field(description="Folder of the workspace")]
Reviewer = Annotated[str, Field(min_length=1, description="Your name: who answers for it")]


@flow(name="ingest", flow_run_name="ingest")
def ingest(workspace: WorkspaceFolder) -> dict[str, Any]:
    """New logs into the lake; whoever has to hear of a held batch or of nights that do not come is told.

    Returns:
        What was taken in, as JSON values, with what could not be told under `untold`.
    """
    opened = open_workspace(Path(workspace))
    try:
        with (
            flow_trace(opened, "ingest", flow_run.id) as trace,
            spreading(opened.config.engine, opened.root),
        ):
            found = Ingested.of(ingest_logs(opened))
            trace.found(found.to_json())
    except Exception as error:
        untold = _tell(opened, of_failed_ingest(error))
        warn_of_untold(*untold, tell_sentry(opened, error, stage="ingest", prefect_run=flow_run.id))
        raise
    untold = _tell(opened, check_now(opened))
    name = {"lake": f"{found.n_in:,} rows", "held": "Batch held"}.get(found.status, "Nothing new")
    message = "; ".join([*found.warnings, *untold])[:1000] or f"{found.n_in:,} rows in"
    data = {**found.to_json(), "untold": list(untold)}
    return Completed(name=name, message=message, data=data)  # type: ignore[return-value]  # Prefect unpacks the data


def _tell(workspace: Workspace, found: Found) -> tuple[str, ...]:
    return tell(workspace, found.notices, found.looked_for)


@flow(name="calibrate", flow_run_name="calibrate with {logs} logs a cell")
def calibrate(
    workspace: WorkspaceFolder,
    logs: Annotated[int, Field(ge=1, description="Logs per cell; those judged before are kept")] = 50,
) -> dict[str, Any]:
    """How often gate and drift check err, as `make calibrate` measures it; into `calibration/` of the workspace.

    What was judged with the same code before costs nothing again.

    Raises:
        StageError: the code is installed without its benchmarks, or they failed.
    """
    opened = open_workspace(Path(workspace))
    if not (PROJECT / "tests" / "benchmarks" / "calibrate.py").is_file():
        raise StageError(f"{PROJECT} holds no tests/benchmarks: calibrate runs from a checkout of the project.")
    folder = opened.root.resolve() / "calibration"
    (folder / "docs").mkdir(parents=True, exist_ok=True)
    (folder / "reports").mkdir(exist_ok=True)
    options = ("--logs", logs, *_engine_options(opened), "--output", folder, "--cache", folder / "judged")
    command = ["nice", *bound.command("tests.benchmarks.calibrate", *options)]
    ran = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ran.returncode:
        raise StageError(f"The calibration failed: {(ran.stdout.strip().splitlines() or ['no output'])[-1]}")
    rows = json.loads((folder / "docs" / "calibration.json").read_text())
    promises = [row for row in rows if row["kind"] == "promise"]
    broken = [f"{row['work']} in {row['world']}: {row['observed']} where {row['level']} was promised"
              for row in promises if not row["met"]]  # fmt: skip
    create_table_artifact(table=rows, key="calibration", description="Error rates where the truth is known")
    untold = _tell(opened, of_broken_calibration(broken))
    name = "Promises broken" if broken else "Promises kept"
    message = "; ".join([*broken, *untold])[:1000] or f"{len(promises)} promises hold"
    data = {"n_promises": len(promises), "broken": broken, "untold": list(untold)}
    return Completed(name=name, message=message, data=data)  # type: ignore[return-value]  # Prefect unpacks the data


def _engine_options(workspace: Workspace) -> tuple[object, ...]:
    """Its logs are judged by `[engine]`; in place of threads, of which Python would run one at a time, by processes."""
    engine = workspace.config.engine
    if engine.kind == "threads":
        return ("--workers", engine.n_local)
    where = ("--workers", engine.n_local) if engine.address is None else ("--address", engine.address)
    return ("--engine", engine.kind, *where)


@flow(name="promote", flow_run_name="promote release {release}")
def promote(
    workspace: WorkspaceFolder,
    release: Annotated[int, Field(ge=0, description="Number of the release")],
    reviewer: Reviewer,
    note: Annotated[str, Field(description="Why; an override needs one")] = "",
    override: Annotated[
        bool, Field(description="Although nights differ, a budget is spent, or it was rejected")
    ] = False,
) -> dict[str, Any]:
    """As `offline-dqn promote`.

    Raises:
        RegistryError: it is refused; says why, and nothing has changed.
    """
    opened = open_workspace(Path(workspace))
    with flow_trace(opened, "promote", flow_run.id, release=release, override=override):
        promotion, fresh = promoting.promote(opened, release, reviewer=reviewer, note=note, override=override)
    return _changed(opened, promotion, fresh)


@flow(name="rollback", flow_run_name="rollback")
def rollback(
    workspace: WorkspaceFolder,
    reviewer: Reviewer,
    to: Annotated[int | None, Field(ge=0, description="A champion before this one; empty: the last")] = None,
    note: Annotated[str, Field(description="Why")] = "",
) -> dict[str, Any]:
    """As `offline-dqn rollback`.

    Raises:
        RegistryError: there is nothing to go back to, or not to that one; nothing has changed.
    """
    opened = open_workspace(Path(workspace))
    with flow_trace(opened, "rollback", flow_run.id) as trace:
        promotion = opened.registry.rollback(to, reviewer=reviewer, note=note)
        trace.found({"release": promotion.to_release})
    opened.refresh_catalog(opened.open_lake())
    return _changed(opened, promotion)


def _changed(workspace: Workspace, promotion: Promotion, freshness: str | None = None) -> dict[str, Any]:
    export(workspace)  # what fails of it the next night repeats; the release acts all the same
    to, by = promotion.to_release, promotion.reviewer
    before = "the logging policy" if promotion.from_release is None else f"release {promotion.from_release}"
    sentence = f"Release {to} is champion instead of {before}: {promotion.action} by {by}."
    why = as_markdown(" ".join(text for text in (promotion.note, freshness) if text))
    undo = f"Undo: `{promotion.undo}`, or the deployment {promotion.undo.split()[1]}." if promotion.undo else ""
    done = promotion.to_json() | ({} if freshness is None else {"freshness": freshness})
    create_markdown_artifact(
        markdown=f"**{as_markdown(sentence)}** {why}\n\n{undo}",
        key="champion",
        description=f"{workspace.contract.name}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    return Completed(message=sentence, data=done)  # type: ignore[return-value]  # Prefect unpacks the data
