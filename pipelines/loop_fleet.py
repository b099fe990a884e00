"""A simulated fleet that asks a real server for every decision: what `make loop` is made of.

Each simulated day has the same number of service-hours. The services of an hour ask together, one request for each of
their six steps, and report what came of it before they ask again. Traffic, zones and luck of a day are drawn before
its first decision, so that other controllers can be tried on exactly the same day.
"""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.errors import OfflineDqnError
from datasets.simulators.service import (
    ACTIONS,
    ZONES,
    Conditions,
    ServiceParameters,
    draw_conditions,
    initial_state,
    observe,
    step_service,
)
from datasets.simulators.simulation import FIRST_NIGHT
from datasets.simulators.workload import DAY_S, Workload

CAPPED, AT_MOST = "scale_up", 2
"""What the drill's contract caps: scale-ups of one service within an hour."""

_COUNTS = ("replicas", "pending")
_RETRY_S = 30.0


class FleetError(OfflineDqnError):
    """The server did not answer, or refused what it should decide."""


@dataclass(frozen=True)
class Day:
    """One simulated day: its number from 1, how busy it is, and how many service-hours it has."""

    number: int
    traffic: float
    n_episodes: int
    seed: int

    @property
    def parameters(self) -> ServiceParameters:
        """The services, with this day's traffic. Saturdays are like Mondays: two weeks are no season to learn."""
        return ServiceParameters(workload=Workload(traffic=self.traffic, weekend_factor=1.0))

    @property
    def hours(self) -> NDArray[np.int64]:
        """(n,) hour of the day in which each service-hour lies, ascending."""
        return np.arange(self.n_episodes, dtype=np.int64) * 24 // self.n_episodes

    def conditions(self) -> Conditions:
        """Everything about the day that no action moves."""
        seconds = (self.number - 1) * DAY_S + self.hours * 3600
        rng = np.random.default_rng([self.seed, self.number])
        return draw_conditions(rng, self.parameters, seconds, n_steps=self.parameters.steps_per_episode)


@dataclass
class Tally:
    """What was decided, counted by the fleet itself and not by the server.

    Attributes:
        n_decisions: answered.
        decided_by: decisions by path.
        releases: decisions by release.
        forbidden: decisions in which a constraint took an action away, by the constraint.
        n_violations: actions that the contract forbids, by the fleet's own reckoning.
        ids: of every answered decision.
    """

    n_decisions: int = 0
    decided_by: Counter[str] = field(default_factory=Counter)
    releases: Counter[int] = field(default_factory=Counter)
    forbidden: Counter[str] = field(default_factory=Counter)
    n_violations: int = 0
    ids: list[str] = field(default_factory=list)


class Client:
    """One connection to the server, opened again where it is lost.

    Args:
        address: where the server is now; asked again after a restart.
    """

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request that must succeed; sent again while the server is away.

        Raises:
            FleetError: it was refused, or nothing answered for long.
        """
        return self._asked("POST", path, json.dumps(body).encode())

    def wait_until(self, path: str, holds: Callable[[dict[str, Any]], bool]) -> float:
        """Asks again and again until an answer is as wanted; seconds that it took.

        Raises:
            FleetError: it was not for long.
        """
        began = time.monotonic()
        while not holds(self._asked("GET", path, None)):
            if time.monotonic() - began > _RETRY_S:
                raise FleetError(f"the server at {self._address()} does not say at {path} what it should by now")
            time.sleep(0.02)
        return time.monotonic() - began

    def _asked(self, method: str, path: str, content: bytes | None) -> dict[str, Any]:
        deadline = time.monotonic() + _RETRY_S
        while True:
            try:
                status, text = self._send(method, path, content)
            except OSError as error:
                self._connection = None
                if time.monotonic() > deadline:
                    raise FleetError(f"the server at {self._address()} does not answer: {error}") from error
                time.sleep(0.05)
                continue
            if status != 200:
                raise FleetError(f"the server refused {path} with {status}: {text[:500].decode()}")
            answer: dict[str, Any] = json.loads(text)
            return answer

    def _send(self, method: str, path: str, content: bytes | None) -> tuple[int, bytes]:
        if self._connection is None:
            host, _, port = self._address().removeprefix("http://").rpartition(":")
            self._connection = http.client.HTTPConnection(host, int(port), timeout=_RETRY_S)
        self._connection.request(method, path, content, {"Content-Type": "application/json"})
        try:
            answer = self._connection.getresponse()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        return answer.status, answer.read()


def play_day(
    day: Day, client: Client, tally: Tally, at_hour: Callable[[int, datetime], None] = lambda *_: None
) -> NDArray[np.float64]:
    """Lives one day on the decisions of a server.

    Args:
        tally: is counted up.
        at_hour: is told of each hour before it begins: its number, and its instant.

    Returns:
        (n,) true return of each service-hour: the plain sum of its rewards.
    """
    conditions, returns = day.conditions(), np.zeros(day.n_episodes)
    for hour in range(24):
        rows = np.flatnonzero(day.hours == hour)
        began = start_of(day.number) + timedelta(hours=hour)
        at_hour(hour, began)
        if len(rows):
            part = _of_rows(conditions, rows)
            returns[rows] = _play_hour(day, part, rows, began, client, tally)
    return returns


def start_of(day: int) -> datetime:
    """Midnight with which a day begins, UTC."""
    return datetime.fromisoformat(str(FIRST_NIGHT)).replace(tzinfo=UTC) + timedelta(days=day - 1)


def _of_rows(conditions: Conditions, rows: NDArray[np.int64]) -> Conditions:
    return Conditions(
        seconds=conditions.seconds[rows],
        rates=conditions.rates[rows],
        ready=conditions.ready[rows],
        zone=conditions.zone[rows],
        replicas=conditions.replicas[rows],
    )


def _play_hour(
    day: Day, conditions: Conditions, rows: NDArray[np.int64], began: datetime, client: Client, tally: Tally
) -> NDArray[np.float64]:
    parameters, n_steps = day.parameters, day.parameters.steps_per_episode
    episodes = [f"d{day.number:03d}-h{began.hour:02d}-e{row:05d}" for row in rows.tolist()]
    state, returns, n_capped = initial_state(parameters, conditions), np.zeros(len(rows)), np.zeros(len(rows))
    for step in range(n_steps):
        at = began + timedelta(seconds=step * parameters.step_s)
        records = _records(observe(parameters, conditions, step, state))
        asked = [
            {"episode_id": episode, "step": step, "timestamp": at.isoformat(), "observation": record}
            for episode, record in zip(episodes, records, strict=True)
        ]
        answers = client.post("/v1/act", {"decisions": asked})["decisions"]
        actions = np.array([ACTIONS.index(answer["action"]) for answer in answers], dtype=np.int64)
        _count(tally, answers)
        ups = actions == ACTIONS.index(CAPPED)
        last_one = (actions == ACTIONS.index("scale_down")) & (state.replicas <= 1)
        tally.n_violations += int((ups & (n_capped >= AT_MOST)).sum() + last_one.sum())
        n_capped += ups
        state, rewards = step_service(parameters, conditions, step, state, actions)
        returns += rewards
        finals = _records(observe(parameters, conditions, n_steps, state)) if step == n_steps - 1 else None
        then = at + timedelta(seconds=parameters.step_s)
        client.post("/v1/outcomes", {"outcomes": _outcomes(answers, rewards, then, finals)})
    return returns


def _outcomes(
    answers: Sequence[Mapping[str, Any]],
    rewards: NDArray[np.float64],
    at: datetime,
    finals: Sequence[Mapping[str, Any]] | None,
) -> list[dict[str, Any]]:
    """What the services report of their last decisions; the hour's end cuts the episodes, and the services go on."""
    outcomes: list[dict[str, Any]] = [
        {"decision_id": answer["decision_id"], "reward": reward, "timestamp": at.isoformat()}
        for answer, reward in zip(answers, rewards.tolist(), strict=True)
    ]
    if finals is not None:
        for outcome, final in zip(outcomes, finals, strict=True):
            outcome |= {"truncated": True, "final_observation": final}
    return outcomes


def _count(tally: Tally, answers: Sequence[Mapping[str, Any]]) -> None:
    tally.n_decisions += len(answers)
    tally.decided_by.update(answer["decided_by"] for answer in answers)
    tally.releases.update(answer["release"] for answer in answers)
    for answer in answers:
        tally.forbidden.update(set(answer["forbidden"].values()))
    tally.ids += [answer["decision_id"] for answer in answers]


def _records(observations: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Observations of n services as n JSON objects."""
    columns = {
        name: [ZONES[code] for code in values.tolist()]
        if name == "zone"
        else (values.astype(np.int64) if name in _COUNTS else values).tolist()
        for name, values in observations.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
