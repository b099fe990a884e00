"""Runs the nightly flow from a shell: Prefect's home in the workspace, its chatter silenced, progress shown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipelines import console
from pipelines.nights import NightRecord, read_nights
from pipelines.prefect_database import DATABASE_URL, in_postgres, use_postgres
from pipelines.prefect_server import ServerError, api_url, free_port, prefect_server
from pipelines.workspace import Workspace


def run_night(workspace: Workspace, *, force_train: bool, afresh: bool = False) -> NightRecord:
    """One night through Prefect, against the server that is configured or a temporary one.

    Raises:
        OfflineDqnError: a stage failed; what earlier stages committed stays.
    """
    use_workspace_home(workspace.root)
    use_postgres()
    n_before = len(read_nights(workspace.nights_path))
    with _some_server(), ExitStack() as shown:
        # Prefect reads its settings when it is imported.
        from pipelines.flow import Watch, nightly, watch

        watching = _Watching(shown)
        token = watch.set(Watch(watching.stage, watching.on_rows, watching.on_metrics))
        as_of = workspace.given_as_of.isoformat() if workspace.given_as_of else None
        try:
            record: Any = nightly(str(workspace.root), force_train, as_of, afresh)
        except (httpx.HTTPError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "API" not in str(error):
                raise
            recorded = read_nights(workspace.nights_path)[n_before:]
            if recorded:  # the night is complete; only Prefect could not be told
                return _unseen(recorded[-1], error)
            raise ServerError(
                f"Prefect's server does not answer: {type(error).__name__}. "
                + (
                    f"PREFECT_API_URL is {_without_secret(os.environ['PREFECT_API_URL'])}: start the server there, or "
                    "unset it."
                    if "PREFECT_API_URL" in os.environ
                    else f"Its database (the address in {DATABASE_URL}) may be away: bring it back and run the night "
                    "again, it goes on from its last stage."
                    if in_postgres()
                    else "The machine may be too busy; run the night again, it goes on from there."
                )
            ) from error
        finally:
            watch.reset(token)
    return NightRecord.from_json(record)


def _unseen(record: NightRecord, error: Exception) -> NightRecord:
    unseen = (
        f"Prefect's server went away before the night's end ({type(error).__name__}): it does not show this night, "
        "which is complete. Look at the server before the next one."
    )
    return replace(record, warnings=[*record.warnings, unseen])


@contextmanager
def _some_server() -> Iterator[None]:
    """The server that is configured; where there is none, one for this run alone, which ends with this process."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_HOME,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        get_current_settings,
        temporary_settings,
    )

    if PREFECT_API_URL.value():
        yield
        return
    port, home = free_port(), Path(PREFECT_HOME.value())
    settings = {
        **get_current_settings().to_environment_variables(exclude_unset=True),
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
    }
    timeout_s = float(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    with (
        prefect_server(
            "prefect.server.api.server:create_app",
            port=port,
            log_path=home / "temporary-server.log",
            timeout_s=timeout_s,
            settings=settings,
        ),
        temporary_settings({PREFECT_API_URL: api_url(port)}),
    ):
        yield


def _without_secret(url: str) -> str:
    """An address without the user and password that may stand in it."""
    return urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()


def use_workspace_home(root: Path, *, own_server: bool = False) -> None:
    """Keeps Prefect's database in the workspace, unless a home or a server is configured.

    Args:
        own_server: a server is about to be started here, whatever is configured.
    """
    if own_server or "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(root.resolve() / ".prefect"))


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
