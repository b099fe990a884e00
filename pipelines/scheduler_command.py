"""The command `scheduler`: Prefect's server and worker for one workspace, on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.command import WorkspaceOption, command, open_workspace_of


def add_scheduler_command(app: typer.Typer) -> None:
    """Registers the command."""

    @command(app, "scheduler")
    def scheduler(
        workspace: WorkspaceOption = Path(),
        port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI and the API, on loopback.")] = 4200,
    ) -> None:
        """Run nights by schedule: Prefect's server and worker, until Ctrl-C. (The policy server is `serve`.)"""
        from pipelines.prefect_database import use_postgres
        from pipelines.running import use_workspace_home
        from pipelines.scheduler import run_scheduler

        opened = open_workspace_of(workspace)
        use_workspace_home(opened.root, own_server=True)
        use_postgres()

        def ready(address: str, logs: Path) -> None:
            facts = {
                "workspace": opened.root.resolve(),
                "UI": address,
                "by schedule": "nightly 02:30 UTC, ingest hourly, calibrate on Sundays",
                "by hand": "promote, rollback, review (Deployments in the UI)",
                "logs": f"{logs}/scheduler-server.log, scheduler-worker.log",
                "stop": "Ctrl-C",
            }
            console.print_account("The scheduler runs", facts)

        run_scheduler(opened, port=port, on_step=console.err.print, on_ready=ready)
        console.err.print("stopped: nothing of it is left running")
