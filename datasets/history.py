"""What a table was: files that are no longer part of it, and the log of how it came to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from datasets.journal import LAST_CHECKPOINT, delta_table, flush_log


def vacuum(
    root: Path, table: str, *, hours: int, keep_versions: Sequence[int] = (), dry_run: bool = False
) -> list[str]:
    """Takes the files from the disk that ceased to be part of a table more than `hours` ago, and strays as old.

    Args:
        hours: for how long a reader that has the table open may go on reading what it was.
        keep_versions: versions of the table whose files stay whatever their age.
        dry_run: only say which they are.

    Returns:
        Their names inside the table's folder.
    """
    delta = delta_table(root, table)
    kept = _readable(delta, keep_versions) or None
    listed = delta.vacuum(hours, True, False, full=True, keep_versions=kept)
    gone = [name for name in map(unquote, listed) if (root / table / name).exists()]  # it lists what went before, too
    if gone and not dry_run:
        delta.vacuum(hours, False, False, full=True, keep_versions=kept)
    return gone


def _readable(delta: Any, versions: Sequence[int]) -> list[int]:
    """The versions that can still be opened: to keep one whose log is gone would be an error."""
    from deltalake.exceptions import DeltaError

    readable = []
    for version in versions:
        try:
            delta.load_as_version(version)
        except DeltaError:
            continue
        readable.append(version)
    delta.update_incremental()
    return readable


def purge_history(root: Path, tables: Iterable[str]) -> None:
    """Takes everything from the disk that a table once held and no longer holds: old files, and the log of them.

    Nobody can read an earlier version afterwards, and a query that runs over one fails. The caller holds the lake's
    lock. Cut off and repeated, it ends the same.
    """
    for table in tables:
        vacuum(root, table, hours=0)
        delta = delta_table(root, table)
        delta.create_checkpoint()
        flush_log(root, table)  # before what it stands for is gone
        now = f"{delta.version():020d}"
        for entry in (root / table / "_delta_log").iterdir():
            if entry.is_file() and entry.name != LAST_CHECKPOINT and not entry.name.startswith(now):
                entry.unlink()
        for folder in (root / table).glob("log_date=*"):
            if not any(folder.iterdir()):
                folder.rmdir()
