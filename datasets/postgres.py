"""A connection to PostgreSQL for what its users cannot do themselves: wait until it answers, and hold a lock in it."""

from __future__ import annotations

import re
import time
from typing import Any

from datasets.errors import OfflineDqnError

_CONNECT_S = 5
_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 0.2


class PostgresError(OfflineDqnError):
    """The database does not answer, or does not let us in. Its text names host, user and database, and no password."""


def connect(address: str, *, wait_s: float) -> Any:
    """A connection that commits each statement; a database that does not answer is waited for.

    Args:
        address: postgresql://USER:PASSWORD@HOST/DATABASE, with or without the name of a driver behind its scheme.

    Raises:
        PostgresError: it does not answer within `wait_s`, refuses us, or the driver is not installed.
    """
    try:
        import psycopg
    except ModuleNotFoundError as error:
        raise PostgresError(
            'the driver of PostgreSQL is not installed: in the project\'s folder, pip install ".[postgres]"'
        ) from error
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", address)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return psycopg.connect(plain, connect_timeout=_CONNECT_S, autocommit=True)
        except psycopg.OperationalError as error:
            if _will_not_pass(error) or time.monotonic() >= deadline:
                raise PostgresError(cause(error)) from None
            time.sleep(_LOOK_EVERY_S)
        except psycopg.ProgrammingError:
            # Its text quotes the address.
            raise PostgresError("its address cannot be understood (not shown: it may hold a password)") from None


def hold_lock(connection: Any, key: int) -> None:
    """Waits for a lock that goes with the connection.

    It is asked for again and again: a statement that waits holds a snapshot, and the holder of the lock may be at work
    on an index for which all older snapshots must be gone.
    """
    while not try_lock(connection, key):
        time.sleep(_ASK_EVERY_S)


def try_lock(connection: Any, key: int) -> bool:
    """Takes a lock that goes with the connection, unless another holds it."""
    return bool(connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()[0])


def has_table(connection: Any, name: str) -> bool:
    """Whether the database holds a table of that name, in any schema that is searched."""
    return connection.execute("SELECT to_regclass(%s)", (name,)).fetchone()[0] is not None


def cause(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def _will_not_pass(error: Exception) -> bool:
    """Whether waiting is of no use: a wrong password, or no such database."""
    return bool(re.search(r'password authentication failed|database ".*" does not exist', str(error)))
