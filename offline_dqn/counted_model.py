"""The decision problem as counted: where observations come from a small set, transitions and rewards are just averages.

A counted model serves twice: planning on it gives a candidate without any network's approximation error, and it gives
the value of any policy with the influence of each logged episode on that value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datasets.encoding import Encoder
from datasets.replay import Replay
from offline_dqn.fqe import DirectValue

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

_TOLERANCE = 1e-6
"""Backups end when no value moves by more than this share of the largest reward."""

_FIRST_ROWS = 1_000
"""Rows that are looked at first; each block is four times the one before, so that the uncountable is given up soon."""

_MOST_BYTES = 2**25
"""Of one block of encoded rows, and of all distinct ones together."""


@dataclass(frozen=True)
class Observed:
    """Observations as numbers of a small set.

    Attributes:
        keys: (S, D) float32, the distinct encoded observations.
        codes: (M,) the key of each row.
    """

    keys: NDArray[np.float32]
    codes: Codes


SMALLEST_VISITS = 3.0
"""By default."""


def count_observations(
    replay: Replay, encoder: Encoder, *, largest: int, smallest_visits: float = SMALLEST_VISITS
) -> Observed | None:
    """The distinct observations of a replay; None where there are more than `largest`, and of images.

    None, too, where there are fewer than `smallest_visits` steps on average for each observation and action: a model
    that has seen most of these pairs once or never says more of its pessimism than of the world. Few enough that they
    fit into 32 MB: long vectors are counted only where they repeat often.
    """
    row_bytes = 4 * encoder.size
    largest = min(largest, _MOST_BYTES // row_bytes)
    if encoder.image_shape is not None or largest == 0:
        return None
    n_rows, done, size = len(replay.observations), 0, _FIRST_ROWS
    keys, codes = np.zeros((0, encoder.size), dtype=np.float32), np.zeros(n_rows, dtype=np.int64)
    while done < n_rows:
        rows = np.arange(done, min(n_rows, done + min(size, _MOST_BYTES // row_bytes)))
        found, codes[rows] = _distinct(encoder.encode(replay.observations.take(rows)))
        merged, renumbered = _distinct(np.concatenate([keys, found]))
        if len(merged) > largest:
            return None
        codes[:done] = renumbered[: len(keys)][codes[:done]]
        codes[rows] = renumbered[len(keys) :][codes[rows]]
        keys, done, size = merged, done + len(rows), 4 * size
    repeats = replay.n_steps >= smallest_visits * replay.n_actions * len(keys)
    return Observed(keys, codes) if repeats else None


def _distinct(encoded: NDArray[np.float32]) -> tuple[NDArray[np.float32], Codes]:
    encoded = np.ascontiguousarray(encoded + np.float32(0.0))  # turns -0.0 into 0.0, whose bytes differ
    rows = encoded.view(np.dtype((np.void, encoded.dtype.itemsize * encoded.shape[1]))).ravel()
    _, first, codes = np.unique(rows, return_index=True, return_inverse=True)
    return encoded[first], np.asarray(codes, dtype=np.int64)


@dataclass(frozen=True)
class CountedModel:
    """Weighted counts of what followed each observation and action.

    Steps that nothing is known to follow are left out. What was never seen (an action at an observation, or anything
    at an observation where the log never acted) is taken to be worth the least of what was seen.

    Attributes:
        replay: the episodes counted.
        codes: (T,) observation of each step, in [0, S).
        following: (T,) observation that follows each step; -1 where the episode terminated, -2 where unknown.
        n_states: S.
        episode_weights: (N,) how much each episode counts.
    """

    replay: Replay
    codes: Codes
    following: Codes
    n_states: int
    episode_weights: Array

    @staticmethod
    def of(replay: Replay, observed: Observed, episode_weights: Array | None = None) -> CountedModel:
        """The model of `replay`, whose rows `observed` numbers."""
        following = np.where(replay.next_row >= 0, observed.codes[replay.next_row], -2)
        following[replay.terminated] = -1
        weights = np.ones(replay.n_episodes) if episode_weights is None else episode_weights
        return CountedModel(replay, observed.codes[: replay.n_steps], following, len(observed.keys), weights)

    @cached_property
    def usable(self) -> Codes:
        """Steps that something is known to follow."""
        return np.flatnonzero(self.following != -2)

    @cached_property
    def pair_of_step(self) -> Codes:
        """(usable,) observation * A + action."""
        return self.codes[self.usable] * self.replay.n_actions + self.replay.actions[self.usable]

    @cached_property
    def step_weights(self) -> Array:
        """(usable,)."""
        return self.episode_weights[self.replay.episode_of_step[self.usable]]

    @cached_property
    def counts(self) -> Array:
        """(S, A) weighted steps of each observation and action."""
        return self._summed(self.pair_of_step, self.step_weights).reshape(self.n_states, -1)

    @cached_property
    def mean_rewards(self) -> Array:
        """(S, A); 0 where nothing was seen."""
        rewards = self._summed(self.pair_of_step, self.step_weights * self.replay.rewards[self.usable])
        return rewards.reshape(self.n_states, -1) / np.where(self.counts > 0, self.counts, 1.0)

    @cached_property
    def _transitions(self) -> tuple[Codes, Codes, Array, Codes]:
        """Pair, next observation and probability of each distinct transition, and (usable,) the step's own; -1: end."""
        keys = self.pair_of_step * (self.n_states + 1) + self.following[self.usable] + 1
        distinct, of_step = np.unique(keys, return_inverse=True)
        pairs, ends = distinct // (self.n_states + 1), distinct % (self.n_states + 1) - 1
        weights = np.bincount(of_step, weights=self.step_weights, minlength=len(distinct))
        return pairs, ends, weights / self.counts.ravel()[pairs], np.asarray(of_step, dtype=np.int64)

    @property
    def gamma(self) -> float:
        """Discount of one step."""
        return self.replay.contract.gamma

    @cached_property
    def start(self) -> Array:
        """(S,) how often each observation begins an episode; sums to 1."""
        begins = self.codes[self.replay.offsets[:-1]]
        found = np.bincount(begins, weights=self.episode_weights, minlength=self.n_states)
        return np.asarray(found / found.sum())

    @property
    def horizon(self) -> int:
        """Steps of the longest episode."""
        return int(self.replay.lengths.max())

    def backed_up(self, values: Array) -> Array:
        """(S, A) mean reward plus discounted value of what follows, `values` (S,); the least seen where unseen."""
        pairs, ends, probs, _ = self._transitions
        goes_on = np.where(ends >= 0, values[ends], 0.0)
        ahead = np.bincount(pairs, weights=probs * goes_on, minlength=self.counts.size).reshape(self.counts.shape)
        q_values = self.mean_rewards + self.gamma * ahead
        seen = self.counts > 0
        return np.where(seen, q_values, q_values[seen].min())

    def settled(self, values: Array, before: Array) -> bool:
        """Whether a further backup would change nothing."""
        largest = float(np.abs(self.replay.rewards[self.usable]).max())
        return float(np.abs(values - before).max()) <= _TOLERANCE * largest

    def step_noise(self, values: Array) -> float:
        """Standard deviation of reward plus discounted next value within an observation and action, pooled."""
        following = self.following[self.usable]
        targets = self.replay.rewards[self.usable] + self.gamma * np.where(following >= 0, values[following], 0.0)
        means = self._summed(self.pair_of_step, self.step_weights * targets)
        residual = targets - means[self.pair_of_step] / self.counts.ravel()[self.pair_of_step]
        seen = int((self.counts > 0).sum())
        return float(np.sqrt((residual**2).sum() / max(1, len(residual) - seen)))

    def policy_table(self, probs: Array) -> Array:
        """(S, A) mean over the steps at an observation of a policy's (T, A) probabilities; uniform where none is."""
        table = np.stack([np.bincount(self.codes, weights=column, minlength=self.n_states) for column in probs.T], 1)
        visits = table.sum(axis=1, keepdims=True)
        return np.where(visits > 0, table / np.where(visits > 0, visits, 1.0), 1.0 / self.replay.n_actions)

    def value(self, evaluation_probs: Array) -> tuple[Array, DirectValue]:
        """(S, A) action values and the value of a policy with (T, A) probabilities at the steps, until the horizon.

        The influence of an episode is that of its first observation and of its steps' rewards and successors.

        Source: the plug-in ("direct") estimate of a tabular model; its influence function is that of Kallus and Uehara
        2020, Double Reinforcement Learning (arXiv:1908.08526). Differs from it: an observation's value does not depend
        on time but through the steps that are left.
        """
        policy = self.policy_table(evaluation_probs)
        values = [np.zeros(self.n_states)]
        for _ in range(self.horizon):
            values.append((policy * self.backed_up(values[-1])).sum(axis=1))
            if self.settled(values[-1], values[-2]):
                break
        estimate = float(self.start @ values[-1])
        return self.backed_up(values[-2]), DirectValue(estimate, self._influence(policy, values))

    def _influence(self, policy: Array, values: list[Array]) -> Array:
        pairs, ends, probs, of_step = self._transitions
        seen, counts = self.counts.ravel() > 0, self.counts.ravel()
        visits, of_reward, of_mean = self.start, np.zeros(counts.size), np.zeros(counts.size)
        of_next = np.zeros(len(pairs))
        goes_on = ends >= 0
        for left in range(self.horizon, 0, -1):
            after = values[min(left, len(values) - 1) - 1]
            q_values = self.backed_up(after).ravel()
            taken = (visits[:, None] * policy).ravel()
            least = int(np.argmin(np.where(seen, q_values, np.inf)))
            taken[least] += taken[~seen].sum()
            taken[~seen] = 0.0
            of_reward += taken
            of_mean += taken * q_values
            of_next += taken[pairs] * self.gamma * np.where(goes_on, after[ends], 0.0)
            moved = self.gamma * taken[pairs] * probs
            visits = _sums(ends[goes_on], moved[goes_on], self.n_states)
            if visits.sum() < _TOLERANCE:
                break
        pair, usable = self.pair_of_step, self.usable
        error = of_reward[pair] * self.replay.rewards[usable] + of_next[of_step] - of_mean[pair]
        of_steps = self._episode_sums(self.step_weights * error / counts[pair], usable)
        first = values[-1][self.codes[self.replay.offsets[:-1]]]
        of_start = self.episode_weights / self.episode_weights.sum() * (first - self.start @ values[-1])
        return np.asarray(of_start + of_steps)

    def _summed(self, codes: Codes, weights: Array) -> Array:
        return _sums(codes, weights, self.n_states * self.replay.n_actions)

    def _episode_sums(self, values: Array, steps: Codes) -> Array:
        return _sums(self.replay.episode_of_step[steps], values, self.replay.n_episodes)


def _sums(codes: Codes, weights: Array, size: int) -> Array:
    """(size,) sums of the weights of each code."""
    return np.asarray(np.bincount(codes, weights=weights, minlength=size), dtype=np.float64)
