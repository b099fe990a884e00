"""Who promoted what, when and why: one JSON line per promotion or rollback, only ever appended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Promotion:
    """One line of the history; `from_release` is None for the first champion."""

    at: datetime
    action: Literal["promote", "rollback"]
    from_release: int | None
    to_release: int
    reviewer: str
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "at": self.at.isoformat(),
            "action": self.action,
            "from": self.from_release,
            "to": self.to_release,
            "reviewer": self.reviewer,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Promotion:
        """What `to_json` wrote."""
        at = datetime.fromisoformat(values["at"])
        return cls(at, values["action"], values["from"], values["to"], values["reviewer"], values["note"])


def read_history(path: Path) -> list[Promotion]:
    """Every promotion and rollback, oldest first. A last line that a crash cut off did not happen."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [Promotion.from_json(json.loads(line)) for line in lines]


def append_promotion(path: Path, promotion: Promotion) -> None:
    """Adds a line, through to the disk; a line that a crash cut off is removed first."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(promotion.to_json()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def line_of_champions(history: Sequence[Promotion]) -> list[int]:
    """The champions one after another as if what was rolled back had never been; the last one acts.

    So a second rollback goes further back instead of returning to the release that the first one left.
    """
    line: list[int] = []
    for promotion in history:
        release = promotion.to_release
        if promotion.action == "rollback" and release in line:
            while line[-1] != release:
                line.pop()
        elif promotion.action == "rollback" and release == 0:
            line = [0]  # nothing lies before the baseline
        else:
            line.append(release)
    return line
