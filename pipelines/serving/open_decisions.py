"""Which decisions await an outcome: what an outcome that comes in is to the server, before ingest ever sees it.

The memory is bounded, and made again from the ends of the logs at every start. Where it cannot tell, it says so, and
the outcome is written: ingest joins with all of history.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from datasets.contract import Contract
from pipelines.serving.outcome import End, Outcome, digest_of

Verdict = Literal["new", "unverified", "repeated", "unknown", "early", "late", "contradicting", "not_last"]
"""What an outcome is. `new`: to be written. `unverified`: too, though its decision is not in memory, which had to
forget some. `repeated`: it was told before, so it is to be acknowledged and not written again. The others are to be
refused. `unknown`: no decision has this id. `early`: it lies before its decision. `late`: all that it brings comes when
ingest no longer counts it. `contradicting`: the episode's end was told otherwise. `not_last`: it brings an end,
and the episode has gone on."""

_MAX_TOLD = 32
"""Outcomes that are remembered of one decision; only a sum has so many."""


@dataclass(slots=True)
class _Decided:
    at: datetime
    told: tuple[int, ...] = ()
    end: End | None = None
    final: int | None = None


class OpenDecisions:
    """The decisions whose outcomes may still count. Not safe for threads.

    Args:
        contract: its window and its timeout say how long an outcome counts.
        capacity: decisions that are remembered at most, the newest; about 300 bytes each.
    """

    def __init__(self, contract: Contract, *, capacity: int = 500_000) -> None:
        self._window = timedelta(seconds=contract.outcomes.window_s if contract.outcomes is not None else 0.0)
        self._timeout = timedelta(seconds=contract.episodes.timeout_s)
        self._capacity = capacity
        self._decided: OrderedDict[int, _Decided] = OrderedDict()
        self._newest: datetime | None = None
        self._forgot: datetime | None = None

    @property
    def capacity(self) -> int:
        """Decisions that are remembered at most."""
        return self._capacity

    @property
    def horizon(self) -> timedelta:
        """How long after a decision an outcome of it may count."""
        return max(self._window, self._timeout)

    @property
    def n_open(self) -> int:
        """Decisions in memory."""
        return len(self._decided)

    def decided(self, decision_id: str, at: datetime) -> None:
        """Remembers a decision that is in the log."""
        self._decided.setdefault(digest_of(decision_id), _Decided(at))
        self._newest = at if self._newest is None else max(self._newest, at)
        self._forget()

    def has_ended(self, decision_id: str) -> bool:
        """Whether an outcome told that the episode of a decision ended with it, as far as is remembered."""
        known = self._decided.get(digest_of(decision_id))
        return known is not None and known.end is not None

    def judge(self, outcome: Outcome, *, is_last: bool = True) -> Verdict:
        """What an outcome is; changes nothing.

        Args:
            outcome: that comes in.
            is_last: whether its decision is the last of its episode so far.
        """
        known = self._decided.get(digest_of(outcome.decision_id))
        if known is None:
            return "unverified" if self._may_have_forgotten() else "unknown"
        if outcome.at < known.at:
            return "early"
        if outcome.content in known.told and (not outcome.is_timed or _timed(outcome) in known.told):
            return "repeated"
        if outcome.end is not None and known.end is not None:
            other_final = outcome.final is not None and known.final is not None and outcome.final != known.final
            if outcome.end != known.end or other_final:
                return "contradicting"
            if outcome.reward is None and (outcome.final is None or outcome.final == known.final):
                return "repeated"
        in_window = outcome.reward is not None and outcome.at <= known.at + self._window
        ends = outcome.end is not None and outcome.at <= known.at + self._timeout
        if ends and not is_last:
            return "not_last"
        return "new" if in_window or ends else "late"

    def told(self, outcome: Outcome) -> None:
        """Remembers an outcome that is in the log."""
        known = self._decided.get(digest_of(outcome.decision_id))
        if known is None:
            return
        known.told = (*known.told, outcome.content, _timed(outcome))[-2 * _MAX_TOLD :]
        if outcome.end is not None and known.end is None and outcome.at <= known.at + self._timeout:
            known.end = outcome.end
        if outcome.end is not None and outcome.end == known.end and known.final is None:
            known.final = outcome.final

    def state_of(self, decision_id: str) -> object:
        """What `restore` brings back."""
        known = self._decided.get(digest_of(decision_id))
        return None if known is None else replace(known)

    def restore(self, decision_id: str, state: object) -> None:
        """Takes back what was told of a decision since `state_of`."""
        key = digest_of(decision_id)
        if key in self._decided and isinstance(state, _Decided):
            self._decided[key] = state

    def not_all_known_before(self, at: datetime) -> None:
        """Says that decisions before `at` may be in the log and not in memory."""
        self._forgot = at if self._forgot is None else max(self._forgot, at)

    def _may_have_forgotten(self) -> bool:
        """Whether an unknown decision may be one that was forgotten although outcomes of it may still count."""
        return self._forgot is not None and self._newest is not None and self._forgot > self._newest - self.horizon

    def _forget(self) -> None:
        assert self._newest is not None
        oldest_open = self._newest - self.horizon
        while self._decided:
            first = next(iter(self._decided.values()))
            if first.at >= oldest_open and len(self._decided) <= self._capacity:
                return
            self._decided.popitem(last=False)
            if first.at >= oldest_open:
                self.not_all_known_before(first.at + timedelta(microseconds=1))


def _timed(outcome: Outcome) -> int:
    return digest_of(f"{outcome.content} {outcome.at.isoformat()}")
