"""A replicated service: queueing latency, start-up delay, cost. The one truth behind environment and simulation."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from datasets.settings import Settings
from datasets.simulators.workload import FloatArray, Trace, Workload, draw_disturbance, nominal_factor

IntArray = NDArray[np.int64]

ACTIONS = ("scale_down", "hold", "scale_up")
ZONES = ("a", "b", "c")
ZONE_SPEED = np.array([1.0, 0.92, 1.1])
"""Capacity of a replica in each of `ZONES`, relative to `ServiceParameters.replica_rate`."""
P95_CAP_MS = 2000.0
MAX_COST = 7.0
MAX_BREACH = 3.0
"""Both terms of the reward are bounded by these, so that it lies in [-10, 0] whatever happens."""

_MINUTES = np.array([NormalDist().inv_cdf((i + 0.5) / 8) for i in range(8)])
"""Eight equally likely standard normal values: how busy the minutes of a step are."""


class ServiceParameters(Settings):
    """The service, its objective and its prices; time passes in steps of `step_s`."""

    workload: Workload = Workload()
    """The requests it gets."""
    step_s: int = Field(default=600, gt=0)
    """Seconds between two decisions."""
    steps_per_episode: int = Field(default=6, gt=0)
    """Decisions per episode: one service-hour, after which the service runs on and the log is cut."""
    replica_rate: float = Field(default=100.0, gt=0)
    """Requests per second that one replica can serve."""
    service_time_ms: float = Field(default=40.0, gt=0)
    """Mean time to serve one request without waiting; its 95 % quantile is three times this."""
    within_step_sd: float = Field(default=0.2, ge=0)
    """Standard deviation of the logarithm of the load within one step: minutes differ, so latency rises before the mean
    load reaches 1 and keeps rising beyond it."""
    max_replicas: int = Field(default=16, ge=2)
    """Serving and starting replicas together never exceed this; one replica always stays."""
    scale_by: int = Field(default=1, ge=1, le=2)
    """Replicas added or removed by one scaling decision."""
    ready_probability: float = Field(default=0.7, gt=0, le=1)
    """Chance that starting replicas are ready when the step ends; until then they cost and do not serve."""
    objective_ms: float = Field(default=250.0, gt=0, lt=P95_CAP_MS)
    """Latency objective: a higher 95 % quantile costs."""
    planned_load: float = Field(default=0.6, gt=0, lt=1)
    """Utilisation that the capacity plan aims at when an episode starts."""
    plan_error: float = Field(default=0.25, ge=0)
    """Standard deviation of the logarithm of the plan's error."""


class Conditions(NamedTuple):
    """Everything about n episodes that no action moves, drawn before the first step."""

    seconds: IntArray
    """(n,) start of the episode in seconds since a Monday 00:00 UTC."""
    rates: FloatArray
    """(n, H + 1) requests per second: before the first step, then during each of the H steps."""
    ready: FloatArray
    """(n, H) uniform draws that decide when starting replicas become ready."""
    zone: NDArray[np.int32]
    """(n,) index into `ZONES`."""
    replicas: FloatArray
    """(n,) serving replicas at the start."""


class ServiceState(NamedTuple):
    """What n services look like at one instant, each array of shape (n,)."""

    rate: FloatArray
    """Requests per second during the step that just ended."""
    load: FloatArray
    """Utilisation during that step; above 1 the service was overloaded."""
    p95_ms: FloatArray
    replicas: FloatArray
    """Replicas that serve from now on."""
    pending: FloatArray
    """Replicas that are starting."""


def draw_conditions(
    rng: np.random.Generator,
    parameters: ServiceParameters,
    seconds: IntArray,
    *,
    n_steps: int,
    trace: Trace | None = None,
) -> Conditions:
    """The exogenous side of len(seconds) episodes: service, zone, request rates, start-up luck, planned replicas.

    Args:
        rng: the only source of randomness.
        parameters: service and workload.
        seconds: (n,) start of each episode in seconds since a Monday 00:00 UTC.
        n_steps: decisions per episode.
        trace: request rates in place of the rhythm.
    """
    n = len(seconds)
    workload = parameters.workload
    zone = rng.integers(len(ZONES), size=n).astype(np.int32)
    mean_rate = workload.median_rate * np.exp(workload.rate_spread * np.clip(rng.standard_normal(n), -2, 2))
    plan_error = np.exp(parameters.plan_error * rng.standard_normal(n))
    clock = seconds[:, None] + parameters.step_s * np.arange(n_steps + 1)
    planned = mean_rate[:, None] * nominal_factor(workload, clock, trace)
    rates = planned * draw_disturbance(rng, workload, clock)
    needed = planned[:, 0] / (parameters.replica_rate * ZONE_SPEED[zone] * parameters.planned_load)
    replicas = np.clip(np.round(needed * plan_error), 1, parameters.max_replicas)
    return Conditions(seconds, np.round(rates, 1), rng.random((n, n_steps)), zone, replicas)


def initial_state(parameters: ServiceParameters, conditions: Conditions) -> ServiceState:
    """The services just before the first decision, with nothing starting."""
    return _measured(
        parameters, conditions, 0, conditions.replicas, conditions.replicas, np.zeros(len(conditions.zone))
    )


def step_service(
    parameters: ServiceParameters, conditions: Conditions, step: int, state: ServiceState, actions: IntArray
) -> tuple[ServiceState, FloatArray]:
    """One step of n services: scale, serve the step's requests, let starting replicas become ready.

    A scale-down acts at once and cancels starting replicas first; a scale-up serves from a later step.

    Args:
        parameters: service and prices.
        conditions: the exogenous side of the n episodes.
        step: index of this step, in [0, H).
        state: (n,) the services at the decision.
        actions: (n,) index into `ACTIONS`.

    Returns:
        The state at the next decision and the (n,) rewards, each in [-10, 0].
    """
    change = (actions - 1) * parameters.scale_by
    total = np.clip(state.replicas + state.pending + change, 1, parameters.max_replicas)
    serving = np.minimum(state.replicas, total)
    ready = conditions.ready[:, step] < parameters.ready_probability
    replicas = np.where(ready, total, serving)
    after = _measured(parameters, conditions, step + 1, serving, replicas, total - replicas)
    return after, reward(parameters, total, after.p95_ms)


def reward(parameters: ServiceParameters, replicas: FloatArray, p95_ms: FloatArray) -> FloatArray:
    """Minus the price of the replicas, starting ones included, minus the price of breaching the objective.

    Returns:
        (n,) in [-(MAX_COST + MAX_BREACH), 0]: the first term is linear up to `max_replicas`, the second linear from
        `objective_ms` up to `P95_CAP_MS`.
    """
    excess = np.maximum(p95_ms - parameters.objective_ms, 0) / (P95_CAP_MS - parameters.objective_ms)
    return np.round(-MAX_COST * replicas / parameters.max_replicas - MAX_BREACH * excess, 6)


def latency_p95_ms(parameters: ServiceParameters, load: FloatArray, replicas: FloatArray) -> FloatArray:
    """95 % quantile of the time in the system, averaged over the minutes of a step; steep near saturation.

    Args:
        parameters: service time, and how much the load varies within a step.
        load: (n,) mean utilisation; a minute at 1 or above has no steady state and counts as the cap.
        replicas: (n,) servers.

    Returns:
        (n,) milliseconds in (0, P95_CAP_MS].

    Source: Sakasegawa 1977, mean wait of M/M/c: S rho^(sqrt(2 (c + 1)) - 1) / (c (1 - rho)).
    Differs from it: the quantile is taken as three times the mean time in the system (an exponential has ln 20).
    """
    sd = parameters.within_step_sd
    minutes = load[..., None] * np.exp(sd * _MINUTES - sd**2 / 2)  # (n, 8)
    servers = replicas[..., None]
    stable = np.minimum(minutes, 0.999)
    waiting = stable ** (np.sqrt(2 * (servers + 1)) - 1) / (servers * (1 - stable))
    p95 = np.minimum(3 * parameters.service_time_ms * (1 + waiting), P95_CAP_MS)
    return np.asarray(np.where(minutes >= 1, P95_CAP_MS, p95).mean(axis=-1))


def observe(
    parameters: ServiceParameters, conditions: Conditions, step: int, state: ServiceState
) -> dict[str, NDArray[Any]]:
    """What the controller sees before decision `step`, rounded as it is logged, so that the log is what was decided on.

    Returns:
        cpu, request_rate, replicas, pending, p95_ms, hour as (n,) float64 and zone as (n,) int32 codes into `ZONES`.
    """
    second = (conditions.seconds + step * parameters.step_s) % 86_400
    return {
        "cpu": np.round(np.minimum(state.load, 1.0), 4),
        "request_rate": state.rate,
        "replicas": state.replicas,
        "pending": state.pending,
        "p95_ms": np.round(state.p95_ms, 1),
        "hour": np.round(second / 3600, 4),
        "zone": conditions.zone,
    }


def _measured(
    parameters: ServiceParameters,
    conditions: Conditions,
    column: int,
    serving: FloatArray,
    replicas: FloatArray,
    pending: FloatArray,
) -> ServiceState:
    rate = conditions.rates[:, column]
    load = rate / (serving * parameters.replica_rate * ZONE_SPEED[conditions.zone])
    return ServiceState(rate, load, latency_p95_ms(parameters, load, serving), replicas, pending)
