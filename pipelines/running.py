"""Runs the nightly flow from a shell: Prefect's home in the workspace, its chatter silenced, progress shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx

from datasets.errors import OfflineDqnError
from pipelines import console
from pipelines.nights import NightRecord
from pipelines.workspace import Workspace


class ServerError(OfflineDqnError):
    """Prefect's server cannot be reached."""


def run_night(workspace: Workspace, *, force_train: bool) -> NightRecord:
    """One night through Prefect, against the server that is configured or a temporary one.

    Raises:
        OfflineDqnError: a stage failed; what earlier stages committed stays.
    """
    use_workspace_home(workspace.root)
    # Prefect reads its settings when it is imported.
    from pipelines.flow import Watch, nightly, watch

    with ExitStack() as shown:
        watching = _Watching(shown)
        token = watch.set(Watch(watching.stage, watching.on_rows, watching.on_metrics))
        as_of = workspace.given_as_of.isoformat() if workspace.given_as_of else None
        try:
            record = nightly(str(workspace.root), force_train, as_of)
        except (httpx.HTTPError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "API" not in str(error):
                raise
            raise ServerError(
                f"Prefect's server does not answer: {error}. "
                + (
                    f"PREFECT_API_URL is {os.environ['PREFECT_API_URL']}: start the server there, or unset it."
                    if "PREFECT_API_URL" in os.environ
                    else "The machine may be too busy to start a temporary one; run the night again."
                )
            ) from error
        finally:
            watch.reset(token)
    return NightRecord.from_json(record)


def use_workspace_home(root: Path) -> None:
    """Keeps Prefect's database in the workspace, unless a home or a server is configured."""
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(root / ".prefect"))


class _Watching:
    """One progress display at a time."""

    def __init__(self, shown: ExitStack) -> None:
        self._shown = shown
        self._n_rows = 0
        self.advance: console.Advance = lambda _, __=None: None

    def stage(self, name: str, total: int | None) -> None:
        self._shown.close()
        self.advance = self._shown.enter_context(console.progress(name, total, "updates"))

    def on_rows(self, n: int) -> None:
        self._n_rows += n
        self.advance(self._n_rows)

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.advance(step, metrics["updates_per_s"])
