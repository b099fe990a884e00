"""The check of the lock that `make lint` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lock import problems

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def test_every_line_of_the_lock_is_an_exact_pin() -> None:
    assert problems(LOCK.read_text().splitlines(), {}) == []


@pytest.mark.parametrize(
    "line",
    ["numpy", "numpy>=2", "numpy==2.*", "torch==2.13.0+cpu", "x @ https://h/x.whl", "--index-url https://h", "-e ."],
)
def test_what_is_no_exact_pin_is_named(line: str) -> None:
    (said,) = problems(["# a comment", "", line], {})
    assert said.startswith(f"line 3: {line!r} is no exact pin")


def test_a_package_that_is_pinned_twice_or_installed_in_another_version_is_named() -> None:
    assert problems(["a-b==1.0", "A_b==1.0"], {}) == ["line 2: a-b is pinned twice"]
    (said,) = problems(["a==1.0"], {"a": "1.1"})
    assert said == "line 1: a is pinned at 1.0, and 1.1 is installed: make setup"
    assert problems(["torch==2.13.0"], {"torch": "2.13.0+cpu"}) == []  # the same version, built for this machine
