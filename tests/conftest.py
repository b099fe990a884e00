"""What holds for every test: nothing reaches out, and in CI nothing is skipped for want of a program."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.object_store_server import BUCKET, object_store_server

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.fsync = lambda _: None
"""What is flushed survives a power cut, which no test makes: a third of a small ingest is the wait for it.

A test of the order of flushes, or of one that fails, puts its own in the place of this one; commands that run as
processes of their own flush.
"""

_for_want_of_a_program: list[str] = []


@pytest.fixture(scope="session")
def object_store_environment() -> Iterator[dict[str, str]]:
    """The variables with which a process reaches an S3 server on loopback; one server for all tests of a run."""
    with object_store_server() as environment:
        yield environment


@pytest.fixture
def bucket_address(object_store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An address on that server below which nothing is stored, reached from this process and those it starts."""
    for name, value in object_store_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers tests that a missing system program has skipped; their reasons end in "on PATH"."""
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if reason.endswith("on PATH"):
        _for_want_of_a_program.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Such a skip is a failure where the programs are required."""
    if _for_want_of_a_program and os.environ.get("OFFLINE_DQN_PROGRAMS_REQUIRED"):
        print("\nSkipped, though system programs are required here:", *_for_want_of_a_program, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
