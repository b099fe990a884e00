"""An outcome as the server takes it, and its line in the log of outcomes: ingest needs no adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from datasets.contract import Contract
from pipelines.serving.logged_times import read_time, written_time

End = Literal["terminated", "truncated"]


@dataclass(frozen=True)
class Outcome:
    """What became of a decision.

    Attributes:
        at: when it happened.
        reward: in reward units; None where it only tells of an end.
        end: how the episode ended with this decision; None where it did not, or nobody knows yet.
        final_observation: what followed the last step of a truncated episode, by feature; None where unknown.
        is_timed: whether its sender said when it happened; otherwise `at` is when it came in.
    """

    decision_id: str
    at: datetime
    reward: float | None = None
    end: End | None = None
    final_observation: Mapping[str, Any] | None = None
    is_timed: bool = True

    def __post_init__(self) -> None:
        if self.reward is None and self.end is None:
            raise ValueError(f"the outcome of '{self.decision_id}' brings neither a reward nor an end")

    @cached_property
    def content(self) -> int:
        """64 bits that tell what it brings, whenever that was."""
        return digest_of(json.dumps([self.reward, self.end, self._final], sort_keys=True))

    @cached_property
    def final(self) -> int | None:
        """64 bits that tell the final observation; None where there is none, or it means nothing."""
        return None if self._final is None else digest_of(json.dumps(self._final, sort_keys=True))

    @property
    def _final(self) -> dict[str, Any] | None:
        if self.final_observation is None or self.end != "truncated":
            return None
        return {name: value for name, value in self.final_observation.items() if value is not None}


class OutcomeLog:
    """The form of outcomes in a log under a contract."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        names = ("decision_id", "timestamp", "reward", "terminated", "truncated", "final_observation")
        self._places = {name: tuple(contract.outcome_path(name).split(".")) for name in names}

    def line(self, outcome: Outcome) -> bytes:
        """Its line, without the line's end."""
        values: dict[str, Any] = {
            "decision_id": outcome.decision_id,
            "timestamp": written_time(self._contract, outcome.at),
            "reward": outcome.reward,
        }
        if outcome.end is not None:
            values[outcome.end] = True
        if outcome.end == "truncated":
            values["final_observation"] = outcome.final_observation
        placed: dict[str, Any] = {}
        for name, value in values.items():
            if value is not None:
                put(placed, self._places[name], value)
        return json.dumps(placed, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    def read(self, row: Mapping[str, Any]) -> Outcome | None:
        """The outcome that a line told of; None where it is none that counts."""
        found = {name: value_at(row, place) for name, place in self._places.items()}
        at, reward = read_time(self._contract, found["timestamp"]), found["reward"]
        end: End | None = "terminated" if found["terminated"] is True else None
        if end is None and found["truncated"] is True:
            end = "truncated"
        final = found["final_observation"]
        if at is None or found["decision_id"] is None or not (isinstance(reward, int | float) or end):
            return None
        return Outcome(
            decision_id=str(found["decision_id"]),
            at=at,
            reward=None if reward is None else float(reward),
            end=end,
            final_observation=final if isinstance(final, dict) else None,
        )


def put(into: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    """Puts a value at a path of nested objects."""
    for key in place[:-1]:
        into = into.setdefault(key, {})
    into[place[-1]] = value


def value_at(row: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    """The value at a path of nested objects; None where there is none."""
    found: Any = row
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def digest_of(text: str) -> int:
    """64 bits of a text; among a million texts two are the same with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
