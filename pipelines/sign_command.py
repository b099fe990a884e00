"""The command `sign`: a manifest beside log files, so that an ingest takes them as they were written."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.command import JsonOption, command


def add_sign_command(app: typer.Typer) -> None:
    """Registers `sign`, which needs no workspace: logs are signed where they are written."""

    @command(app, "sign")
    def sign(
        paths: Annotated[list[Path], typer.Argument(help="Log files or folders.")], as_json: JsonOption = False
    ) -> None:
        """Sign log files as they are now, under the key in OFFLINE_DQN_SIGNING_KEY."""
        from datasets.logfiles import find_log_files
        from datasets.signing import sign_logs, signing_key

        key = signing_key()
        logs = find_log_files(paths)
        manifests = sign_logs(logs, key, at=datetime.now(UTC))
        if as_json:
            console.print_json({"n_files": len(logs), "manifests": [str(path) for path in manifests]})
            return
        console.print_account("Signed", {"files": len(logs), "manifests": "\n".join(map(str, manifests))})
