"""Outcomes that come in: judged, written to the log of outcomes, and answered one by one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path

from datasets.contract import Contract
from datasets.errors import OfflineDqnError
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog, LogUnsureError
from pipelines.serving.log_tails import remembered
from pipelines.serving.open_decisions import OpenDecisions, Verdict
from pipelines.serving.outcome import Outcome, OutcomeLog

WRITTEN: tuple[Verdict, ...] = ("new", "unverified")
"""Verdicts by which an outcome is written."""

_MAX_UNSURE = 10_000
"""Outcomes whose lines are kept to be written again."""

ACCEPTED: tuple[Verdict, ...] = (*WRITTEN, "repeated")
"""Verdicts by which an outcome is in the log when it is answered; its sender need not send it again."""


_Name = tuple[str, int, datetime | None]


class NoOutcomesError(OfflineDqnError):
    """A contract that does not say what outcomes mean."""


class Outcomes:
    """Takes outcomes into the log in one folder. All methods may be called from any thread.

    Args:
        contract: says how long an outcome counts.
        steps: folder of the log of decisions, of which the open ones are remembered.
        log: of outcomes, in `outcomes`.
        outcomes: its folder.

    Raises:
        NoOutcomesError: the contract has no `[outcomes]`: a served decision could never have a reward.
    """

    def __init__(
        self, contract: Contract, config: ServeConfig, log: DecisionLog, *, steps: Path, outcomes: Path
    ) -> None:
        check_outcomes(contract)
        self._log, self._lines = log, OutcomeLog(contract)
        self._writes_unknown = config.unknown_outcomes == "write"
        self._open = remembered(contract, steps, outcomes, capacity=config.max_open_decisions)
        # One is short and guards the memory; the other spans a write, so that what is answered is in the log.
        self._memory_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._unsure: OrderedDict[_Name, bytes] = OrderedDict()

    @property
    def open_decisions(self) -> OpenDecisions:
        """What is remembered, for metrics."""
        return self._open

    def decided(self, decisions: Iterable[tuple[str, datetime]]) -> None:
        """Decisions, by id and instant, are in the log: outcomes of them may come."""
        with self._memory_lock:
            for decision_id, at in decisions:
                self._open.decided(decision_id, at)

    def has_ended(self, decision_id: str) -> bool:
        """Whether an outcome told that the episode of a decision ended with it."""
        with self._memory_lock:
            return self._open.has_ended(decision_id)

    def take(self, outcomes: Sequence[Outcome], is_last: Callable[[str], bool] = lambda _: True) -> list[Verdict]:
        """Writes those that are to be written, all or none of them.

        Args:
            outcomes: that came in.
            is_last: whether a decision is the last of its episode so far, by its id.

        Returns:
            What each is. Those that are ACCEPTED are in the log now, the others are not.

        Raises:
            LogFullError: nothing was written, and nothing of this request counts.
            LogUnsureError: it was written, and perhaps not to the disk; sent again it is written again, as it was.
        """
        with self._write_lock:
            with self._memory_lock:
                before = [(each.decision_id, self._open.state_of(each.decision_id)) for each in outcomes]
                verdicts = [self._judge(each, is_last(each.decision_id)) for each in outcomes]
            judged = [(_name(o), o, v) for o, v in zip(outcomes, verdicts, strict=True)]
            lines = [(name, self._lines.line(o)) for name, o, v in judged if v in WRITTEN]
            lines += [(name, self._unsure[name]) for name, _, v in judged if v == "repeated" and name in self._unsure]
            try:
                self._log.append([line for _, line in lines])
            except LogUnsureError:
                self._unsure.update(lines)
                while len(self._unsure) > _MAX_UNSURE:
                    self._unsure.popitem(last=False)
                raise
            except BaseException:
                with self._memory_lock:
                    for decision_id, state in reversed(before):
                        self._open.restore(decision_id, state)
                raise
            for name, _ in lines:
                self._unsure.pop(name, None)
        return verdicts

    def _judge(self, outcome: Outcome, is_last: bool) -> Verdict:
        verdict = self._open.judge(outcome, is_last=is_last)
        if verdict == "unknown" and self._writes_unknown:
            verdict = "unverified"
        if verdict in WRITTEN:
            self._open.told(outcome)  # at once: the same request may bring it twice
        return verdict

    def cause(self, outcome: Outcome, verdict: Verdict) -> str:
        """Why an outcome was refused, in words for its sender."""
        name, horizon = outcome.decision_id, self._open.horizon
        return {
            "unknown": f"no decision '{name}' was made in the last {horizon}; that of an older one would not count",
            "early": f"the outcome of '{name}' lies before its decision; mend the clock that says so",
            "late": f"the outcome of '{name}' comes when outcomes.attribution_window and episodes.timeout are over, "
            "and would not count",
            "contradicting": f"'{name}' was told to end its episode otherwise; the first end stays",
            "not_last": f"the episode of '{name}' has gone on since, so it did not end there; tell the end of its last "
            "decision",
        }.get(verdict, "")


def _name(outcome: Outcome) -> _Name:
    """What tells an outcome from all others, and is the same when it is sent again."""
    return outcome.decision_id, outcome.content, outcome.at if outcome.is_timed else None


def check_outcomes(contract: Contract) -> None:
    """Raises a NoOutcomesError where rewards could not arrive after their decisions."""
    if contract.outcomes is None:
        raise NoOutcomesError(
            "The contract has no table [outcomes], so every logged step would need its reward, which nobody knows when "
            "it is decided. Say how long after its decision an outcome counts (docs/outcomes.md), then serve."
        )
