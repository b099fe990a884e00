"""Simulated nights of the autoscaler as log files: who acts, with which traffic, and how much weighting will cost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.observations import Observations
from datasets.simulators.episode_logs import write_logs
from datasets.simulators.service import ACTIONS, ZONES, ServiceParameters
from datasets.simulators.simulation import ActionProbs, simulate_night
from datasets.simulators.threshold_rule import EXPLORATION, expected_episodes_per_effective_episode, logging_policy
from datasets.simulators.workload import Workload, read_trace

_NIGHT = re.compile(r"night-(\d+)\.jsonl")

_CHANGED_SHARE = 0.5
"""Share of states in which a candidate is taken to decide differently, for orientation."""


class ActingPolicy(Protocol):
    """What the simulation needs of a released policy."""

    @property
    def actions(self) -> tuple[str, ...]:
        """Labels of the action axis."""

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) probabilities."""


@dataclass(frozen=True)
class SimulatedLogs:
    """A night that was written.

    Attributes:
        mean_return: mean sum of rewards per episode, not discounted.
        episodes_per_effective: expected logged episodes per effective one, for a candidate with the same exploration
            that decides differently in half of the states.
    """

    path: Path
    night: int
    n_episodes: int
    n_steps: int
    policy_version: str
    mean_return: float
    episodes_per_effective: float


def simulate_logs(
    directory: Path,
    *,
    night: int | None,
    n_episodes: int,
    seed: int,
    traffic: float,
    trace_path: Path | None,
    policy: ActingPolicy | None,
    policy_version: str,
) -> SimulatedLogs:
    """Simulates one night and writes it to `directory`.

    Args:
        night: number from 1; None takes the one after the newest log there.
        seed: the night's number is mixed into it, so that nights differ and a repeat does not.
        traffic: factor on the request rate.
        trace_path: CSV of timestamp and requests that drives the traffic.
        policy: what acts; None is the threshold controller with its exploration.

    Raises:
        TraceError: the trace cannot be read.
    """
    if night is None:
        night = 1 + max((int(m[1]) for m in map(_NIGHT.fullmatch, _names(directory)) if m), default=0)
    parameters = ServiceParameters(workload=Workload(traffic=traffic))
    trace = read_trace(trace_path, step_s=parameters.step_s) if trace_path else None
    simulated = simulate_night(
        np.random.default_rng([seed, night]),
        parameters,
        night=night,
        n_episodes=n_episodes,
        policy=as_simulated(policy) if policy else logging_policy(),
        policy_version=policy_version,
        trace=trace,
    )
    rewards = simulated.episodes.rewards
    return SimulatedLogs(
        path=write_logs(simulated, directory),
        night=night,
        n_episodes=n_episodes,
        n_steps=rewards.size,
        policy_version=policy_version,
        mean_return=float(rewards.sum(axis=1).mean()),
        episodes_per_effective=expected_episodes_per_effective_episode(
            epsilon=EXPLORATION, horizon=parameters.steps_per_episode, changed_share=_CHANGED_SHARE
        ),
    )


def as_simulated(policy: ActingPolicy) -> ActionProbs:
    """A released policy in the form in which the simulation asks; what it knows beyond `ACTIONS` is not available."""
    known = np.array([name in ACTIONS for name in policy.actions])
    order = [policy.actions.index(name) for name in ACTIONS]

    def action_probs(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        n = len(observations["zone"])
        columns = {name: v if name == "zone" else v.astype(np.float64) for name, v in observations.items()}
        probs = policy.action_probs(Observations(columns, {"zone": ZONES}), np.tile(known, (n, 1)))
        return np.asarray(probs[:, order])

    return action_probs


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []
