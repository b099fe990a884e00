"""Log files that grow, read from where one stopped: only whole lines, and a half-written last one waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets.contract import Contract
from pipelines.serving.logged_times import read_time
from pipelines.serving.outcome import value_at

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


class StepRows:
    """Reads rows of the decision log under a contract: its own names of columns, and its form of times."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        named = ["episode_id", "step", "timestamp", "decision_id", "policy_version", "decided_by", "action", "reward"]
        named += ["terminated", "truncated", *(["cluster"] if contract.episodes.cluster else [])]
        self._places = {name: _places(contract, name) for name in named}
        self._features = {name: _places(contract, f"observation.{name}") for name in contract.features}
        self._plain = all(places[0] == ("observation", name) for name, places in self._features.items())

    def at(self, row: dict[str, Any]) -> float | None:
        """Seconds since 1970 of a row; None where it has no time."""
        found = read_time(self._contract, _first(row, self._places["timestamp"]))
        return None if found is None else found.timestamp()

    def read(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The canonical columns, `at` and `observation` among them; None where it is no decision of the contract."""
        found = {name: _first(row, places) for name, places in self._places.items()}
        actions, action = self._contract.actions, found["action"]
        if actions.bins is not None and isinstance(action, int | float) and not isinstance(action, bool):
            found["action"] = actions.name_of(action)
        at = self.at(row)
        if at is None or found["episode_id"] is None or found["action"] not in actions.names:
            return None
        seen = row.get("observation") if self._plain else None
        if not isinstance(seen, dict):
            seen = {name: _first(row, places) for name, places in self._features.items()}
        return found | {"at": at, "episode_id": str(found["episode_id"]), "observation": seen}


def _places(contract: Contract, canonical: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(path.split(".")) for path in contract.log_paths(canonical))


def _first(row: dict[str, Any], places: tuple[tuple[str, ...], ...]) -> Any:
    return next((found for found in (value_at(row, place) for place in places) if found is not None), None)


def last_instant(path: Path, rows: StepRows) -> float | None:
    """Seconds since 1970 of the last line that has a time; None where the end of the file shows none."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        lines = file.read().split(b"\n")
    for line in reversed(lines):
        at = rows.at(parsed(line) or {})
        if at is not None:
            return at
    return None
