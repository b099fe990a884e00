"""The command `sentry test`: whether failures reach Sentry."""

from __future__ import annotations

from pathlib import Path

import typer

from datasets.errors import OfflineDqnError
from pipelines import console
from pipelines.command import FAILED, JsonOption, WorkspaceOption, command, open_workspace_of

sentry_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Failures told to Sentry: test.")


class TestFailureError(OfflineDqnError):
    """No failure: sent by `offline-dqn sentry test`."""


@command(sentry_app, "test")
def send_test(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Tell Sentry of a failure that is none, now."""
    from pipelines.sentry.telling import tell_sentry

    opened = open_workspace_of(workspace)
    if opened.config.sentry.dsn is None:
        problem = 'no project is configured: dsn = "OFFLINE_DQN_SENTRY_DSN" under [sentry] names the variable'
    else:
        problem = tell_sentry(opened, TestFailureError("Nothing is wrong; this is how a failure reaches Sentry."))
    if as_json:
        console.print_json({"told": not problem, "problem": problem})
    elif problem:
        console.fail(problem)
    else:
        console.out.print("Sentry took it.")
    if problem:
        raise typer.Exit(FAILED)
