"""The commands `tracing test` and `tracing of`: whether the collector takes spans, and which trace a decision has."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.command import FAILED, JsonOption, WorkspaceOption, command, open_workspace_of

tracing_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Traces of nights and decisions: test, of DECISION_ID."
)


@command(tracing_app, "test")
def send_test(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Send one span to the collector, now."""
    from pipelines.tracing.flows import begin_trace

    opened = open_workspace_of(workspace)
    endpoint = opened.config.tracing.endpoint
    if endpoint is None:
        console.fail("no collector is configured: name one, such as endpoint = \"http://127.0.0.1:4318/v1/traces\" "
                     "under [tracing] in offline_dqn.toml")  # fmt: skip
        raise typer.Exit(FAILED)
    trace = begin_trace(opened, "test", datetime.now(UTC).isoformat())
    problems = trace.end({})
    if as_json:
        console.print_json({"endpoint": endpoint, "trace_id": trace.trace_id, "problems": list(problems)})
    elif not problems:
        console.print_account("The collector took a span", {"endpoint": endpoint, "trace": trace.trace_id})
    else:
        console.fail("; ".join(problems))
    if problems:
        raise typer.Exit(FAILED)


@command(tracing_app, "of")
def trace_of(
    decision_id: Annotated[str, typer.Argument(help="As the answer and the log have it.")],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """The trace that a decision has, to be looked up where the collector keeps them."""
    from pipelines.tracing.decisions import decision_trace_id, is_traced

    opened = open_workspace_of(workspace)
    config = opened.config.tracing
    traced = config.endpoint is not None and is_traced(config.decisions_share, decision_id)
    trace = f"{decision_trace_id(opened.contract.name, decision_id):032x}"
    if as_json:
        console.print_json({"decision_id": decision_id, "trace_id": trace, "traced": traced})
        return
    says = "yes" if traced else f"no: decisions_share is {config.decisions_share:g}, and this id is not among these"
    console.print_account(trace, {"decision": decision_id, "traced": says})
