"""Tells Sentry of failures. No failure in here is a failure of who tells, and nobody waits long.

The client is one of our own: no integration is on, so nothing but our events is sent, and what Prefect or a host
application tells Sentry stays theirs.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasets.errors import OfflineDqnError
from pipelines.sentry.config import SentryConfig
from pipelines.sentry.events import failure_event, fingerprint

if TYPE_CHECKING:
    from pipelines.workspace import Workspace

_LOG = logging.getLogger("offline_dqn.serve")

_MAY_LEAVE = frozenset(
    {"event_id", "timestamp", "level", "platform", "exception", "tags", "fingerprint", "environment", "sdk"}
)
"""Parts of an event that are sent; whatever a version of the SDK adds to it is not."""


class SentryError(OfflineDqnError):
    """Sentry is configured and cannot be told."""


class Sentry:
    """A project that failures are told to.

    Args:
        config: with the name of a variable.
        problem: name of the contract, a tag of every failure.

    Raises:
        SentryError: the variable is not set or holds no DSN, or the extra is missing.

    Attributes:
        lost: why events were not taken, in Sentry's words.
    """

    def __init__(self, config: SentryConfig, problem: str) -> None:
        self._config, self._problem = config, problem
        self._told: dict[tuple[str, ...], float] = {}
        self.lost: list[str] = []
        name = config.dsn or ""
        dsn = os.environ.get(name, "")
        if not dsn:
            raise SentryError(f"[sentry] dsn names {name}, which is not set: export the project's DSN under that name.")
        try:
            from sentry_sdk import Client
            from sentry_sdk.transport import HttpTransport
            from sentry_sdk.utils import BadDsn
        except ModuleNotFoundError as error:
            raise SentryError(
                f'[sentry] needs {error.name}: pip install ".[sentry]" in the project\'s folder, or take the table '
                "out of offline_dqn.toml."
            ) from error
        lost = self.lost

        class Counting(HttpTransport):
            """Remembers what was not taken."""

            def on_dropped_event(self, reason: str) -> None:
                lost.append(reason)

        # What it logs of a server that is down would stand between a command and its reader.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        try:
            self._client = Client(
                dsn,
                transport=Counting,
                environment=config.environment,
                server_name="",
                default_integrations=False,
                auto_enabling_integrations=False,
                include_local_variables=False,
                include_source_context=False,
                send_default_pii=False,
                auto_session_tracking=False,
                send_client_reports=False,
                enable_metrics=False,
                max_breadcrumbs=0,
                shutdown_timeout=config.timeout_s,
                before_send=_only_what_may_leave,
            )
        except BadDsn:
            raise SentryError(
                f"{name} holds no DSN (its value is not shown: it holds a key). Sentry shows it under Settings, "
                "Projects, Client Keys."
            ) from None

    def tell(self, error: BaseException, **tags: object) -> None:
        """Queues a failure; one that was told a short while ago is not told again."""
        now, which = time.monotonic(), tuple(fingerprint(error))
        if now - self._told.get(which, -float("inf")) < self._config.repeat_s:
            return
        self._told[which] = now
        event: Any = failure_event(error, {"problem": self._problem, **tags})
        self._client.capture_event(event)

    def close(self) -> None:
        """Waits for what is queued, within the configured time."""
        self._client.close(timeout=self._config.timeout_s)


def _only_what_may_leave(event: Any, _: Mapping[str, Any]) -> Any:
    return {name: value for name, value in event.items() if name in _MAY_LEAVE}


def tell_sentry(workspace: Workspace, error: BaseException, **tags: object) -> str:
    """Tells of one failure, and waits until it is told or the time is up.

    Returns:
        Why it could not be told, in words; "" where it was, or where nothing is configured.
    """
    try:
        config = workspace.config.sentry
        if config.dsn is None:
            return ""
        sentry = Sentry(config, workspace.contract.name)
        sentry.tell(error, **tags)
        sentry.close()
    except SentryError as problem:
        return str(problem)
    except Exception as problem:  # the failure itself is the one to tell of
        return f"Sentry could not be told: {type(problem).__name__}"
    return f"Sentry did not take it: {', '.join(sorted(set(sentry.lost)))}" if sentry.lost else ""


class ServerFailures:
    """Failures of a server that goes on: told from a thread of their own; without a DSN, nobody is.

    Args:
        config: the `[sentry]` table.
        problem: name of the contract.
    """

    def __init__(self, config: SentryConfig, problem: str) -> None:
        self._sentry: Sentry | None = None
        try:
            self._sentry = Sentry(config, problem) if config.dsn is not None else None
        except SentryError as error:  # decisions go on without
            _LOG.warning("no failure is told to Sentry: %s", error)

    def tell(self, error: BaseException, **tags: object) -> None:
        """Queues a failure."""
        try:
            if self._sentry is not None:
                self._sentry.tell(error, **tags)
        except Exception as problem:
            _LOG.warning("a failure could not be told to Sentry: %s", type(problem).__name__)

    def close(self) -> None:
        """Waits a little for what is queued, and says in the server's log what Sentry did not take."""
        if self._sentry is not None:
            self._sentry.close()
            if self._sentry.lost:
                _LOG.warning("Sentry did not take every failure: %s", ", ".join(sorted(set(self._sentry.lost))))
