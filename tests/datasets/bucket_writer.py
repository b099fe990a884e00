"""A machine of its own: takes every log of a folder into a lake in a bucket, one by one. Started by tests."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

from datasets import lake as lakes
from datasets.lake_bucket import CommitConflictError, LakeBucket
from tests.datasets.builders import lake_at, suite_says, take_in


def main(address: str, folder: Path, *, lease: bool = True) -> None:
    """Takes the logs in, and says "conflict" for each commit that another machine was faster with.

    Args:
        lease: whether machines wait for each other; without it every commit is a race.
    """
    patch, real = pytest.MonkeyPatch(), LakeBucket.publish

    def publish(bucket: LakeBucket, entry: Any, before: Any) -> None:
        try:
            real(bucket, entry, before)
        except CommitConflictError:
            print("conflict", flush=True)
            raise

    suite_says(patch, True)
    patch.setattr(LakeBucket, "publish", publish)
    if not lease:
        patch.setattr(lakes, "leased", lambda *_, **__: contextlib.nullcontext())
        patch.setattr(lakes, "_ATTEMPTS", 100)
    for log in sorted(folder.glob("*.jsonl")):
        take_in(lake_at(folder, address=address), log)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), lease=sys.argv[3:] != ["no-lease"])
