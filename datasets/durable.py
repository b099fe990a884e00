"""Files that survive a power cut: there whole or not at all, and logs of JSON lines that lose no line once written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_durably(path: Path, content: bytes | str) -> None:
    """Writes beside the target, through to the disk, and renames into place; makes the folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk, half a file would keep the room that others need
        raise
    flush_to_disk(path.parent)  # else the rename itself may be lost with the power


def flush_to_disk(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def flush_folder(path: Path) -> None:
    """Waits until everything in a folder, and in the folders in it, is on the disk."""
    for inside in path.rglob("*"):
        flush_to_disk(inside)
    flush_to_disk(path)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a JSON line, through to the disk; a line that a crash cut off is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every JSON line, oldest first; none where there is no file. A last line that a crash cut off did not happen."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
