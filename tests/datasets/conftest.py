"""What the tests of the data path share."""

from __future__ import annotations

import pytest

from tests.datasets.builders import suite_says


@pytest.fixture
def quick_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that passes without starting a process."""
    suite_says(monkeypatch, True)
