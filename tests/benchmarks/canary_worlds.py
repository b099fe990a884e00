"""Worlds in which a canary's episodes are drawn and the truth is known: what each policy earns with all the traffic.

A world yields episodes in the order of their start. `share` is what the candidate gets when an episode begins, or in a
switchback of the blocks; who is assigned is drawn here, as the hash does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.simulators.service import ServiceParameters, latency_p95_ms, reward
from datasets.simulators.simulation import ActionProbs, roll_out
from datasets.simulators.threshold_rule import with_exploration
from datasets.simulators.workload import DAY_S

Floats = NDArray[np.float64]
LIMIT = 0.2
"""Of the constraint on breaches, as in the autoscaler's contract."""
PER_HOUR = 160
"""Episodes that begin in an hour: 3,840 a day."""


@dataclass(frozen=True)
class Episodes:
    """(N,) of episodes that were assigned by chance."""

    candidate: NDArray[np.bool_]
    value: Floats
    success: Floats
    """Steps that were one."""
    breaches: Floats
    late: Floats
    n_steps: Floats
    unit: NDArray[np.int64]
    hour: NDArray[np.int64]


class World(Protocol):
    """Draws what happens, and knows the truth."""

    def draw(self, rng: np.random.Generator, hours: NDArray[np.int64], share: float) -> Episodes:
        """The episodes of these hours."""

    @property
    def gain(self) -> float:
        """What the candidate would earn more per episode, had it all the traffic."""

    @property
    def spread(self) -> float:
        """Standard deviation of the champion's episode returns."""


@dataclass(frozen=True)
class Plain:
    """Independent episodes of four steps whose returns differ by a shift alone.

    Attributes:
        shape: "normal"; "skewed", costs as a lognormal with a skewness of 6; "disaster", one in 200 loses 10.
        rhythm: swing of the mean over the day, and `trend` its change in ten days, in standard deviations.
        cluster: episodes that share half of their variance and a taste of their own for the candidate.
    """

    effect: float = 0.0
    shape: str = "normal"
    rhythm: float = 0.0
    trend: float = 0.0
    cluster: int = 1
    success: float = 0.9
    breaches: float = 0.05
    late: float = 0.0
    """Of the candidate; the champion has no late decision."""
    worse_rates: float = 0.0
    """What the candidate's success rate loses, and its breaches gain."""

    @property
    def gain(self) -> float:
        return self.effect

    @property
    def spread(self) -> float:
        return float(np.sqrt(1 + self.rhythm**2 / 2 + (10**2 / 200 if self.shape == "disaster" else 0.0)))

    def draw(self, rng: np.random.Generator, hours: NDArray[np.int64], share: float) -> Episodes:
        hour = np.repeat(hours, PER_HOUR)
        n = len(hour)
        ours = rng.random(n) < share
        unit = hour[0] * PER_HOUR + np.arange(n) // self.cluster
        value = self.rhythm * np.sin(2 * np.pi * hour / 24) + self.trend * hour / 240 + self.effect * ours
        if self.cluster > 1:
            common, taste = (rng.normal(size=n // self.cluster + 1)[np.arange(n) // self.cluster] for _ in range(2))
            value = value + np.sqrt(0.5) * common + 0.5 * taste * ours + np.sqrt(0.5) * rng.normal(size=n)
        elif self.shape == "skewed":
            value = value - (rng.lognormal(0, 1, n) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
        else:
            value = value + rng.normal(size=n)
        if self.shape == "disaster":
            value = value - 10.0 * (rng.random(n) < 1 / 200)
        worse = self.worse_rates * ours
        return Episodes(
            ours, value, rng.binomial(4, self.success - worse).astype(float),
            rng.binomial(4, self.breaches + worse).astype(float), rng.binomial(4, self.late * ours).astype(float),
            np.full(n, 4.0), unit, hour,
        )  # fmt: skip


@dataclass(frozen=True)
class Autoscaler:
    """Service-hours of the simulated autoscaler, under threshold rules that differ in when they scale up and down.

    Episodes are drawn with replacement from 400 simulated ones of each hour of the day and policy; these are the truth.
    """

    champion: tuple[float, float] = (0.6, 0.3)
    candidate: tuple[float, float] = (0.6, 0.3)
    """Utilisation above which it adds a replica, and below which it takes one; .3 of its decisions are random."""

    def draw(self, rng: np.random.Generator, hours: NDArray[np.int64], share: float) -> Episodes:
        hour = np.repeat(hours, PER_HOUR)
        n = len(hour)
        ours = rng.random(n) < share
        row = rng.integers(_POOL, size=n)
        pools = [_pool(self.candidate), _pool(self.champion)]
        value, success, breaches = (
            np.where(ours, pools[0][name][hour % 24, row], pools[1][name][hour % 24, row])
            for name in ("value", "success", "breaches")
        )
        unit = hour[0] * PER_HOUR + np.arange(n)
        return Episodes(ours, value, success, breaches, np.zeros(n), np.full(n, 6.0), unit, hour)

    @property
    def gain(self) -> float:
        return float(_pool(self.candidate)["value"].mean() - _pool(self.champion)["value"].mean())

    @property
    def spread(self) -> float:
        return float(_pool(self.champion)["value"].std())


_POOL = 400


@lru_cache(maxsize=16)
def _pool(thresholds: tuple[float, float]) -> Mapping[str, Any]:
    """(24, _POOL) return, successes and breaches of service-hours by hour of the day; the same traffic for everyone."""
    parameters = ServiceParameters()
    rows = np.arange(24 * _POOL)
    seconds = rows // _POOL * 3600 + rows % _POOL * 7 * DAY_S  # Mondays, each of a week of its own
    up, down = thresholds

    def choose(seen: Mapping[str, Any]) -> NDArray[np.int64]:
        return np.where(seen["cpu"] > up, 2, np.where((seen["cpu"] < down) & (seen["replicas"] > 2), 0, 1))

    policy: ActionProbs = with_exploration(choose, 0.3)
    rolled = roll_out(np.random.default_rng(11), parameters, seconds, policy, n_steps=6)
    p95 = rolled.observations["p95_ms"][:, 1:]
    found = {
        "value": rolled.rewards @ 0.9 ** np.arange(6),
        "success": (p95 <= 250).sum(axis=1).astype(float),
        "breaches": (p95 > 1000).sum(axis=1).astype(float),
    }
    return {name: values.reshape(24, _POOL) for name, values in found.items()}


@dataclass(frozen=True)
class SharedCapacity:
    """Services of one pool of replicas: each asks for what its policy plans, and gets less where it is too small.

    The candidate plans at a lower utilisation, so it asks for more. On a slice of the traffic it gets it, from the
    others; with all the traffic everyone gets what they had, and pays for asking. Replicas move half way in each ten
    minutes, so what acted before still shows. One decision every ten minutes is an episode.
    """

    planned: float = 0.6
    """Utilisation that the candidate plans with; the champion plans with .6."""
    pool: float = 4.5
    """Replicas of the pool for each service."""
    asking_costs: float = 0.1
    """Price of each replica that is asked for."""
    in_blocks: bool = False
    per_step: int = 12

    def draw(self, rng: np.random.Generator, hours: NDArray[np.int64], share: float) -> Episodes:
        parameters, n = ServiceParameters(), self.per_step
        columns: dict[str, list[Any]] = {name: [] for name in ("ours", "value", "p95", "hour")}
        held = np.full(n, self.pool)
        for hour in hours.tolist():
            whole = rng.random() < share
            for slot in range(6):
                ours = np.full(n, whole) if self.in_blocks else rng.random(n) < share
                held, value, p95 = self._step(rng, parameters, ours, held, hour)
                if self.in_blocks and slot == 0:
                    continue  # the burn-in
                for name, values in zip(columns, (ours, value, p95, np.full(n, hour)), strict=True):
                    columns[name].append(values)
        ours, value, p95, hour = (np.concatenate(columns[name]) for name in columns)
        size = len(ours)
        unit = hour if self.in_blocks else hours[0] * 6 * n + np.arange(size)
        return Episodes(
            ours, value, (p95 <= 250).astype(float), (p95 > 1000).astype(float), np.zeros(size), np.ones(size),
            unit.astype(np.int64), hour.astype(np.int64),
        )  # fmt: skip

    def _step(
        self, rng: np.random.Generator, parameters: ServiceParameters, ours: NDArray[np.bool_], held: Floats, hour: int
    ) -> tuple[Floats, Floats, Floats]:
        rate = 420 * np.exp(0.2 * rng.normal(size=len(ours))) * (1 + 0.1 * np.sin(2 * np.pi * hour / 24))
        wanted = rate / (parameters.replica_rate * np.where(ours, self.planned, 0.6))
        got = wanted * min(1.0, self.pool * len(ours) / wanted.sum())
        got = np.clip(0.5 * (got + held), 1, parameters.max_replicas)
        p95 = latency_p95_ms(parameters, rate / (got * parameters.replica_rate), got)
        return got, reward(parameters, got, p95) - self.asking_costs * wanted, p95

    @property
    def gain(self) -> float:
        return _worth(self, self.planned)[0] - _worth(self, 0.6)[0]

    @property
    def spread(self) -> float:
        return _worth(self, 0.6)[1]

    @property
    def seen_on_slices(self) -> float:
        """Difference that episodes show while half of them are the candidate's."""
        found = replace(self, in_blocks=False).draw(np.random.default_rng(5), np.arange(1200), 0.5)
        return float(found.value[found.candidate].mean() - found.value[~found.candidate].mean())


@lru_cache(maxsize=32)
def _worth(world: SharedCapacity, planned: float) -> tuple[float, float]:
    """Mean and standard deviation of an episode where a policy that plans so has all the traffic."""
    value = replace(world, planned=planned).draw(np.random.default_rng(5), np.arange(1200), 1.0).value
    return float(value.mean()), float(value.std())
