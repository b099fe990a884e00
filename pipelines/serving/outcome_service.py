"""Outcomes from request to answer: what each of them is, and whether it is in the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from datasets.contract import Contract
from offline_dqn.caps import Turn
from pipelines.serving.caps import ActionCaps
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import LogFullError, LogUnsureError
from pipelines.serving.episode_memory import EpisodeMemory
from pipelines.serving.messages import OutcomeMessages
from pipelines.serving.metrics import Metrics
from pipelines.serving.open_decisions import Verdict
from pipelines.serving.outcome import Outcome
from pipelines.serving.outcomes import ACCEPTED, Outcomes
from pipelines.serving.refusals import RefusedRequestError
from pipelines.tracing.decisions import DecisionTraces

_STATUS: Mapping[Verdict, int] = {"unknown": 404, "early": 422, "late": 410, "contradicting": 409, "not_last": 409}
"""Of an answer to one outcome that is not accepted."""


class OutcomeService:
    """Takes outcomes; its methods run on the server's event loop.

    Args:
        contract: the current one.
        config: the `[serve]` table.
        outcomes: judges and writes.
        memory: knows the episodes of the newest decisions.
        caps: put the counters into final observations.
        metrics: are told of each outcome.
        traces: of some decisions, which outcomes join.
    """

    def __init__(
        self,
        contract: Contract,
        config: ServeConfig,
        outcomes: Outcomes,
        memory: EpisodeMemory,
        caps: ActionCaps,
        metrics: Metrics,
        traces: DecisionTraces,
    ) -> None:
        self.messages = OutcomeMessages(contract, config.clock, config.max_batch)
        self._outcomes, self._memory, self._caps, self._metrics = outcomes, memory, caps, metrics
        self._traces = traces
        self._is_quick = config.durability == "process"
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="outcomes")

    def close(self) -> None:
        """Ends its thread."""
        self._writing.shutdown()

    async def take(self, body: bytes) -> tuple[dict[str, Any], int]:
        """The answer to a request and its status; what is accepted is in the log.

        Raises:
            RefusedRequestError: nothing was written.
        """
        arrived = time.perf_counter()
        told, is_batch = self.messages.read(body, datetime.now(UTC))
        counted = [self._counted(outcome) for outcome in told]
        try:
            if self._is_quick:
                verdicts = self._outcomes.take(counted, self._memory.is_last)
            else:
                loop = asyncio.get_running_loop()
                verdicts = await loop.run_in_executor(self._writing, self._outcomes.take, counted, self._memory.is_last)
        except LogFullError as error:
            cause = "log_unsure" if isinstance(error, LogUnsureError) else "log_full"
            raise RefusedRequestError.of(cause, str(error), status=503, retry_after_s=1) from error
        for verdict in verdicts:
            self._metrics.told(verdict)
        self._traces.told([(o.decision_id, v) for o, v in zip(counted, verdicts, strict=True)], arrived)
        if is_batch:
            return {"outcomes": [self._answer(o, v) for o, v in zip(counted, verdicts, strict=True)]}, 200
        outcome, verdict = counted[0], verdicts[0]
        if verdict in ACCEPTED:
            return self._answer(outcome, verdict), 200
        raise RefusedRequestError.of(
            f"outcome_{verdict}", self._outcomes.cause(outcome, verdict), status=_STATUS[verdict]
        )

    def _counted(self, outcome: Outcome) -> Outcome:
        """With the counters in its final observation, where the episode of its decision is still known."""
        place = self._memory.place_of(outcome.decision_id)
        if not self._caps or outcome.final_observation is None or place is None:
            return outcome
        turn = Turn.of(outcome.at, place.episode_id or "", place.cluster or "")
        return replace(outcome, final_observation=self._caps.fill(outcome.final_observation, turn))

    def _answer(self, outcome: Outcome, verdict: Verdict) -> dict[str, Any]:
        return {
            "decision_id": outcome.decision_id,
            "status": verdict,
            "accepted": verdict in ACCEPTED,
            "message": self._outcomes.cause(outcome, verdict),
        }
