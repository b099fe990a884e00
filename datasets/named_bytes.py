"""Files of the lake that say by their name what their bytes are, so that a changed byte is seen before it is believed.

Parquet's own readers see less than half of the single bytes that change on a disk: pages bear no checksum, and a
changed one often unpacks into other values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_DIGITS = 16
_NAMED = re.compile(rf"\.([0-9a-f]{{{_DIGITS}}})(?=[-.])")
_LISTED = 3


def named_by_bytes(name: str, path: Path) -> str:
    """The name of a file with the start of its SHA-256 in it, in place of that of the file it was made from.

    Args:
        name: ends in `.parquet`; may begin with folders.
        path: where the file lies now.
    """
    stem = _NAMED.sub("", f"{name.removesuffix('.parquet')}.").removesuffix(".")
    return f"{stem}.{_digest(path)}.parquet"


def altered_files(files: Iterable[str]) -> list[str]:
    """Those that are gone, or whose bytes are not those that their name tells; one whose name tells nothing passes."""
    named = [(file, found[-1]) for file in files if (found := _NAMED.findall(Path(file).name))]
    with ThreadPoolExecutor(max_workers=2) as reading:  # hashing lets go of the interpreter
        digests = list(reading.map(lambda each: _digest_or_none(Path(each[0])), named))
    return [file for (file, wanted), found in zip(named, digests, strict=True) if found != wanted]


def altered_message(files: list[str]) -> str:
    """What is to be said of altered files: which, and what to do."""
    listed = ", ".join(files[:_LISTED]) + (f" and {len(files) - _LISTED} more" if len(files) > _LISTED else "")
    return (
        f"Bytes of the lake are not those that were written: {listed}. The disk has lost or changed them, so nothing "
        "was taken from the lake. Restore these files from a backup (`offline-dqn restore BACKUP DIR`, then copy them "
        "under the same names), look at the disk, and run the same command again. Where there is no good copy, "
        "`offline-dqn lake give-up --note WHY` takes them out of the lake, and accounts for their rows."
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def _digest_or_none(path: Path) -> str | None:
    try:
        return _digest(path)
    except OSError:
        return None
