"""A PostgreSQL server of a test's own, from Debian's packages: on loopback, with a password, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

PASSWORD = "s3cret-of-the-server"
"""Looked for in everything that is printed or written."""


def program(name: str) -> Path:
    """One of the server's programs; Debian keeps them off PATH. Skips the test where there is none."""
    newest_first = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    found = [*newest_first, *filter(None, [shutil.which(name)])]
    if not found:
        pytest.skip(f"no {name} of PostgreSQL under /usr/lib/postgresql or on PATH")
    return Path(found[0])


@dataclass
class PostgresServer:
    """A server that can be taken away and brought back.

    Attributes:
        port: on 127.0.0.1; the same after it came back.
    """

    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Starts it and waits until it answers."""
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [program("postgres"), "-D", self.folder / "data", "-p", str(self.port)],
            stdout=log, stderr=log, **_as_user(),
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.1)

    def stop(self) -> None:
        """Takes it away at once, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown
            self._process.wait(30)
            self._process = None

    def url(self, database: str, scheme: str = "postgresql") -> str:
        """Where a database is, password included."""
        return f"{scheme}://owner:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """A new, empty database; returns where it is."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def rows(self, database: str, query: str) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with psycopg.connect(self.url(database)) as connection:
            return connection.execute(query).fetchall()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server. PostgreSQL refuses to run as root, so there it runs as `postgres` or `nobody`."""
    initdb = program("initdb")
    folder = Path(tempfile.mkdtemp(prefix="offline-dqn-postgres-"))
    server = PostgresServer(folder, _free_port())
    try:
        (folder / "password").write_text(PASSWORD)
        user = _as_user()
        if user:
            for path in (folder, folder / "password"):
                os.chown(path, user["user"], user["group"])
        options = ("--username=owner", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--no-sync")
        subprocess.run([initdb, "-D", folder / "data", *options, "--locale=C.UTF-8"],
                       check=True, capture_output=True, **user)  # fmt: skip
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write("listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n")
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _as_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
