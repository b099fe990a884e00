"""Log files that grow, read from where one stopped: only whole lines, and a half-written last one waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PART = 1 << 24
"""Bytes that are read at a time."""
_TAIL = 1 << 20
"""Bytes at the end of a file in which its last line is looked for."""


def log_files(folder: Path) -> list[Path]:
    """The JSON Lines of a log folder, in the order of their names."""
    return sorted(path for path in folder.glob("*.jsonl") if path.is_file())


def whole_lines(path: Path, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Where each line from `offset` on begins and ends in the file, and the line; a last one without an end is left.

    A file that is shorter than `offset` was cut or replaced by somebody else, and is read from its beginning.
    """
    with path.open("rb") as file:
        file.seek(0, 2)
        place = offset if file.tell() >= offset else 0
        file.seek(place)
        left = b""
        while part := file.read(_PART):
            *lines, left = (left + part).split(b"\n")
            for line in lines:
                yield place, place + len(line) + 1, line
                place += len(line) + 1


def parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def instant(value: object) -> float | None:
    """Seconds since 1970 of an ISO timestamp; None where it is none. Without a zone it is UTC, as servers write it."""
    try:
        at = datetime.fromisoformat(value)  # type: ignore[arg-type]  # anything but text is refused below
    except (TypeError, ValueError):
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def last_instant(path: Path) -> float | None:
    """Seconds since 1970 of the last line that has a timestamp; None where the end of the file shows none."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        lines = file.read().split(b"\n")
    for line in reversed(lines):
        at = instant((parsed(line) or {}).get("timestamp"))
        if at is not None:
            return at
    return None
