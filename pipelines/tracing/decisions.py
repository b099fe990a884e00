"""Traces of decisions: each belongs to its `decision_id`, and outcomes told later join it.

Which decisions have one follows from the id, so every process agrees and an id tells its trace. No observation, episode
or key of a subject is in any.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from hashlib import sha256

from pipelines.tracing.config import TracingConfig
from pipelines.tracing.exporting import Spans, TracingError, trace_id_of

_LOG = logging.getLogger("offline_dqn.serve")
_WHOLE = 1 << 32
_TELL_EVERY_S = 60.0
"""Seconds between two lines in the server's log on spans that were lost."""


def decision_trace_id(problem: str, decision_id: str) -> int:
    """The trace of a decision."""
    return trace_id_of(f"{problem} decision {decision_id}")


def is_traced(share: float, decision_id: str) -> bool:
    """Whether a decision has a trace: a share of all ids has, and the more of them the larger it is."""
    return int.from_bytes(sha256(decision_id.encode()).digest()[-4:], "big") < share * _WHOLE


class DecisionTraces:
    """Makes the spans of decisions and outcomes; on the server's event loop, one request after the other.

    Args:
        config: the `[tracing]` table.
        problem: name of the contract.
    """

    def __init__(self, config: TracingConfig, problem: str) -> None:
        self._share, self._problem = config.decisions_share, problem
        self._spans: Spans | None = None
        self._told, self._told_at = 0, -_TELL_EVERY_S
        if config.endpoint is None or not config.decisions_share:
            return
        try:
            self._spans = Spans(config, {"offline_dqn.problem": problem})
        except (TracingError, ValueError) as error:  # decisions go on without
            _LOG.warning("no decision is traced: %s", error)
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()

    def close(self) -> None:
        """Sends what waits; waits no longer than the collector may take."""
        if self._spans is not None:
            lost = self._spans.close()
            if lost:
                _LOG.warning("%s", lost)

    def decided(self, answers: Sequence[dict[str, object]], arrived: float, chosen: float, logged: float) -> None:
        """Decisions of one request that are in the log.

        Args:
            answers: one for each decision.
            arrived, chosen, logged: when, by `time.perf_counter`.
        """
        if self._spans is None:
            return
        try:
            for answer in answers:
                if is_traced(self._share, str(answer["decision_id"])):
                    self._decision(self._spans, answer, len(answers), arrived, chosen, logged)
            self._tell(self._spans)
        except Exception as error:  # the decision is in the log, and its answer is due
            _LOG.warning("a decision was not traced: %s", error)

    def told(self, outcomes: Sequence[tuple[str, str]], arrived: float) -> None:
        """Outcomes of one request: the decision's id, and what became of it."""
        if self._spans is None:
            return
        try:
            for decision_id, verdict in outcomes:
                if is_traced(self._share, decision_id):
                    attributes = {"offline_dqn.decision_id": decision_id, "offline_dqn.verdict": verdict}
                    trace = decision_trace_id(self._problem, decision_id)
                    begins = self._ns(arrived)
                    self._spans.begin("outcome", trace=trace, start_time=begins, attributes=attributes).end()
        except Exception as error:
            _LOG.warning("an outcome was not traced: %s", error)

    def _decision(
        self, spans: Spans, answer: dict[str, object], n: int, arrived: float, chosen: float, logged: float
    ) -> None:
        decision_id = str(answer["decision_id"])
        attributes = {
            "offline_dqn.decision_id": decision_id,
            "offline_dqn.release": str(answer["release"]),
            "offline_dqn.decided_by": str(answer["decided_by"]),
            "offline_dqn.action": str(answer["action"]),
            "offline_dqn.n_decisions": n,
        }
        trace = decision_trace_id(self._problem, decision_id)
        begins, chose, ends = (self._ns(at) for at in (arrived, chosen, logged))
        root = spans.begin("act", trace=trace, start_time=begins, attributes=attributes)
        spans.within(root, "choose", start_time=begins).end(chose)
        spans.within(root, "log", start_time=chose).end(ends)
        root.end(ends)

    def _ns(self, at: float) -> int:
        return self._epoch_ns + round(at * 1e9)

    def _tell(self, spans: Spans) -> None:
        if spans.n_lost > self._told and time.monotonic() - self._told_at > _TELL_EVERY_S:
            _LOG.warning("%d spans were lost so far: %s", spans.n_lost, spans.cause)
            self._told, self._told_at = spans.n_lost, time.monotonic()
