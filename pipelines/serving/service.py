"""Decisions from request to answer: who is in charge, what may be done, the draw, the line in the log."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import record_reader
from datasets.row_conditions import Record
from datasets.step_rules import ConstraintError
from offline_dqn.compiled_shield import CompiledShield
from offline_dqn.decisions import BASELINE, LATE, POLICY, Decisions, decide, draw, forbidden_by, merged, permit
from offline_dqn.exploration import NoAvailableActionError
from pipelines.sentry.events import in_brief, raised_in
from pipelines.sentry.telling import ServerFailures
from pipelines.serving.acting_releases import VERSION_ZERO, Acting, ActingReleases, LoadedRelease
from pipelines.serving.caps import ActionCaps
from pipelines.serving.clock import Clock
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog, LogFullError, LogUnsureError
from pipelines.serving.episode_memory import EpisodeMemory, Place
from pipelines.serving.log_lines import StepLines
from pipelines.serving.messages import Asked, read_instant
from pipelines.serving.metrics import Metrics
from pipelines.serving.outcomes import Outcomes
from pipelines.serving.recent_decisions import RecentDecisions
from pipelines.serving.refusals import RefusedRequestError
from pipelines.serving.timed_scorer import Deadline, LateError
from pipelines.tracing.decisions import DecisionTraces

_LOG = logging.getLogger("offline_dqn.serve")

_WRITERS = 16
"""Requests that may wait for the disk at once, and share a flush, where `durability` is "disk"."""


@dataclass(frozen=True)
class _Charge:
    """Who is in charge of some rows of a request.

    Attributes:
        rows: of the request.
        release: in charge.
        decided_by: where neither shield nor guard decides.
    """

    rows: list[int]
    release: LoadedRelease
    decided_by: str


class _Choice(NamedTuple):
    """What is done at one row, and the observation that it was chosen for, counters included."""

    observation: dict[str, Any]
    action: str
    probability: float
    probs: list[float]
    decided_by: str
    release: int
    forbidden: dict[str, str]


def _told(error: Exception) -> str:
    """For the server's log, which holds no observation."""
    return f"{in_brief(error)} ({raised_in(error)})"


class DecisionService:
    """Answers requests for decisions; its methods run on the server's event loop, one request after the other.

    Args:
        contract: the current one.
        config: the `[serve]` table.
        acting: who acts.
        log: of decisions, open.
        outcomes: is told of each decision that is in the log.
        caps: the counters, as the log has them.
        recent: decisions that are answered again where they are asked for again.
        metrics: are told of each decision.
        traces: of some decisions.
        failures: of releases, for Sentry.
    """

    def __init__(
        self,
        contract: Contract,
        config: ServeConfig,
        acting: ActingReleases,
        log: DecisionLog,
        outcomes: Outcomes,
        caps: ActionCaps,
        recent: RecentDecisions,
        metrics: Metrics,
        traces: DecisionTraces,
        failures: ServerFailures,
    ) -> None:
        self._contract, self._config = contract, config
        self._acting, self._log, self._outcomes, self._caps = acting, log, outcomes, caps
        self._recent, self._metrics = recent, metrics
        self._traces, self._failures = traces, failures
        self._shield, self._lines = CompiledShield(contract), StepLines(contract)
        self.memory = EpisodeMemory.rebuilt(contract, log.directory, config.max_open_decisions, outcomes.has_ended)
        self._clock = Clock()
        self._newest: datetime | None = None
        self._random = random.Random(config.seed)
        self._record_of, self._names = record_reader(contract), contract.actions.names
        self._column = {name: column for column, name in enumerate(self._names)}
        self._deadline = Deadline(config.deadline_ms / 1000)
        self._writing = ThreadPoolExecutor(_WRITERS, thread_name_prefix="writing")

    def close(self) -> None:
        """Ends its threads."""
        self._deadline.close()
        self._writing.shutdown()

    def now(self) -> datetime | None:
        """The instant of the log's clock: the newest decision's where requests have their own time, else now."""
        return self._newest if self._config.clock == "request" else datetime.now(UTC)

    def obstacle(self) -> str | None:
        """Why nobody would decide now: the log takes no line, and version 0 may not act without one. Else None."""
        if self._config.on_full == "baseline" and self._acting.current.version_zero is not None:
            return None
        return self._log.problem

    async def act(self, asked: Asked, arrived: float) -> list[dict[str, Any]]:
        """The decisions, each of them in the log.

        Args:
            asked: what is asked for, checked.
            arrived: when the request did, by `time.perf_counter`.

        Raises:
            RefusedRequestError: nothing was decided.
        """
        repeated = self._recent.answers_to(asked.decisions)
        if repeated is not None:
            await self._make_sure(asked)
            return repeated  # the answer was lost on its way, the decision was not
        acting = self._acting.current
        places = self._places(asked)
        before = self.memory.enter(places)
        try:
            choices = self._choose(asked, places, acting, arrived)
            chosen = time.perf_counter()
            lines = [
                self._line(decision, place, choice)
                for decision, place, choice in zip(asked.decisions, places, choices, strict=True)
            ]
            await self._write(lines)
        except LogUnsureError as error:
            # Whoever reads the log finds these decisions, so they stand: another answer would contradict it.
            self._stands(asked, places, lines, surely=False)
            raise RefusedRequestError.of("log_unsure", str(error), status=503, retry_after_s=1) from error
        except LogFullError as error:
            self.memory.leave(places, before)
            if self._config.on_full == "refuse" or acting.version_zero is None:
                raise RefusedRequestError.of("log_full", str(error), status=503, retry_after_s=1) from error
            return self._unlogged(asked, places, acting.version_zero)
        except BaseException:
            self.memory.leave(places, before)
            raise
        self._stands(asked, places, lines)
        self._count(choices)
        answers = [self._answer(place, choice) for place, choice in zip(places, choices, strict=True)]
        logged = time.perf_counter()
        self._metrics.answered(str(choices[0].release), logged - arrived)
        self._traces.decided(answers, arrived, chosen, logged)
        return answers

    # --- choosing

    def _choose(self, asked: Asked, places: Sequence[Place], acting: Acting, arrived: float) -> list[_Choice]:
        observations = [decision["observation"] for decision in asked.decisions]
        available = self._available(asked.decisions)
        charges = self._charges(places, acting)
        if not self._caps:
            return self._chosen(observations, available, charges, acting, arrived)

        def choose(rows: list[int], counters: list[dict[str, float]]) -> list[_Choice]:
            counted = [{**observations[row], **counter} for row, counter in zip(rows, counters, strict=True)]
            return self._chosen(counted, available[rows], _part(charges, rows), acting, arrived)

        return self._caps.decide([place.turn for place in places], choose, lambda choice: choice.action)

    def _chosen(
        self,
        observations: Sequence[dict[str, Any]],
        available: NDArray[np.bool_],
        charges: Sequence[_Charge],
        acting: Acting,
        arrived: float,
    ) -> list[_Choice]:
        records = [self._record_of(observation) for observation in observations]
        try:
            by_constraint = self._shield.forbidden(records)
        except ConstraintError as error:
            raise RefusedRequestError.of("constraint_failed", in_brief(error)) from error
        forbidden = merged(by_constraint)
        takes_away: list[bool] | None = None
        if forbidden is not None:
            takes_away = np.logical_or.reduce(forbidden & available, axis=1).tolist()
        choices: dict[int, _Choice] = {}
        for charge in charges:
            rows = charge.rows
            decided = self._decided(
                charge,
                [records[row] for row in rows],
                available[rows],
                None if forbidden is None else forbidden[rows],
                acting,
                arrived,
            )
            guard = decided.guard or ("",) * len(rows)
            for row, probs, decided_by, reason in zip(
                rows, decided.probs.tolist(), decided.decided_by, guard, strict=True
            ):
                taken: dict[str, str] = {}
                if takes_away is not None and takes_away[row]:
                    taken = forbidden_by(self._names, by_constraint, row, available[row])
                    self._metrics.forbidden(set(taken.values()))
                if reason:
                    self._metrics.guarded(str(charge.release.number), reason)
                drawn = draw(probs, self._random.random())
                choices[row] = _Choice(
                    observations[row], self._names[drawn], probs[drawn], probs, decided_by, charge.release.number, taken
                )
        return [choices[row] for row in range(len(observations))]

    def _decided(
        self,
        charge: _Charge,
        records: Sequence[Record],
        available: NDArray[np.bool_],
        forbidden: NDArray[np.bool_] | None,
        acting: Acting,
        arrived: float,
    ) -> Decisions:
        """By the release in charge; by version 0 where that is late or fails."""
        zero, release = acting.version_zero, charge.release
        fallback = None if zero is release else zero

        def ask(asked: LoadedRelease, decided_by: str) -> Decisions:
            permission = permit(self._contract.actions, asked.scorer.known, available, forbidden)
            return decide(asked.scorer, self._contract.actions, records, permission, decided_by)

        try:
            if fallback is None:
                return ask(release, charge.decided_by)
            try:
                work = lambda: ask(release, charge.decided_by)  # noqa: E731  # named, it would say less
                return self._deadline.within(arrived, release.cost_s(len(records)), work, release=release.number)
            except NoAvailableActionError:
                raise
            except LateError:
                self._metrics.late(str(release.number))
            except Exception as error:  # whatever an engine may throw: version 0 acts
                self._metrics.failed(str(release.number))
                self._failures.tell(error, release=release.number, did="left it to version 0")
                _LOG.error("release %s failed on a request and version 0 acted: %s", release.number, _told(error))
            return ask(fallback, LATE)
        except NoAvailableActionError as error:
            raise RefusedRequestError.of("no_known_action", str(error)) from error
        except Exception as error:
            self._failures.tell(error, release=release.number, did="refused")
            _LOG.error("release %s failed on a request: %s", release.number, _told(error))
            raise RefusedRequestError.of(
                "scoring_failed", f"release {release.number} could not decide: {in_brief(error)}", status=500
            ) from error

    def _charges(self, places: Sequence[Place], acting: Acting) -> list[_Charge]:
        """Who is in charge of which rows."""
        if acting.candidate is None:
            return [self._charge(list(range(len(places))), acting.in_charge("", places[0].at))]
        rows: dict[int, list[int]] = {}
        releases: dict[int, LoadedRelease] = {}
        for row, place in enumerate(places):
            release = acting.in_charge(place.episode_id or place.decision_id, self.memory.began_at(place))
            rows.setdefault(release.number, []).append(row)
            releases[release.number] = release
        return [self._charge(those, releases[number]) for number, those in rows.items()]

    def _charge(self, rows: list[int], release: LoadedRelease) -> _Charge:
        return _Charge(rows, release, BASELINE if release.number == VERSION_ZERO else POLICY)

    def _available(self, decisions: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
        masks = np.ones((len(decisions), len(self._names)), dtype=bool)
        for row, decision in enumerate(decisions):
            allowed = decision.get("available_actions")
            if allowed is not None:
                masks[row] = False
                masks[row, [self._column[name] for name in allowed]] = True
        return masks

    def _places(self, asked: Asked) -> list[Place]:
        places, seen, now = [], set[str | None](), None
        for row, decision in enumerate(asked.decisions):
            where = f"decisions[{row}]" if asked.is_batch else ""
            timestamp, episode_id = decision.get("timestamp"), decision.get("episode_id")
            if timestamp is not None:
                at = read_instant(timestamp, where)
            else:
                # Those that come together have one time, but not two of one episode, whose order it tells.
                now = self._clock.now() if now is None or (episode_id is not None and episode_id in seen) else now
                at = now
                seen.add(episode_id)
            decision_id = decision.get("decision_id") or os.urandom(16).hex()
            places.append(Place(episode_id, decision.get("step"), decision_id, at, decision.get("cluster"), where))
        return places

    # --- writing and answering

    def _line(self, decision: dict[str, Any], place: Place, choice: _Choice) -> bytes:
        mask = decision.get("available_actions")
        if choice.forbidden:  # what could not be done is not available: a probability of 0 there is no wrong one
            mask = [name for name in mask or self._names if name not in choice.forbidden]
        if mask is not None and choice.action not in mask:
            mask = [*mask, choice.action]  # nothing was left, and the safe action acts: the log tells what could be
        step = {
            "decision_id": place.decision_id,
            "episode_id": place.episode_id,
            "step": place.step,
            "cluster": place.cluster,
            "available_actions": mask,
            "behavior_prob": choice.probability,
            "behavior_probs": choice.probs,
            "policy_version": str(choice.release),
            "decided_by": choice.decided_by,
        }
        step |= {f"keys.{name}": value for name, value in (decision.get("keys") or {}).items()}
        return self._lines.line(step, choice.observation, place.at, choice.action)

    def _stands(self, asked: Asked, places: Sequence[Place], lines: Sequence[bytes], *, surely: bool = True) -> None:
        """Remembers decisions that are in the log."""
        for decision, place, line in zip(asked.decisions, places, lines, strict=True):
            if "decision_id" in decision:  # nobody can ask again under a name that only the lost answer had
                self._recent.logged(place.decision_id, line, surely=surely)
        self._outcomes.decided((place.decision_id, place.at) for place in places)
        newest = max(place.at for place in places)
        self._newest = newest if self._newest is None else max(newest, self._newest)

    async def _make_sure(self, asked: Asked) -> None:
        """Writes again what the disk may have lost of decisions that are asked for again."""
        unsure = self._recent.unsure(asked.decisions)
        if not unsure:
            return
        try:
            await self._write(list(unsure.values()))
        except LogFullError as error:
            raise RefusedRequestError.of("log_unsure", str(error), status=503, retry_after_s=1) from error
        for decision_id, line in unsure.items():
            self._recent.logged(decision_id, line)

    async def _write(self, lines: list[bytes]) -> None:
        if self._config.durability == "process":
            self._log.append(lines)  # a write into the system's memory: microseconds
            return
        await asyncio.get_running_loop().run_in_executor(self._writing, self._log.append, lines)

    def _unlogged(self, asked: Asked, places: Sequence[Place], zero: LoadedRelease) -> list[dict[str, Any]]:
        """Version 0's decisions where the log is full and the operator chose to go on.

        What they take is counted nowhere, so no capped action is taken at all.
        """
        reached = self._caps.reached() if self._caps else {}
        observations = [{**decision["observation"], **reached} for decision in asked.decisions]
        acting = Acting(zero, zero, None, {}, None)
        charges = [_Charge(list(range(len(places))), zero, BASELINE)]
        choices = self._chosen(observations, self._available(asked.decisions), charges, acting, 0.0)
        self._count(choices)
        return [{**self._answer(place, choice), "logged": False} for place, choice in zip(places, choices, strict=True)]

    def _count(self, choices: Sequence[_Choice]) -> None:
        for (release, decided_by, action), n in Counter(
            (choice.release, choice.decided_by, choice.action) for choice in choices
        ).items():
            self._metrics.decided(str(release), decided_by, action, n)

    def _answer(self, place: Place, choice: _Choice) -> dict[str, Any]:
        return {
            "decision_id": place.decision_id,
            "action": choice.action,
            "action_value": self._contract.actions.value_of(choice.action),
            "probability": choice.probability,
            "probabilities": dict(zip(self._names, choice.probs, strict=True)),
            "decided_by": choice.decided_by,
            "release": choice.release,
            "forbidden": choice.forbidden,
        }


def _part(charges: Sequence[_Charge], rows: Sequence[int]) -> list[_Charge]:
    """Who is in charge of some rows, which are counted anew."""
    place = {row: k for k, row in enumerate(rows)}
    parts = ([place[row] for row in charge.rows if row in place] for charge in charges)
    return [
        _Charge(part, charge.release, charge.decided_by) for part, charge in zip(parts, charges, strict=True) if part
    ]
