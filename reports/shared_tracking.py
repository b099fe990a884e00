"""MLflow outside the workspace: a PostgreSQL database or a tracking server, whose address only the environment holds.

A workspace is known there by a name of its own, so that many share one database: two problems called `autoscaler`, and
a workspace with its restored copy, never meet.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from datasets.durable import write_durably
from datasets.errors import OfflineDqnError
from datasets.postgres import PostgresError, cause, connect, has_table, hold_lock

IDENTITY = ".tracking.json"
"""In the workspace: under which id it is known there, and where it lay when it was. In no backup."""

_ADVISORY_LOCK = 0x6F64716E  # "odqn"
_CONNECT_S = 5
_LOOK_EVERY_S = 1.0


class TrackingError(OfflineDqnError):
    """MLflow's database or server cannot be used. What was to be registered is not lost: its folder comes first."""


@dataclass(frozen=True)
class SharedTracking:
    """Where MLflow is, if not in the workspace.

    Attributes:
        variable: name of the environment variable that holds the address.
        wait_s: seconds that an operation waits for it to come back.
        root: of the workspace.
        releases: address of the releases where they lie in an object store; the workspaces that share them are one
            there. "" where they lie in the workspace.
    """

    variable: str
    wait_s: float
    root: Path
    releases: str = ""

    def address(self) -> str:
        """MLflow's tracking URI, ready for SQLAlchemy or for MLflow's client.

        Raises:
            TrackingError: the variable is not set, or holds neither; its value is not quoted.
        """
        given = os.environ.get(self.variable, "").strip()
        if not given:
            raise TrackingError(
                f"{self.variable} is not set, and [tracking] uri of {self.root / 'offline_dqn.toml'} names it: export "
                "the address of MLflow's database under that name, postgresql://USER:PASSWORD@HOST/DATABASE, or that "
                "of a tracking server, https://HOST."
            )
        scheme = given.partition("://")[0]
        if scheme in ("http", "https"):
            try:
                return _without_login(given)
            except ValueError:  # whose text quotes the address
                raise self._not_understood() from None
        if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
            return f"postgresql+psycopg://{given.partition('://')[2]}"
        raise self._not_understood()

    def _not_understood(self) -> TrackingError:
        return TrackingError(
            f"{self.variable} holds no address that is understood (its value is not shown: it may hold a password). "
            "Wanted is postgresql://USER:PASSWORD@HOST/DATABASE, or https://HOST of a tracking server."
        )

    def model_name(self, problem: str) -> str:
        """Under which this workspace's releases are registered there: the problem's name and an id.

        A workspace that was moved keeps its id. One that was copied gets one of its own, and is registered anew from
        its folders: the place that the id was given at still holds it then.
        """
        if self.releases:
            return f"{problem}-{hashlib.sha256(self.releases.encode()).hexdigest()[:12]}"
        path, here = self.root / IDENTITY, {"host": socket.gethostname(), "root": str(self.root.resolve())}
        known = _identity(path)
        there = Path(known.get("root", "")) / IDENTITY
        copied = (
            known.get("host") == here["host"]
            and known.get("root") != here["root"]
            and _identity(there).get("id") == known.get("id")
        )
        if "id" not in known or copied:
            known = {"id": uuid.uuid4().hex[:12], **here}
            write_durably(path, json.dumps(known))
        elif known != {"id": known["id"], **here}:
            known = {"id": known["id"], **here}
            write_durably(path, json.dumps(known))
        return f"{problem}-{known['id']}"

    @contextmanager
    def ready(self, address: str) -> Iterator[None]:
        """Held while MLflow's tables are looked for or made: two that make them at once would both fail.

        Raises:
            TrackingError: it does not answer within `wait_s`.
        """
        if not address.startswith("postgresql"):
            self.wait_for(address)
            yield
            return
        with self._connection(address) as connection:
            if has_table(connection, "flow_run"):  # both keep their version in a table of the same name
                raise TrackingError(
                    f"{self.variable} names Prefect's database, and MLflow needs one of its own: createdb mlflow, and "
                    "name that."
                )
            hold_lock(connection, _ADVISORY_LOCK)
            yield

    def wait_for(self, address: str) -> None:
        """Waits until it answers.

        Raises:
            TrackingError: it does not within `wait_s`, or refuses us.
        """
        if address.startswith("postgresql"):
            self._connection(address).close()
            return
        import httpx

        deadline = time.monotonic() + self.wait_s
        while True:
            try:
                if httpx.get(f"{address.rstrip('/')}/health", timeout=_CONNECT_S).status_code < 500:
                    return
                why = "it answers with an error of its own"
            except httpx.HTTPError as error:
                why = type(error).__name__
            if time.monotonic() >= deadline:
                raise TrackingError(self._away(why))
            time.sleep(_LOOK_EVERY_S)

    def _connection(self, address: str) -> Any:
        try:
            return connect(address, wait_s=self.wait_s)
        except PostgresError as error:
            raise TrackingError(self._away(str(error))) from None

    def failed(self, error: Exception) -> TrackingError:
        """What to say of an error out of MLflow or below it."""
        return TrackingError(self._away(cause(error)))

    def _away(self, why: str) -> str:
        return (
            f"MLflow's registry (the address in {self.variable}) cannot be used: {why}. Nothing is lost: releases are "
            "folders, and what MLflow did not hear of it is told next time. Bring it back and run the same command; "
            f"it waits for {self.wait_s:g} s ([tracking] wait_s). A rollback works without it."
        )


def _identity(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _without_login(address: str) -> str:
    """The address of a server; a user and password in it go where MLflow's client looks for them, and no further."""
    parts = urlsplit(address)
    login, _, place = parts.netloc.rpartition("@")
    if login:
        user, _, password = login.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = (
            unquote(user),
            unquote(password),
        )
    return parts._replace(netloc=place).geturl()
