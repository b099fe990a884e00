"""Caps where decisions are served: the counters that observations carry, right across restarts and kills.

The decision log is the memory. A decision is in it before it is answered, so what it does not hold was never done; at
start the counters are counted again from its tail, as far back as the longest window reaches. Used like this, under the
lock that `decide` holds until its decisions are counted:

    caps = ActionCaps.rebuilt(contract, workspace.logs_path)       # once the log is open and mended
    turn = Turn.of(now, episode_id, cluster)                        # now: the timestamp of the log line
    caps.fill(observation, turn)                                    # {..., "taken_scale_up": 4.0}, for what only looks
    caps.decide([turn, ...], choose, action_of=...)                 # fills, chooses and counts a batch, exactly
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from datasets.contract import Contract, TimeFormat
from datasets.errors import OfflineDqnError
from offline_dqn.caps import CapCounter, Turn, decide_in_turn, microseconds

T = TypeVar("T")


class CapsError(OfflineDqnError):
    """The log's tail cannot be read, so that nobody knows how often a capped action was taken."""


class ActionCaps:
    """The contract's caps at work. All methods may be called from any thread.

    Args:
        contract: the current one.
        counter: where counting begins; `rebuilt` reads it from the log.
    """

    def __init__(self, contract: Contract, counter: CapCounter | None = None) -> None:
        self._caps = contract.actions.caps
        self._counter = CapCounter(self._caps) if counter is None else counter
        self._lock = threading.Lock()

    @staticmethod
    def rebuilt(contract: Contract, directory: Path, *, in_order: bool = True) -> ActionCaps:
        """The caps as the log in `directory` left them.

        Args:
            contract: the current one.
            directory: of the log.
            in_order: whether its times only grow, so that its end is enough; those that requests bring need not.

        Raises:
            CapsError: a line within the longest window cannot be read.
        """
        counter = CapCounter(contract.actions.caps)
        if contract.actions.caps:
            for path in reversed(_files_of_window(contract, directory, in_order=in_order)):
                for taken in _capped(contract, path):
                    counter.count(taken.action, taken.turn)
        return ActionCaps(contract, counter)

    def __bool__(self) -> bool:
        """Whether there is any cap; without one nothing needs to be filled or counted."""
        return bool(self._caps)

    def fill(self, observation: Mapping[str, Any], turn: Turn) -> dict[str, Any]:
        """The observation with its counters, in place of whatever it says of them: nobody but the server counts.

        Also for the `final_observation` of an outcome, at the outcome's time.
        """
        with self._lock:
            return {**observation, **self._counter.taken(turn)}

    def count(self, action: str, turn: Turn) -> None:
        """Takes note of an action that was chosen outside `decide`."""
        with self._lock:
            self._counter.count(action, turn)

    def decide(
        self,
        turns: Sequence[Turn],
        choose: Callable[[list[int], list[dict[str, float]]], Sequence[T]],
        action_of: Callable[[T], str],
    ) -> list[T]:
        """One choice for each turn, counted: see `offline_dqn.caps.decide_in_turn`. One batch at a time.

        `choose` gets places among `turns` and the counters of each, to be put into its observation; it is asked again
        for those that came behind a cap being reached. A decision that is not answered after all, because its line
        could not be written, stays counted until its window is over.
        """
        with self._lock:
            return decide_in_turn(self._counter, turns, choose, action_of)

    def reached(self) -> dict[str, float]:
        """Counters of an observation for which every cap counts as reached.

        For decisions that no log will hold (`serve.on_full = "baseline"`): what they took would be forgotten.
        """
        return {field: float(self._caps[action].at_most) for action, field in self._counter.fields.items()}


# --- the log's tail


@dataclass(frozen=True)
class _Taken:
    """What a line of the log says of a decision."""

    action: str
    turn: Turn


def _files_of_window(contract: Contract, directory: Path, *, in_order: bool) -> list[Path]:
    """The server's files from the newest back, where they are in order up to the first whose last decision is older
    than the longest window."""
    longest_us = max(cap.per_us for cap in contract.actions.caps.values())
    newest_us, found = 0, []
    for path in sorted(directory.glob("served-*.jsonl"), reverse=True) if directory.is_dir() else ():
        last = _last_line(path)
        if last is None:
            continue
        at_us = _read_line(contract, path, last).turn.at_us
        newest_us = max(newest_us, at_us)
        if in_order and at_us <= newest_us - longest_us:
            break
        found.append(path)
    return found


def _capped(contract: Contract, path: Path) -> Iterator[_Taken]:
    """The capped decisions of a file, in the order of the log, and its last one."""
    # Most lines hold no capped action: looked at as bytes, a file costs a second per few million of them.
    caps = contract.actions.caps
    labels = {json.dumps(action, ensure_ascii=escaped).encode() for action in caps for escaped in (True, False)}
    by_label = contract.actions.bins is None
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and (not by_label or any(label in line for label in labels)):
                taken = _read_line(contract, path, line)
                if taken.action in caps:
                    yield taken


def _last_line(path: Path) -> bytes | None:
    """The last whole line of a file; None where it has none."""
    with path.open("rb") as file:
        position, tail = file.seek(0, os.SEEK_END), b""
        while position > 0:
            step = min(position, 1 << 16)
            position = file.seek(position - step)
            tail = file.read(step) + tail
            file.seek(position)
            lines = tail.split(b"\n")[:-1]  # what stands behind the last line break is no line
            if len(lines) > 1 or (lines and position == 0):
                return lines[-1]
    return None


def _read_line(contract: Contract, path: Path, line: bytes) -> _Taken:
    try:
        row = json.loads(line)
        action = _value(contract, row, "action")
        name = action if isinstance(action, str) else contract.actions.name_of(float(action)) or ""
        at_us = instant_us(_value(contract, row, "timestamp"), contract.time)
        episode, cluster = (_value(contract, row, column) for column in ("episode_id", "cluster"))
        return _Taken(name, Turn(at_us, _text(episode), _text(cluster)))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CapsError(
            f"{path} holds a line that cannot be read ({type(error).__name__}: {error}): {line[:200]!r}. It may "
            "tell of a capped action, so nothing is decided until it is mended. Restore the file, or move it out of "
            "the folder: what it tells of then counts no more."
        ) from error


def _value(contract: Contract, row: Mapping[str, Any], column: str) -> Any:
    """What a line holds in a canonical column; None where it lacks it."""
    value: Any = None
    for path in contract.log_paths(column):
        value = row
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    """A label as the lake holds it: anything but text by its JSON text."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def instant_us(written: Any, time: TimeFormat) -> int:
    """Microseconds since 1970 UTC of a time as the contract says that logs write it.

    Raises:
        ValueError: it is written otherwise, or has no zone where the contract names none.
    """
    if time.format in ("epoch_s", "epoch_ms"):
        return round(float(written) * (1e6 if time.format == "epoch_s" else 1e3))
    if not isinstance(written, str):
        raise ValueError(f"a time is text, found {written!r}")
    at = datetime.fromisoformat(written) if time.format == "iso" else datetime.strptime(written, time.format)
    if at.tzinfo is None:
        if time.zone is None:
            raise ValueError(f"the time {written} has no zone")
        at = at.replace(tzinfo=ZoneInfo(time.zone))
    return microseconds(at)
