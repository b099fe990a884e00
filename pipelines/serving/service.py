"""Decisions from request to answer: who is in charge, what may be done, the draw, the line in the log."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import record_of
from datasets.row_conditions import Record
from datasets.step_rules import ConstraintError
from offline_dqn.compiled_shield import CompiledShield
from offline_dqn.decisions import (
    BASELINE,
    LATE,
    POLICY,
    Decisions,
    Permission,
    Scorer,
    decide,
    draw,
    forbidden_by,
    merged,
    permit,
)
from offline_dqn.exploration import NoAvailableActionError
from pipelines.serving.acting_releases import VERSION_ZERO, Acting, ActingReleases, LoadedRelease
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog, LogFullError
from pipelines.serving.episode_memory import EpisodeMemory, Place
from pipelines.serving.log_lines import StepLines
from pipelines.serving.messages import Asked, read_instant
from pipelines.serving.metrics import Metrics
from pipelines.serving.refusals import RefusedRequestError

_LOG = logging.getLogger("offline_dqn.serve")


@dataclass(frozen=True)
class _Turn:
    """The decisions of a request that one release is in charge of.

    Attributes:
        rows: of the request.
        release: in charge.
        decided_by: where neither shield nor guard decides.
    """

    rows: list[int]
    release: LoadedRelease
    decided_by: str


class DecisionService:
    """Answers requests for decisions; its methods run on the server's event loop."""

    def __init__(
        self, contract: Contract, config: ServeConfig, acting: ActingReleases, log: DecisionLog, metrics: Metrics
    ) -> None:
        self._contract, self._config = contract, config
        self._acting, self._log, self._metrics = acting, log, metrics
        self._shield, self._lines = CompiledShield(contract), StepLines(contract)
        self._memory = EpisodeMemory(contract.episodes.clock_tolerance_s)
        self._clock = Clock()
        self._random = random.Random(config.seed)
        self._names = contract.actions.names
        self._column = {name: column for column, name in enumerate(self._names)}
        self._deadline_s = config.deadline_ms / 1000
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="writing")

    def close(self) -> None:
        """Ends its threads."""
        self._scoring.shutdown(wait=False, cancel_futures=True)
        self._writing.shutdown()

    async def act(self, asked: Asked, arrived: float) -> list[dict[str, Any]]:
        """The decisions, each of them in the log.

        Args:
            asked: what is asked for, checked.
            arrived: when the request did, by `time.perf_counter`.

        Raises:
            RefusedRequestError: nothing was decided.
        """
        acting = self._acting.current
        places = self._places(asked)
        self._memory.enter(places)
        try:
            answers, lines = await self._decide(asked, places, acting, arrived)
            await self._write(lines)
        except LogFullError as error:
            self._memory.leave(places)
            if self._config.on_full == "refuse" or acting.version_zero is None:
                raise RefusedRequestError.of("log_full", str(error), status=503, retry_after_s=1) from error
            return await self._unlogged(asked, places, acting)
        except BaseException:
            self._memory.leave(places)
            raise
        seconds = time.perf_counter() - arrived
        for answer in answers:
            self._metrics.decided(str(answer["release"]), answer["decided_by"], answer["action"])
        self._metrics.answered(str(answers[0]["release"]), seconds)
        return answers

    # --- deciding

    async def _decide(
        self, asked: Asked, places: Sequence[Place], acting: Acting, arrived: float
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        decisions = asked.decisions
        records = [record_of(self._contract, decision["observation"]) for decision in decisions]
        available = self._available(decisions)
        try:
            forbidden = self._shield.forbidden(records)
        except ConstraintError as error:
            raise RefusedRequestError.of("constraint_failed", str(error)) from error
        taken = merged(forbidden)
        answers: list[dict[str, Any]] = [{} for _ in decisions]
        lines: list[bytes] = [b""] * len(decisions)
        for turn in self._turns(places, acting):
            rows = np.array(turn.rows)
            whole = len(rows) == len(decisions)
            decided = await self._decided(
                turn,
                records if whole else [records[i] for i in rows],
                available if whole else available[rows],
                taken if taken is None or whole else taken[rows],
                acting,
                arrived,
            )
            probs = decided.probs.tolist()
            for k, row in enumerate(turn.rows):
                by = forbidden_by(self._names, forbidden, row, available[row]) if taken is not None else {}
                if by:
                    self._metrics.forbidden(set(by.values()))
                if decided.guard and decided.guard[k]:
                    self._metrics.guarded(str(turn.release.number), decided.guard[k])
                answers[row], lines[row] = self._drawn(
                    decisions[row], places[row], turn.release, decided.decided_by[k], probs[k], by
                )
        return answers, lines

    async def _decided(
        self,
        turn: _Turn,
        records: Sequence[Record],
        available: NDArray[np.bool_],
        forbidden: NDArray[np.bool_] | None,
        acting: Acting,
        arrived: float,
    ) -> Decisions:
        """By the release in charge; by version 0 where that is late or fails."""
        zero, scorer = acting.version_zero, turn.release.scorer
        cause: Exception | None = None
        if zero is None or zero is turn.release or time.perf_counter() - arrived < self._deadline_s:
            try:
                permission = self._permitted(scorer, available, forbidden)
                return decide(scorer, self._contract.actions, records, permission, turn.decided_by)
            except RefusedRequestError:
                raise
            except Exception as error:  # whatever an engine may throw: version 0 acts
                cause = error
                self._metrics.failed(str(turn.release.number))
                _LOG.error("release %s failed on a request: %s", turn.release.number, error)
                if zero is None or zero is turn.release:
                    raise RefusedRequestError.of(
                        "scoring_failed", f"release {turn.release.number} could not decide: {error}", status=500
                    ) from error
        assert zero is not None
        permission = self._permitted(zero.scorer, available, forbidden)
        try:
            return decide(zero.scorer, self._contract.actions, records, permission, LATE)
        except Exception as error:
            raise RefusedRequestError.of(
                "scoring_failed",
                f"release {turn.release.number} and version 0 could not decide: {cause or error}",
                status=500,
            ) from error

    def _permitted(
        self, scorer: Scorer, available: NDArray[np.bool_], forbidden: NDArray[np.bool_] | None
    ) -> Permission:
        try:
            return permit(self._contract.actions, scorer.known, available, forbidden)
        except NoAvailableActionError as error:
            raise RefusedRequestError.of("no_known_action", str(error)) from error

    def _turns(self, places: Sequence[Place], acting: Acting) -> list[_Turn]:
        """Who is in charge of which decisions."""
        rows = list(range(len(places)))
        if acting.disabled is not None and acting.version_zero is not None:
            return [_Turn(rows, acting.version_zero, BASELINE)]
        champion = acting.champion
        return [_Turn(rows, champion, BASELINE if champion.number == VERSION_ZERO else POLICY)]

    def _drawn(
        self,
        decision: dict[str, Any],
        place: Place,
        release: LoadedRelease,
        decided_by: str,
        probs: list[float],
        forbidden: dict[str, str],
    ) -> tuple[dict[str, Any], bytes]:
        chosen = draw(probs, self._random.random())
        action = self._names[chosen]
        mask = decision.get("available_actions")
        if mask is not None and action not in mask:
            mask = [*mask, action]  # nothing was left, and the safe action acts: the log tells what could be done
        step = {
            "decision_id": place.decision_id,
            "episode_id": place.episode_id,
            "step": place.step,
            "available_actions": mask,
            "behavior_prob": probs[chosen],
            "behavior_probs": probs,
            "policy_version": str(release.number),
            "decided_by": decided_by,
        }
        if "cluster" in decision:
            step["cluster"] = decision["cluster"]
        step |= {f"keys.{name}": value for name, value in (decision.get("keys") or {}).items()}
        line = self._lines.line(step, decision["observation"], place.at, action)
        answer = {
            "decision_id": place.decision_id,
            "action": action,
            "action_value": self._contract.actions.value_of(action),
            "probability": probs[chosen],
            "probabilities": dict(zip(self._names, probs, strict=True)),
            "decided_by": decided_by,
            "release": release.number,
            "forbidden": forbidden,
        }
        return answer, line

    def _available(self, decisions: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
        masks = np.ones((len(decisions), len(self._names)), dtype=bool)
        for row, decision in enumerate(decisions):
            allowed = decision.get("available_actions")
            if allowed is not None:
                masks[row] = False
                masks[row, [self._column[name] for name in allowed]] = True
        return masks

    def _places(self, asked: Asked) -> list[Place]:
        places = []
        for row, decision in enumerate(asked.decisions):
            where = f"decisions[{row}]" if asked.is_batch else ""
            timestamp = decision.get("timestamp")
            at = self._clock.now() if timestamp is None else read_instant(timestamp, where)
            decision_id = decision.get("decision_id") or os.urandom(16).hex()
            places.append(Place(decision.get("episode_id"), decision.get("step"), decision_id, at, where))
        return places

    # --- writing

    async def _write(self, lines: list[bytes]) -> None:
        if self._config.durability == "process":
            self._log.append(lines)  # a write into the system's memory: microseconds
            return
        await asyncio.get_running_loop().run_in_executor(self._writing, self._log.append, lines)

    async def _unlogged(self, asked: Asked, places: Sequence[Place], acting: Acting) -> list[dict[str, Any]]:
        """Version 0's decisions where the log is full and the operator chose to go on."""
        assert acting.version_zero is not None
        only_zero = Acting(acting.version_zero, acting.version_zero, None, {}, None)
        answers, _ = await self._decide(asked, places, only_zero, time.perf_counter())
        for answer in answers:
            answer["logged"] = False
            self._metrics.decided("0", BASELINE, answer["action"])
        return answers


class Clock:
    """The server's time; each instant lies behind all before it, also where the system's clock goes back."""

    def __init__(self) -> None:
        self._last = datetime.min.replace(tzinfo=UTC)
        self._told = False

    def now(self) -> datetime:
        """The next instant."""
        now = datetime.now(UTC)
        if now <= self._last:
            behind_s = (self._last - now).total_seconds()
            if behind_s > 1 and not self._told:
                self._told = True
                _LOG.error(
                    "the system's clock went back by %.1f s; times of decisions stand still until it is back", behind_s
                )
            now = self._last + timedelta(microseconds=1)
        elif self._told:
            self._told = False
        self._last = now
        return now
