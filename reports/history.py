"""Who promoted or rejected what, when and why: one JSON line each, only ever appended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from datasets.durable import read_records


@dataclass(frozen=True)
class Promotion:
    """One line of the history; `from_release` is None for the first champion."""

    at: datetime
    action: Literal["promote", "rollback"]
    from_release: int | None
    to_release: int
    reviewer: str
    note: str

    @property
    def undo(self) -> str:
        """The command that undoes it; "" for none: nothing acted before."""
        if self.action == "promote":
            return "offline-dqn rollback"
        return "" if self.from_release is None else f"offline-dqn promote {self.from_release}"

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


@dataclass(frozen=True)
class Rejection:
    """A reviewer's no to a release whose gate passed."""

    at: datetime
    release: int
    reviewer: str
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "at": self.at.isoformat(),
            "action": "reject",
            "release": self.release,
            "reviewer": self.reviewer,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Rejection:
        """What `to_json` wrote."""
        return cls(datetime.fromisoformat(values["at"]), values["release"], values["reviewer"], values["note"])


def read_rejections(path: Path) -> list[Rejection]:
    """Every rejection, oldest first. A last line that a crash cut off did not happen."""
    return [Rejection.from_json(record) for record in read_records(path)]


def read_history(path: Path) -> list[Promotion]:
    """Every promotion and rollback, oldest first. A last line that a crash cut off did not happen."""
    return [Promotion.from_json(record) for record in read_records(path)]


def left_by(release: int, history: Sequence[Promotion]) -> Promotion | None:
    """The rollback that last took a release out of the line of champions; None where it is in it, or never was."""
    for n in range(len(history), 0, -1):
        if release in line_of_champions(history[:n]):
            return history[n] if n < len(history) else None
    return None


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
