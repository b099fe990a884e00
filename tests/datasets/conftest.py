"""What the tests of the data path share."""

from __future__ import annotations

import os

import pytest

from tests.datasets import builders
from tests.datasets.builders import suite_says


@pytest.fixture(autouse=bool(os.environ.get("OFFLINE_DQN_LAKES_IN_BUCKET")))
def _lakes_in_bucket(bucket_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lake that tests make lies in a bucket, where that is asked for."""
    monkeypatch.setattr(builders, "ALL_IN_BUCKET", bucket_address)


@pytest.fixture
def quick_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that passes without starting a process."""
    suite_says(monkeypatch, True)
