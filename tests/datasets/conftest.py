"""What the tests of the data path share."""

from __future__ import annotations

import inspect
import os

import pytest

from tests.datasets import builders
from tests.datasets.builders import suite_says

_IN_BUCKET = bool(os.environ.get("OFFLINE_DQN_LAKES_IN_BUCKET"))

_OF_A_FOLDER = ("journal", "history", "finish_commit", ".rename(", "write_journal", "vacuum(")
"""What a test speaks of that looks into how a lake in a folder commits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is true of folders alone, where every lake lies in a bucket."""
    for item in items if _IN_BUCKET else []:
        if not isinstance(item, pytest.Function) or item.path.name == "test_lake_bucket.py":
            continue
        if any(word in inspect.getsource(item.function) for word in _OF_A_FOLDER):
            item.add_marker(pytest.mark.skip(reason="of a lake in a folder"))


@pytest.fixture(autouse=_IN_BUCKET)
def _lakes_in_bucket(bucket_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lake that tests make lies in a bucket, where that is asked for."""
    monkeypatch.setattr(builders, "ALL_IN_BUCKET", bucket_address)


@pytest.fixture
def quick_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that passes without starting a process."""
    suite_says(monkeypatch, True)
