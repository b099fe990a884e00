"""Many autoscaled services at once: a night of logged episodes, and what a policy is truly worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.simulators.service import (
    ACTIONS,
    ServiceParameters,
    draw_conditions,
    initial_state,
    observe,
    step_service,
)
from datasets.simulators.workload import DAY_S, WEEK_S, FloatArray, Trace

FIRST_NIGHT = np.datetime64("2026-01-05T00:00:00", "s")
"""Start of night 1, a Monday; night k is the UTC day k - 1 days later."""

HOURS_PER_WEEK = 168

ActionProbs = Callable[[Mapping[str, NDArray[Any]]], FloatArray]
"""A policy: observations of n services, each feature (n,), zone as int32 codes into `ZONES` -> (n, A) probabilities."""


class RollOut(NamedTuple):
    """n episodes of H steps."""

    observations: dict[str, NDArray[Any]]
    """Each feature (n, H + 1): before every decision, and after the last step."""
    actions: NDArray[np.int64]
    """(n, H) index into `ACTIONS`."""
    rewards: FloatArray
    """(n, H), each in [-10, 0]."""
    behavior_prob: FloatArray
    """(n, H) probability with which the acting policy took the action."""


@dataclass(frozen=True)
class SimulatedNight:
    """The episodes of one simulated UTC day, ordered by their start."""

    night: int
    policy_version: str
    starts: NDArray[np.datetime64]
    """(n,) UTC, whole hours."""
    step_s: int
    episodes: RollOut


class TrueValue(NamedTuple):
    """A mean over independent simulated episodes or services, and its standard error."""

    value: float
    standard_error: float


def simulate_night(
    rng: np.random.Generator,
    parameters: ServiceParameters,
    *,
    night: int,
    n_episodes: int,
    policy: ActionProbs,
    policy_version: str,
    trace: Trace | None = None,
) -> SimulatedNight:
    """One UTC day of service-hours, their starts spread evenly over its 24 whole hours.

    Args:
        rng: the only source of randomness; the traffic is drawn before the first action.
        parameters: service and workload, with its shifts.
        night: 1 is the day of `FIRST_NIGHT`.
        n_episodes: n, episodes to simulate.
        policy: what acts.
        policy_version: how the log names it.
        trace: request rates in place of the rhythm.

    Raises:
        ValueError: if `night` or `n_episodes` is not positive, or an episode is longer than an hour.
    """
    if night < 1 or n_episodes < 1:
        raise ValueError(f"night and n_episodes must be at least 1, found {night} and {n_episodes}.")
    if parameters.steps_per_episode * parameters.step_s > 3600:
        raise ValueError(
            f"an episode is one service-hour, found {parameters.steps_per_episode} steps of {parameters.step_s} s. "
            f"Take fewer or shorter steps."
        )
    hours = np.arange(n_episodes, dtype=np.int64) * 24 // n_episodes
    seconds = (night - 1) * DAY_S + hours * 3600
    episodes = roll_out(rng, parameters, seconds, policy, n_steps=parameters.steps_per_episode, trace=trace)
    starts = FIRST_NIGHT + seconds.astype("timedelta64[s]")
    return SimulatedNight(night, policy_version, starts, parameters.step_s, episodes)


def roll_out(
    rng: np.random.Generator,
    parameters: ServiceParameters,
    seconds: NDArray[np.int64],
    policy: ActionProbs,
    *,
    n_steps: int,
    trace: Trace | None = None,
) -> RollOut:
    """Let `policy` act on n services for `n_steps` steps each.

    All randomness is drawn before the first action, so under the same seed two policies meet the same traffic.

    Args:
        rng: the only source of randomness.
        parameters: service and workload.
        seconds: (n,) start of each episode, in seconds since a Monday 00:00 UTC.
        policy: what acts.
        n_steps: H.
        trace: request rates in place of the rhythm.

    Raises:
        ValueError: if the policy returns anything but (n, A) probabilities whose rows sum to 1.
    """
    conditions = draw_conditions(rng, parameters, seconds, n_steps=n_steps, trace=trace)
    uniforms = rng.random((n_steps, len(seconds)))
    state = initial_state(parameters, conditions)
    seen, actions, rewards, probs = [observe(parameters, conditions, 0, state)], [], [], []
    for step in range(n_steps):
        action_probs = _checked(policy(seen[-1]), len(seconds))
        chosen = _draw(action_probs, uniforms[step])
        state, step_rewards = step_service(parameters, conditions, step, state, chosen)
        seen.append(observe(parameters, conditions, step + 1, state))
        actions.append(chosen)
        rewards.append(step_rewards)
        probs.append(action_probs[np.arange(len(seconds)), chosen])
    observations = {name: np.stack([one[name] for one in seen], axis=1) for name in seen[0]}
    return RollOut(observations, np.stack(actions, axis=1), np.stack(rewards, axis=1), np.stack(probs, axis=1))


def true_value(
    policy: ActionProbs,
    parameters: ServiceParameters,
    *,
    n_episodes: int,
    seed: int,
    gamma: float,
    trace: Trace | None = None,
) -> TrueValue:
    """Mean discounted return of one service-hour, over hours drawn uniformly from the week.

    Every episode has a day of its own, so that shared shocks average out.

    Raises:
        ValueError: if `n_episodes` is below 2.
    """
    if n_episodes < 2:
        raise ValueError(f"n_episodes must be at least 2, found {n_episodes}.")
    rng = np.random.default_rng(seed)
    weeks = np.arange(n_episodes, dtype=np.int64)
    seconds = weeks * WEEK_S + rng.integers(HOURS_PER_WEEK, size=n_episodes) * 3600
    n_steps = parameters.steps_per_episode
    rewards = roll_out(rng, parameters, seconds, policy, n_steps=n_steps, trace=trace).rewards
    return _mean(rewards @ gamma ** np.arange(n_steps))


def weekly_return(
    policy: ActionProbs, parameters: ServiceParameters, *, n_services: int, seed: int, trace: Trace | None = None
) -> TrueValue:
    """Mean undiscounted reward per hour of services that run through a whole week without a reset.

    Raises:
        ValueError: if `n_services` is below 2, or a step does not divide an hour.
    """
    if n_services < 2 or 3600 % parameters.step_s:
        raise ValueError(
            f"wanted at least 2 services and a step that divides 3600 s, found {n_services} and {parameters.step_s} s."
        )
    rng = np.random.default_rng(seed)
    seconds = np.arange(n_services, dtype=np.int64) * WEEK_S
    n_steps = HOURS_PER_WEEK * 3600 // parameters.step_s
    rewards = roll_out(rng, parameters, seconds, policy, n_steps=n_steps, trace=trace).rewards
    return _mean(rewards.sum(axis=1) / HOURS_PER_WEEK)


def _mean(values: FloatArray) -> TrueValue:
    return TrueValue(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def _checked(action_probs: FloatArray, n: int) -> FloatArray:
    wanted = action_probs.shape == (n, len(ACTIONS))
    if not wanted or not np.allclose(action_probs.sum(axis=1), 1, atol=1e-6) or (action_probs < 0).any():
        raise ValueError(
            f"the policy must return ({n}, {len(ACTIONS)}) probabilities whose rows sum to 1, found an array of shape "
            f"{action_probs.shape}. Return one row per service and one column for each of {', '.join(ACTIONS)}."
        )
    return action_probs


def _draw(action_probs: FloatArray, uniforms: FloatArray) -> NDArray[np.int64]:
    """(n,) actions; never one of probability 0, since the last cumulative share is exactly 1."""
    cumulative = np.cumsum(action_probs, axis=1)
    passed = uniforms[:, None] >= cumulative / cumulative[:, -1:]
    return np.asarray(passed.sum(axis=1), dtype=np.int64)
