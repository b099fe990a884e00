"""Decisions that were made a moment ago, as the log has them: what a client gets that lost the answer and asks again.

The line is in the log before the answer leaves, so a connection or a server may break between the two. The decision
stands: asked for again under its `decision_id`, it is answered as it was logged, and never drawn a second time.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets.actions import Actions
from datasets.caps import counter_field
from datasets.contract import Contract
from offline_dqn.decisions import SHIELD
from pipelines.serving.log_tails import newest_blocks
from pipelines.serving.outcome import digest_of, value_at
from pipelines.serving.refusals import RefusedRequestError

_COLUMNS = ("decision_id", "episode_id", "step", "action", "behavior_prob", "behavior_probs", "policy_version")
_MASK = "available_actions"


@dataclass(frozen=True)
class LoggedDecision:
    """A decision as its line tells of it.

    Attributes:
        action: label, or the number where actions are bins.
        probabilities: of every action, in the contract's order.
        release: as `policy_version` has it.
        observation: as it was seen, by feature; missing ones are None.
        available: the actions that the world allowed, and the safe one where nothing else was left; None: all.
        counted: features that the server fills in, whatever a request says of them.
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
    available: tuple[str, ...] | None
    counted: frozenset[str]

    def is_asked_by(self, decision: Mapping[str, Any]) -> bool:
        """Whether a request asks for this decision: its episode, its step, its actions, and all that it observes as it
        was seen but for what the server counts."""
        seen = all(
            self.observation.get(name) == value
            for name, value in decision["observation"].items()
            if name not in self.counted
        )
        mask, logged = decision.get(_MASK), self.available
        if mask is None or logged is None:
            seen = seen and mask is logged
        else:  # where nothing was left of a mask, the log adds the safe action, which acted
            n_added = len(set(logged) - set(mask))
            seen = seen and set(mask) <= set(logged) and n_added <= (self.decided_by == SHIELD)
        named = {name: decision.get(name) for name in ("episode_id", "step")}
        return seen and named["episode_id"] in (None, self.episode_id) and named["step"] in (None, self.step)

    def answer(self, actions: Actions) -> dict[str, Any]:
        """What its client was to be answered; which constraint forbade what is not in the log."""
        label = next(name for name in actions.names if self.action in (name, actions.value_of(name)))
        return {
            "decision_id": self.decision_id,
            "action": label,
            "action_value": actions.value_of(label),
            "probability": self.probability,
            "probabilities": dict(zip(actions.names, self.probabilities, strict=False)),
            "decided_by": self.decided_by,
            "release": int(self.release),
            "forbidden": {},
        }


class RecentDecisions:
    """The newest decisions of a log, by id. Not safe for threads.

    Args:
        steps: folder of the log, whose end is read.
        capacity: decisions that are kept, with their lines.
    """

    def __init__(self, contract: Contract, steps: Path, *, capacity: int = 10_000) -> None:
        names = [*_COLUMNS, _MASK, "decided_by", *(f"observation.{name}" for name in contract.features)]
        self._places = {name: tuple(contract.log_paths(name)[0].split(".")) for name in names}
        self._features, self._actions = tuple(contract.features), contract.actions
        self._counted = frozenset(counter_field(action, cap) for action, cap in contract.actions.caps.items())
        self._capacity = capacity
        self._lines: OrderedDict[int, bytes] = OrderedDict()
        self._unsure = set[int]()
        rows = (row for block in newest_blocks(steps) for row in block)
        for row in reversed(list(islice(rows, capacity))):
            name = value_at(row, self._places["decision_id"])
            if name is not None:
                self.logged(str(name), json.dumps(row).encode())

    def logged(self, decision_id: str, line: bytes, *, surely: bool = True) -> None:
        """Remembers a decision whose line is in the log; `surely` whether it is as safe there as answers have to be."""
        name = digest_of(decision_id)
        self._lines[name] = line
        if surely:
            self._unsure.discard(name)
        else:
            self._unsure.add(name)
        if len(self._lines) > self._capacity:
            self._unsure.discard(self._lines.popitem(last=False)[0])

    def unsure(self, asked: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
        """The lines, by decision_id, that have to be written again before their decisions are answered."""
        names = {str(decision["decision_id"]): digest_of(str(decision["decision_id"])) for decision in asked}
        return {name: self._lines[key] for name, key in names.items() if key in self._unsure}

    def answers_to(self, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """The answers to a request that was sent before; None where none of its decisions was made.

        Raises:
            RefusedRequestError: a decision_id stands for another decision, or only some of them were made.
        """
        names = [decision.get("decision_id") for decision in asked]
        found = [None if name is None else self.find(name) for name in names]
        if not any(found):
            return None
        answers = []
        for decision, logged in zip(asked, found, strict=True):
            if logged is None or not logged.is_asked_by(decision):
                taken = (logged or next(filter(None, found))).decision_id
                raise RefusedRequestError.of(
                    "decision_exists",
                    f"decision_id '{taken}' was decided already, for another request; ask with a new one, or leave it "
                    "out. Only the very same request is answered again",
                    status=409,
                )
            answers.append(logged.answer(self._actions))
        return answers

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
            available=None if found[_MASK] is None else tuple(found[_MASK]),
            counted=self._counted,
        )
