"""What others would have earned on the days of a drill: the rules, and the best controller with fixed thresholds.

They meet the same traffic, zones and luck, and act behind the same shield, cap included. They are written in numpy,
as hundreds of controllers are tried on every day; a test holds them against the rules and the shield that are served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.simulators.service import ACTIONS, initial_state, observe, step_service
from pipelines.loop_fleet import AT_MOST, Day

_UP = (0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
_DOWN = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_DOWN_ACTION, _HOLD, _UP_ACTION = (ACTIONS.index(name) for name in ("scale_down", "hold", "scale_up"))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Thresholds:
    """Scales up above one utilisation and down below another.

    Attributes:
        up, down: of cpu.
        keeps: replicas that it never goes below.
        waits: whether it holds while replicas are starting.
        exploration: share of decisions that are uniform over what is permitted.
    """

    up: float
    down: float
    keeps: int = 1
    waits: bool = False
    exploration: float = 0.0

    @property
    def shown(self) -> str:
        """In words."""
        waiting = ", never while replicas start" if self.waits else ""
        return f"up above {self.up:.0%} CPU, down below {self.down:.0%}{waiting}"

    def probs(self, seen: Mapping[str, NDArray[Any]], permitted: NDArray[np.bool_]) -> Floats:
        """(n, A) probabilities: of the first rule that holds and may act, else of holding, mixed with exploration."""
        free = (seen["pending"] == 0) | (not self.waits)
        ups = (seen["cpu"] > self.up) & free & permitted[:, _UP_ACTION]
        downs = (seen["cpu"] < self.down) & free & (seen["replicas"] > self.keeps) & permitted[:, _DOWN_ACTION] & ~ups
        chosen = np.where(ups, _UP_ACTION, np.where(downs, _DOWN_ACTION, _HOLD))
        uniform: Floats = permitted / permitted.sum(axis=1, keepdims=True)
        return self.exploration * uniform + (1.0 - self.exploration) * np.eye(len(ACTIONS))[chosen]


def permitted_by(seen: Mapping[str, NDArray[Any]], n_capped: Floats) -> NDArray[np.bool_]:
    """(n, A) what the drill's contract lets through: one replica stays, and scale-ups keep to the cap."""
    permitted = np.ones((len(n_capped), len(ACTIONS)), dtype=bool)
    permitted[:, _DOWN_ACTION] = seen["replicas"] > 1
    permitted[:, _UP_ACTION] = n_capped < AT_MOST
    return permitted


def returns_of(controller: Thresholds, day: Day, *, seed: int) -> Floats:
    """(n,) true return of each service-hour of a day.

    Args:
        controller: what acts.
        day: its traffic, zones and luck.
        seed: of the controller's draws.
    """
    parameters, conditions, n = day.parameters, day.conditions(), day.n_episodes
    uniforms = np.random.default_rng([seed, day.number]).random((parameters.steps_per_episode, n))
    state, returns, n_capped = initial_state(parameters, conditions), np.zeros(n), np.zeros(n)
    for step in range(parameters.steps_per_episode):
        seen = observe(parameters, conditions, step, state)
        cumulative = np.cumsum(controller.probs(seen, permitted_by(seen, n_capped)), axis=1)
        actions = (uniforms[step][:, None] >= cumulative / cumulative[:, -1:]).sum(axis=1).astype(np.int64)
        n_capped = n_capped + (actions == _UP_ACTION)
        state, rewards = step_service(parameters, conditions, step, state, actions)
        returns += rewards
    return returns


def best_thresholds(days: Sequence[Day], *, seed: int) -> Thresholds:
    """The pair that earns most over days like these, on other seeds: one for all of them, found by trying all.

    Args:
        days: of the drill; each is tried with other draws of its traffic.
        seed: none of the drill's own.
    """
    elsewhere = [replace(day, seed=seed) for day in days]
    return max(_all(), key=lambda each: np.mean([returns_of(each, day, seed=seed).mean() for day in elsewhere]))


def _all() -> Iterator[Thresholds]:
    return (Thresholds(up, down, waits=waits) for up, down, waits in product(_UP, _DOWN, (False, True)) if down < up)
