"""A machine of its own: takes every log of a folder into a lake in a bucket, one by one. Started by tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.datasets.builders import lake_at, suite_says, take_in


def main(address: str, folder: Path) -> None:
    """Takes the logs in."""
    suite_says(pytest.MonkeyPatch(), True)
    for log in sorted(folder.glob("*.jsonl")):
        take_in(lake_at(folder, address=address), log)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
