"""One autoscaled service as a Gymnasium environment, with the dynamics of the simulated logs."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from datasets.simulators.service import (
    ACTIONS,
    MAX_BREACH,
    MAX_COST,
    P95_CAP_MS,
    ZONES,
    Conditions,
    ServiceParameters,
    ServiceState,
    draw_conditions,
    initial_state,
    observe,
    step_service,
)
from datasets.simulators.simulation import HOURS_PER_WEEK
from datasets.simulators.workload import Trace

REWARD_RANGE = (-(MAX_COST + MAX_BREACH), 0.0)
"""Smallest and largest reward of one step."""

AutoscalerObservation = dict[str, Any]


class AutoscalerEnv(gymnasium.Env[AutoscalerObservation, np.int64]):
    """Keep one service's latency objective with as few replicas as possible, for one hour.

    Observation (a dict of scalars, float64 but for zone): cpu in [0, 1], request_rate in requests per second,
    replicas, pending (starting replicas), p95_ms, hour of the day (UTC), zone (index into `ZONES`). Actions: index
    into `ACTIONS`. Reward per step in `REWARD_RANGE`: minus the price of the replicas, minus the price of latency
    above the objective. An episode never terminates; it is truncated after `steps_per_episode` steps, since the
    service runs on.

    Args:
        parameters: service and workload.
        trace: request rates in place of the rhythm.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - declared so by gymnasium.Env

    def __init__(self, parameters: ServiceParameters | None = None, trace: Trace | None = None) -> None:
        self.parameters = parameters or ServiceParameters()
        self.trace = trace
        high = {
            "cpu": 1.0,
            "request_rate": np.inf,
            "replicas": float(self.parameters.max_replicas),
            "pending": float(self.parameters.max_replicas - 1),
            "p95_ms": P95_CAP_MS,
            "hour": 24.0,
        }
        spaces: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Box(1.0 if name == "replicas" else 0.0, value, (), np.float64)
            for name, value in high.items()
        }
        spaces["zone"] = gymnasium.spaces.Discrete(len(ZONES))
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self._conditions: Conditions | None = None
        self._state: ServiceState | None = None
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[AutoscalerObservation, dict[str, Any]]:
        """Start a service-hour, by default a random one of the week.

        Args:
            seed: seeds every random draw of the environment.
            options: `start_s` sets the start, in seconds since a Monday 00:00 UTC.
        """
        super().reset(seed=seed)
        start_s = (options or {}).get("start_s")
        if start_s is None:
            start_s = int(self.np_random.integers(HOURS_PER_WEEK)) * 3600
        self._conditions = draw_conditions(
            self.np_random,
            self.parameters,
            np.array([start_s], dtype=np.int64),
            n_steps=self.parameters.steps_per_episode,
            trace=self.trace,
        )
        self._state = initial_state(self.parameters, self._conditions)
        self._step = 0
        return self._observation(self._conditions, self._state), {}

    def step(self, action: np.int64) -> tuple[AutoscalerObservation, float, bool, bool, dict[str, Any]]:
        """One step of `step_s` seconds.

        Raises:
            ValueError: for an action that is none of `ACTIONS`, or a step outside an episode.
        """
        if self._conditions is None or self._state is None or self._step >= self.parameters.steps_per_episode:
            raise ValueError("there is no running episode. Call reset() before the first step and after truncation.")
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an integer in [0, {len(ACTIONS)}), one of {ACTIONS}; found {action!r}.")
        actions = np.array([action], dtype=np.int64)
        self._state, rewards = step_service(self.parameters, self._conditions, self._step, self._state, actions)
        self._step += 1
        truncated = self._step == self.parameters.steps_per_episode
        return self._observation(self._conditions, self._state), float(rewards[0]), False, truncated, {}

    def _observation(self, conditions: Conditions, state: ServiceState) -> AutoscalerObservation:
        seen = observe(self.parameters, conditions, self._step, state)
        return {name: np.int64(v[0]) if name == "zone" else np.array(v[0], np.float64) for name, v in seen.items()}
