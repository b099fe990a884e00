"""Finite Markov decision processes: rolled out, evaluated and solved exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import gymnasium
import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from tests.benchmarks.rolled import Rolled, drawn, flattened

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """S states, A actions.

    Attributes:
        transition: (S, A, S) probabilities.
        reward: (S, A, S) of a step, by where it leads.
        terminal: (S,) bool; arriving there ends the episode.
        start: (S,) probability of each first state.
        available: (S, A) bool.
        gamma: discount.
        actions: labels.
    """

    transition: FloatArray
    reward: FloatArray
    terminal: NDArray[np.bool_]
    start: FloatArray
    available: NDArray[np.bool_]
    gamma: float
    actions: tuple[str, ...]

    @property
    def n_states(self) -> int:
        """S."""
        return len(self.start)

    @cached_property
    def mean_reward(self) -> FloatArray:
        """(S, A)"""
        return np.asarray((self.transition * self.reward).sum(axis=2))

    @cached_property
    def _going_on(self) -> FloatArray:
        """(S, A, S) the transitions that do not end the episode."""
        return self.transition * ~self.terminal

    def contract(self, name: str) -> Contract:
        """One categorical feature, `state`."""
        return Contract.model_validate(
            {
                "name": name,
                "gamma": self.gamma,
                "features": {"state": {"type": "categorical", "values": list(self._labels)}},
                "actions": {"names": list(self.actions)},
            }
        )

    def observe(self, states: NDArray[np.int64]) -> Observations:
        """What is logged in these states."""
        return Observations({"state": states.astype(np.int32)}, {"state": self._labels})

    def value(self, policy: FloatArray, horizon: int | None = None) -> float:
        """Expected discounted return from the start under `policy` (S, A): start (I - gamma P)^-1 r.

        With a horizon, of the first so many steps: what a log that is cut there shows.
        """
        return float(self.start @ self._state_values(policy, horizon))

    def action_values(self, policy: FloatArray, horizon: int | None = None) -> FloatArray:
        """(S, A) value of an action, followed by `policy` (S, A), over the horizon or for ever."""
        left = None if horizon is None else horizon - 1
        return np.asarray(self.mean_reward + self.gamma * self._going_on @ self._state_values(policy, left))

    def best_policy(self) -> FloatArray:
        """(S, A) one of the optimal policies, by policy iteration (Howard 1960)."""
        rows = np.arange(self.n_states)
        chosen = self.available.argmax(axis=1)
        while True:
            policy: FloatArray = np.eye(len(self.actions))[chosen]
            q_values = self.mean_reward + self.gamma * self._going_on @ self._state_values(policy)
            q_values[~self.available] = -np.inf
            # Rounding must not make two equally good actions take turns for ever.
            improves = q_values.max(axis=1) > q_values[rows, chosen] + 1e-9
            if not improves.any():
                return policy
            chosen = np.where(improves, q_values.argmax(axis=1), chosen)

    def roll(self, policy: FloatArray, n_episodes: int, horizon: int, rng: np.random.Generator) -> Rolled:
        """Episodes under `policy` (S, A), side by side, each cut after `horizon` steps."""
        seen = np.zeros((n_episodes, horizon + 1), dtype=np.int64)
        taken = np.zeros((n_episodes, horizon), dtype=np.int64)
        earned, probs = np.zeros((n_episodes, horizon)), np.ones((n_episodes, horizon))
        lengths, ended = np.full(n_episodes, horizon), np.zeros(n_episodes, dtype=bool)
        seen[:, 0] = drawn(np.tile(self.start, (n_episodes, 1)), rng)
        going = np.arange(n_episodes)
        for step in range(horizon):
            at = seen[going, step]
            action = drawn(policy[at], rng)
            arrived = drawn(self.transition[at, action], rng)
            seen[going, step + 1], taken[going, step] = arrived, action
            earned[going, step], probs[going, step] = self.reward[at, action, arrived], policy[at, action]
            over = self.terminal[arrived]
            lengths[going[over]], ended[going[over]] = step + 1, True
            going = going[~over]
            if not len(going):
                break
        return flattened(seen, taken, earned, probs, lengths, ended)

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        return tuple(f"s{i}" for i in range(self.n_states))

    def _state_values(self, policy: FloatArray, horizon: int | None = None) -> FloatArray:
        step = np.einsum("sat,sa->st", self._going_on, policy)
        earned = (policy * self.mean_reward).sum(axis=1)
        if horizon is None:
            return np.asarray(np.linalg.solve(np.eye(self.n_states) - self.gamma * step, earned))
        values: FloatArray = np.zeros(self.n_states)
        for _ in range(horizon):
            values = earned + self.gamma * step @ values
        return values


def soft_around(policy: FloatArray, available: NDArray[np.bool_], epsilon: float) -> FloatArray:
    """(S, A) `policy`, with probability `epsilon` uniform over the available actions."""
    uniform: FloatArray = available / available.sum(axis=1, keepdims=True)
    return (1.0 - epsilon) * policy + epsilon * uniform


def frozen_lake(gamma: float = 0.99, map_name: str = "8x8") -> Table:
    """Gymnasium's FrozenLake-v1, slippery; maps are "4x4" and "8x8"."""
    environment = gymnasium.make("FrozenLake-v1", map_name=map_name, is_slippery=True).unwrapped
    return _from_gymnasium(environment, gamma, ("left", "down", "right", "up"))


def cliff_walking(gamma: float = 0.99) -> Table:
    """Gymnasium's CliffWalking-v1, not slippery: a fall costs 100 and leads back to the start."""
    environment = gymnasium.make("CliffWalking-v1").unwrapped
    return _from_gymnasium(environment, gamma, ("up", "right", "down", "left"))


def taxi(gamma: float = 0.99) -> Table:
    """Gymnasium's Taxi, neither rainy nor fickle."""
    environment = gymnasium.make("Taxi-v4").unwrapped
    return _from_gymnasium(environment, gamma, ("south", "north", "east", "west", "pickup", "dropoff"))


def drawn_table(seed: int, n_states: int, n_actions: int, *, end_prob: float, gamma: float) -> Table:
    """A table of random transitions and rewards, every step of which ends the episode with `end_prob`."""
    rng = np.random.default_rng(seed)
    return _random(rng, n_states, n_actions, np.ones((n_states, n_actions), dtype=bool), end_prob, gamma)


def random_table(seed: int, n_states: int = 40, n_actions: int = 5) -> tuple[Table, FloatArray]:
    """A table of random transitions and rewards, and a logger that prefers random actions."""
    rng = np.random.default_rng(seed)
    table = _random(rng, n_states, n_actions, np.ones((n_states, n_actions), dtype=bool))
    preference = rng.normal(size=(n_states + 1, n_actions))
    logger = np.exp(preference)
    return table, logger / logger.sum(axis=1, keepdims=True)


def masked_table(seed: int, n_states: int = 40, n_actions: int = 12, n_available: int = 3) -> tuple[Table, FloatArray]:
    """A table in which few actions are available, other ones in every state; the logger draws uniformly among them."""
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(n_actions), (n_states, 1)), axis=1)
    table = _random(rng, n_states, n_actions, order < n_available)
    return table, table.available / table.available.sum(axis=1, keepdims=True)


def _random(
    rng: np.random.Generator,
    n_states: int,
    n_actions: int,
    available: NDArray[np.bool_],
    end_prob: float = 0.05,
    gamma: float = 0.95,
) -> Table:
    """`n_states` states and one more, which is the end: every step leads there with probability `end_prob`."""
    size = n_states + 1
    transition = np.zeros((size, n_actions, size))
    inner = rng.dirichlet(np.full(n_states, 0.2), size=(n_states, n_actions))
    transition[:n_states, :, :n_states] = inner * (1.0 - end_prob)
    transition[:, :, n_states] = np.maximum(1.0 - transition[:, :, :n_states].sum(axis=2), 0.0)
    reward = np.zeros((size, n_actions, size))
    reward[:n_states] = rng.normal(size=(n_states, n_actions, 1))
    return Table(
        transition=transition,
        reward=reward,
        terminal=np.arange(size) == n_states,
        start=np.where(np.arange(size) < n_states, 1.0 / n_states, 0.0),
        available=np.concatenate([available, np.ones((1, n_actions), dtype=bool)]),
        gamma=gamma,
        actions=tuple(f"a{i}" for i in range(n_actions)),
    )


def _from_gymnasium(environment: object, gamma: float, actions: tuple[str, ...]) -> Table:
    """Of an environment that lists its transitions as `P[state][action] = [(prob, next state, reward, ended)]`."""
    listed: Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]] = environment.P  # type: ignore[attr-defined]
    n_states, n_actions = len(listed), len(actions)
    transition, reward = np.zeros((n_states, n_actions, n_states)), np.zeros((n_states, n_actions, n_states))
    terminal = np.zeros(n_states, dtype=bool)
    for state, by_action in listed.items():
        for action, outcomes in by_action.items():
            for prob, following, earned, ended in outcomes:
                transition[state, action, following] += prob
                reward[state, action, following] = earned
                terminal[following] |= ended
    start = np.asarray(environment.initial_state_distrib, dtype=np.float64)  # type: ignore[attr-defined]
    available = np.ones((n_states, n_actions), dtype=bool)
    return Table(transition, reward, terminal, start / start.sum(), available, gamma, actions)
