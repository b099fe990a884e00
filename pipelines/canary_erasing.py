"""Erasure from the evidence of canaries: names go, what an episode was worth stays, so that no verdict is changed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from datasets.durable import write_durably
from datasets.privacy import PrivacyKey
from pipelines.canary_evidence import evidence_folder
from pipelines.canary_state import HasRoot, canary_lock


def erase_from_evidence(workspace: HasRoot, names: Collection[str], key: PrivacyKey | None) -> None:
    """Takes a subject's names out of all evidence; each becomes another one that says nothing. Can be repeated.

    Args:
        workspace: whose canaries, running and ended.
        names: episodes and keys, as logs or as the lake have them.
        key: that the lake hashes by; None where nothing is hashed.

    Raises:
        LockedError: the canary is being judged for long.
    """
    folder = evidence_folder(workspace.root)
    if not folder.is_dir():
        return
    with canary_lock(workspace):
        for path in sorted(folder.glob("*.jsonl")):
            _erase(path, set(names), key)


def _erase(path: Path, names: set[str], key: PrivacyKey | None) -> None:
    stands_for: dict[str, str] = {}

    def renamed(name: str) -> str:
        if name not in names and (key is None or key.hash(name) not in names):
            return name
        return stands_for.setdefault(name, f"(erased {secrets.token_hex(8)})")

    place = path.with_suffix(".json")
    try:
        known: dict[str, Any] = json.loads(place.read_bytes()) if place.exists() else {"older": {}}
        older = {name: at for name, at in known["older"].items() if renamed(name) == name}
        *lines, torn = path.read_bytes().split(b"\n")
        rows = [json.loads(line) for line in lines]
        erased = [row | {name: renamed(row[name]) for name in ("episode_id", "cluster")} for row in rows]
    except (ValueError, LookupError, TypeError, AttributeError):
        place.unlink(missing_ok=True)  # whatever they name: the logs are read again from the canary's start
        path.unlink()
        return
    if older != known["older"]:
        write_durably(place, json.dumps(known | {"older": older}))
    if torn or erased != rows:
        write_durably(path, "".join(json.dumps(row) + "\n" for row in erased))
