"""The controller that writes the first logs: thresholds on CPU, as an autoscaler has them, with uniform exploration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.simulators.service import ACTIONS
from datasets.simulators.simulation import ActionProbs
from datasets.simulators.workload import FloatArray

RULES: tuple[tuple[str, str], ...] = (
    ("observation.cpu > 0.6", "scale_up"),
    ("observation.cpu < 0.3 AND observation.replicas > 2", "scale_down"),
)
"""(SQL condition, action) in order; the first condition that holds decides.

Reasonable and improvable: it runs services emptier than their latency objective needs, waits long before it gives
replicas back, and knows neither what is starting already nor how many requests an overloaded service really gets.
"""

OTHERWISE = "hold"
"""The action where no condition of `RULES` holds."""

EXPLORATION = 0.7
"""Share of decisions drawn uniformly. Over six steps less would leave too few effective episodes to judge a policy
that decides differently in most states: see `expected_episodes_per_effective_episode`."""


def rule_actions(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """What `RULES` decides, without exploration: (n,) index into `ACTIONS`."""
    up = observations["cpu"] > 0.6
    down = (observations["cpu"] < 0.3) & (observations["replicas"] > 2)
    scale_up, scale_down, hold = (ACTIONS.index(name) for name in ("scale_up", "scale_down", OTHERWISE))
    return np.where(up, scale_up, np.where(down, scale_down, hold)).astype(np.int64)


def with_exploration(choose: Callable[[Mapping[str, NDArray[Any]]], NDArray[np.int64]], epsilon: float) -> ActionProbs:
    """A policy that follows `choose` and, with probability `epsilon`, draws uniformly among all actions.

    Raises:
        ValueError: if `epsilon` lies outside [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], found {epsilon}.")

    def action_probs(observations: Mapping[str, NDArray[Any]]) -> FloatArray:
        chosen = choose(observations)
        probs = np.full((len(chosen), len(ACTIONS)), epsilon / len(ACTIONS))
        probs[np.arange(len(chosen)), chosen] += 1 - epsilon
        return probs

    return action_probs


def logging_policy(epsilon: float = EXPLORATION) -> ActionProbs:
    """`RULES` with uniform exploration: the policy of the first logs, whose propensities are exact."""
    return with_exploration(rule_actions, epsilon)


def expected_episodes_per_effective_episode(
    *, epsilon: float, horizon: int, changed_share: float, n_actions: int = len(ACTIONS)
) -> float:
    """How many logged episodes stand for one effective episode of a candidate with the same exploration.

    Where the candidate decides differently (in `changed_share` of the states) it moves d = 1 - epsilon of probability
    from an action logged with b0 = 1 - epsilon + epsilon / A to one logged with b1 = epsilon / A; the second moment of
    that step's ratio is 1 + d^2 (1 / b0 + 1 / b1). Steps are taken as independent, so this is for orientation.

    Args:
        epsilon: uniform exploration of both policies, in (0, 1].
        horizon: steps per episode, H.
        changed_share: m, share of states in which the two decide differently, in [0, 1].
        n_actions: A.

    Returns:
        (1 + m d^2 (1 / b0 + 1 / b1))^H, at least 1.

    Raises:
        ValueError: if an argument lies outside its range.
    """
    if not (0 < epsilon <= 1 and 0 <= changed_share <= 1 and horizon >= 1 and n_actions >= 2):
        raise ValueError(
            f"wanted epsilon in (0, 1], changed_share in [0, 1], horizon >= 1 and n_actions >= 2, found {epsilon}, "
            f"{changed_share}, {horizon} and {n_actions}."
        )
    explored = epsilon / n_actions
    moved = 1 - epsilon
    return float((1 + changed_share * moved**2 * (1 / (moved + explored) + 1 / explored)) ** horizon)
