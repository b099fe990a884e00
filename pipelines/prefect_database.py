"""Prefect's database in PostgreSQL: what Prefect leaves to its user where more than one server opens it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from datasets.errors import OfflineDqnError
from datasets.postgres import PostgresError, connect, has_table, hold_lock, try_lock

DATABASE_URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
"""Prefect's own environment variable; ours to read, to wait for what it names, and to say what is wrong with it."""

_MIGRATION_LOCK, _SCHEDULER_LOCK = 0x6F647170, 0x6F647173
_POSTGRES = ("postgres://", "postgresql://", "postgresql+asyncpg://")


class PrefectDatabaseError(OfflineDqnError):
    """Prefect's database cannot be used, or is another scheduler's."""


def check_database_url(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses an address that Prefect would fail on with a page that quotes it.

    Raises:
        PrefectDatabaseError: it is neither PostgreSQL nor SQLite.
    """
    address = environment.get(DATABASE_URL, "")
    if address and not address.startswith((*_POSTGRES, "sqlite+aiosqlite://")):
        raise PrefectDatabaseError(
            f"{DATABASE_URL} holds no address that Prefect understands (its value is not shown: it may hold a "
            "password). Wanted is postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE; unset, the database is a file in "
            "the workspace."
        )


def in_postgres(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Prefect's database is a PostgreSQL one."""
    return environment.get(DATABASE_URL, "").startswith(_POSTGRES)


def use_postgres() -> None:
    """Makes the address one for Prefect's driver, and its client patient while the database restarts.

    To be called before Prefect is imported, which reads its settings then.
    """
    check_database_url()
    if not in_postgres():
        return
    os.environ[DATABASE_URL] = f"postgresql+asyncpg://{os.environ[DATABASE_URL].partition('://')[2]}"
    os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")  # how its server says that nobody answers it


@contextmanager
def one_migration(wait_s: float) -> Iterator[None]:
    """Held while a server starts: it makes or changes the tables, and two at once would fail each other.

    Raises:
        PrefectDatabaseError: the database does not answer within `wait_s`.
    """
    if not in_postgres():
        yield
        return
    with _connected(wait_s) as connection:
        if has_table(connection, "registered_models"):  # both keep their version in a table of the same name
            raise PrefectDatabaseError(
                f"{DATABASE_URL} names MLflow's database, and Prefect needs one of its own: createdb prefect, and name "
                "that."
            )
        hold_lock(connection, _MIGRATION_LOCK)
        yield


@contextmanager
def one_scheduler(wait_s: float) -> Iterator[None]:
    """Held while a scheduler runs. Deployments go by name, so a second one's would take the place of the first one's.

    Raises:
        PrefectDatabaseError: another scheduler works on the database, or it does not answer within `wait_s`.
    """
    if not in_postgres():
        yield
        return
    with _connected(wait_s) as connection:
        if not try_lock(connection, _SCHEDULER_LOCK):
            raise PrefectDatabaseError(
                f"Another scheduler works on this database of Prefect's (the address in {DATABASE_URL}). Nights share "
                "one, schedulers do not: createdb another, and name that."
            )
        yield


def _connected(wait_s: float) -> Any:
    try:
        return connect(os.environ[DATABASE_URL], wait_s=wait_s)
    except PostgresError as error:
        raise PrefectDatabaseError(
            f"Prefect's database (the address in {DATABASE_URL}) cannot be used: {error}. Bring it back and run the "
            "same command: a night goes on from its last stage."
        ) from None
