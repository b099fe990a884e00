"""The ends of a server's own logs, newest line first: what it remembers again when it starts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pydantic_core

from datasets.contract import Contract
from pipelines.serving.decision_log import served_files
from pipelines.serving.logged_times import read_time
from pipelines.serving.open_decisions import OpenDecisions
from pipelines.serving.outcome import OutcomeLog, value_at

_BLOCK = 1 << 20


def newest_blocks(directory: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of a server's log, block by block from its end; within a block the newest row comes first.

    What is no whole JSON object is passed over: it was never answered, or ingest tells of it.
    """
    files = served_files(directory) if directory.is_dir() else []
    for _, _, path in reversed(files):
        for lines in _blocks_from_the_end(path):
            rows = (_row(line) for line in reversed(lines))
            yield [row for row in rows if row is not None]


def remembered(contract: Contract, steps: Path, outcomes: Path, *, capacity: int) -> OpenDecisions:
    """The decisions and outcomes in a server's logs that may still matter.

    Args:
        steps, outcomes: folders of the two logs.
        capacity: decisions that are remembered at most.
    """
    memory = OpenDecisions(contract, capacity=capacity)
    found, is_all = _newest_decisions(contract, steps, memory)
    for decision_id, at in reversed(found):
        memory.decided(decision_id, at)
    if not found:
        return memory
    oldest = min(at for _, at in found)
    if not is_all:
        memory.not_all_known_before(oldest)
    log, told = OutcomeLog(contract), []
    for block in newest_blocks(outcomes):
        rows = [outcome for outcome in map(log.read, block) if outcome is not None]
        told += rows
        if rows and max(outcome.at for outcome in rows) < oldest:
            break
    for outcome in reversed(told):
        memory.told(outcome)
    return memory


def _newest_decisions(
    contract: Contract, steps: Path, memory: OpenDecisions
) -> tuple[list[tuple[str, datetime]], bool]:
    """The newest decisions, newest first, and whether all of those are among them whose outcomes may still count."""
    id_at, time_at = (tuple(contract.log_paths(name)[0].split(".")) for name in ("decision_id", "timestamp"))
    found: list[tuple[str, datetime]] = []
    newest: datetime | None = None
    for block in newest_blocks(steps):
        dated = ((value_at(row, id_at), read_time(contract, value_at(row, time_at))) for row in block)
        rows = [(str(name), at) for name, at in dated if name is not None and at is not None]
        if not rows:
            continue
        last = max(at for _, at in rows)
        newest = last if newest is None else max(newest, last)
        if last < newest - memory.horizon:
            return found, True
        found += rows
        if len(found) > memory.capacity:
            return found[: memory.capacity], False
    return found, True


def _blocks_from_the_end(path: Path) -> Iterator[list[bytes]]:
    """The lines of a file in blocks from its end, each block in the order of the file."""
    with path.open("rb") as file:
        stop, rest = file.seek(0, 2), b""
        while stop > 0:
            start = max(0, stop - _BLOCK)
            file.seek(start)
            content = file.read(stop - start) + rest
            cut = content.find(b"\n") + 1 if start else 0
            rest, whole = content[:cut], content[cut:]
            if start and not cut:
                rest, whole = content, b""
            if whole:
                yield whole.split(b"\n")
            stop = start


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = pydantic_core.from_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
