"""Small worlds with known values, and replay datasets rolled out in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from datasets.replay import Replay


def make_replay(
    contract: Contract,
    observations: Observations,
    actions: NDArray[Any],
    rewards: NDArray[Any],
    lengths: NDArray[Any],
    *,
    terminated: NDArray[Any] | None = None,
    available: NDArray[Any] | None = None,
    next_row: NDArray[Any] | None = None,
    behavior_prob: NDArray[Any] | None = None,
) -> Replay:
    """A replay dataset of consecutive episodes; the last step of each terminates unless said otherwise."""
    n_steps, n_episodes = len(actions), len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    last = np.zeros(n_steps, dtype=bool)
    last[offsets[1:] - 1] = True
    terminated = last if terminated is None else terminated
    return Replay(
        contract=contract,
        digest="0" * 64,
        observations=observations,
        available=np.ones((len(observations), len(contract.actions.names)), bool) if available is None else available,
        actions=np.asarray(actions, dtype=np.int64),
        rewards=np.asarray(rewards, dtype=np.float64),
        terminated=terminated,
        truncated=last & ~terminated,
        next_row=np.where(last, -1, np.arange(1, n_steps + 1)) if next_row is None else next_row,
        behavior_prob=np.full(n_steps, np.nan) if behavior_prob is None else behavior_prob,
        offsets=offsets,
        episode_ids=np.array([f"e{n}" for n in range(n_episodes)], dtype=object),
        clusters=np.arange(n_episodes),
        nights=np.full(n_episodes, np.datetime64("2024-05-01")),
        policy_versions=np.full(n_episodes, "", dtype=object),
        split=np.zeros(n_episodes, dtype=np.int8),
    )


@dataclass(frozen=True)
class TabularWorld:
    """S states, A actions, transition (S, A, S) whose rows sum to at most 1 (the rest ends), mean reward (S, A)."""

    transition: NDArray[np.float64]
    reward: NDArray[np.float64]
    gamma: float

    @staticmethod
    def random(n_states: int, n_actions: int, gamma: float, end_prob: float, seed: int) -> TabularWorld:
        rng = np.random.default_rng(seed)
        transition = rng.dirichlet(np.full(n_states, 0.3), size=(n_states, n_actions)) * (1.0 - end_prob)
        return TabularWorld(transition, rng.normal(size=(n_states, n_actions)), gamma)

    @property
    def contract(self) -> Contract:
        n_states, n_actions = self.reward.shape
        state = {"type": "categorical", "values": [f"s{i}" for i in range(n_states)]}
        values: Mapping[str, Any] = {
            "name": "tabular",
            "gamma": self.gamma,
            "features": {"state": state},
            "actions": {"names": [f"a{i}" for i in range(n_actions)]},
        }
        return Contract.model_validate(values)

    def values(self, policy: NDArray[np.float64], horizon: int | None = None) -> NDArray[np.float64]:
        """(S, A) value of acting a in s and by `policy` (S, A) afterwards; for so many steps, or for ever."""
        n_states, n_actions = self.reward.shape
        if horizon is None:
            step = np.einsum("sat,tb->satb", self.transition, policy).reshape(n_states * n_actions, -1)
            q_values: NDArray[np.float64] = np.linalg.solve(np.eye(len(step)) - self.gamma * step, self.reward.ravel())
            return q_values.reshape(n_states, n_actions)
        q_values = np.zeros_like(self.reward)
        for _ in range(horizon):
            q_values = self.reward + self.gamma * self.transition @ (policy * q_values).sum(axis=1)
        return q_values

    def optimal_values(self) -> NDArray[np.float64]:
        """(S, A) value of the best policy."""
        q_values = np.zeros_like(self.reward)
        for _ in range(2_000):
            q_values = self.reward + self.gamma * self.transition @ q_values.max(axis=1)
        return q_values

    def roll(self, policy: NDArray[np.float64], n_episodes: int, horizon: int, seed: int, noise: float = 0.0) -> Replay:
        """Episodes from uniform starts under `policy`, cut after `horizon` steps with their final observation."""
        rng = np.random.default_rng(seed)
        n_states, n_actions = self.reward.shape
        with_end = np.concatenate([self.transition, 1 - self.transition.sum(axis=2, keepdims=True)], axis=2)
        policy_cdf, next_cdf = policy.cumsum(axis=1), with_end.cumsum(axis=2)
        states, actions, terminated, lengths, finals = [], [], [], [], []
        for _ in range(n_episodes):
            state, length, ended = int(rng.integers(n_states)), 0, False
            while length < horizon and not ended:
                action = min(int(np.searchsorted(policy_cdf[state], rng.random())), n_actions - 1)
                following = min(int(np.searchsorted(next_cdf[state, action], rng.random())), n_states)
                ended = following == n_states
                states.append(state)
                actions.append(action)
                terminated.append(ended)
                state, length = following, length + 1
            lengths.append(length)
            if not ended:
                finals.append(state)
        last = np.cumsum(lengths) - 1
        ends = np.array(terminated)
        next_row = np.arange(1, len(states) + 1)
        next_row[ends] = -1
        next_row[last[~ends[last]]] = len(states) + np.arange(len(finals))
        taken = np.array(actions)
        at = np.array(states)
        return make_replay(
            self.contract,
            Observations(
                {"state": np.array(states + finals, dtype=np.int32)},
                {"state": tuple(f"s{i}" for i in range(n_states))},
            ),
            taken,
            self.reward[at, taken] + noise * rng.normal(size=len(at)),
            np.array(lengths),
            terminated=ends,
            next_row=next_row,
            behavior_prob=policy[at, taken],
        )


def states_of(replay: Replay) -> NDArray[Any]:
    """(T,) the state of each step of a tabular replay."""
    states: NDArray[Any] = replay.observations.columns["state"][: replay.n_steps]
    return states
