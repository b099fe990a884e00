"""Decisions that were made a moment ago, as the log has them: what a client gets that lost the answer and asks again.

The line is in the log before the answer leaves, so a connection or a server may break between the two. The decision
stands: asked for again under its `decision_id`, it is answered as it was logged, and never drawn a second time.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets.contract import Contract
from pipelines.serving.log_tails import newest_blocks
from pipelines.serving.outcome import digest_of, value_at

_COLUMNS = ("decision_id", "episode_id", "step", "action", "behavior_prob", "behavior_probs", "policy_version")


@dataclass(frozen=True)
class LoggedDecision:
    """A decision as its line tells of it.

    Attributes:
        action: label, or the number where actions are bins.
        probabilities: of every action, in the contract's order.
        release: as `policy_version` has it.
        observation: as it was seen, by feature; missing ones are None.
    """

    decision_id: str
    episode_id: str | None
    step: int | None
    action: str | float
    probability: float
    probabilities: tuple[float, ...]
    decided_by: str
    release: str
    observation: Mapping[str, Any]

    def answers(self, episode_id: str | None, observation: Mapping[str, Any]) -> bool:
        """Whether a request asks for this decision: of its episode, and all that it observes is as it was seen. What
        the server itself filled in, such as what a cap leaves, no request brings."""
        seen = all(self.observation.get(name) == value for name, value in observation.items())
        return episode_id in (None, self.episode_id) and seen


class RecentDecisions:
    """The newest decisions of a log, by id. Not safe for threads.

    Args:
        steps: folder of the log, whose end is read.
        capacity: decisions that are kept, with their lines.
    """

    def __init__(self, contract: Contract, steps: Path, *, capacity: int = 10_000) -> None:
        names = [*_COLUMNS, "decided_by", *(f"observation.{name}" for name in contract.features)]
        self._places = {name: tuple(contract.log_paths(name)[0].split(".")) for name in names}
        self._features = tuple(contract.features)
        self._capacity = capacity
        self._lines: OrderedDict[int, bytes] = OrderedDict()
        rows = (row for block in newest_blocks(steps) for row in block)
        for row in reversed(list(islice(rows, capacity))):
            name = value_at(row, self._places["decision_id"])
            if name is not None:
                self.logged(str(name), json.dumps(row).encode())

    def logged(self, decision_id: str, line: bytes) -> None:
        """Remembers a decision whose line is in the log."""
        self._lines[digest_of(decision_id)] = line
        if len(self._lines) > self._capacity:
            self._lines.popitem(last=False)

    def find(self, decision_id: str) -> LoggedDecision | None:
        """The decision of that id; None where it was not made, or too long ago."""
        line = self._lines.get(digest_of(decision_id))
        if line is None:
            return None
        row = json.loads(line)
        found = {name: value_at(row, place) for name, place in self._places.items()}
        return LoggedDecision(
            decision_id=decision_id,
            episode_id=found["episode_id"],
            step=found["step"],
            action=found["action"],
            probability=found["behavior_prob"],
            probabilities=tuple(found["behavior_probs"] or ()),
            decided_by=found["decided_by"],
            release=found["policy_version"],
            observation={name: found[f"observation.{name}"] for name in self._features},
        )
