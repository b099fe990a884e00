"""Fitted Q evaluation and state weights where observations come from a small set: both are then averages per entry.

What a policy is worth at an observation that the log seldom holds is shrunk towards what its neighbours in the table
say, instead of being taken for the worst: here the values only have to be right on average, and weights correct them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datasets.replay import Replay

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

_TOLERANCE = 1e-6
"""Backups end when no value moves by more than this share of the largest reward."""

_FIRST_ROWS = 2_000
"""Rows that are looked at first: what is nearly all distinct there is no small set."""


@dataclass(frozen=True)
class Table:
    """The steps of a replay as entries of a small table of observations (with what was available there).

    Attributes:
        codes: (T,) entry of each step, in [0, S).
        following: (T,) entry of the step behind it in its episode; -1 at the last.
        n_states: S.
    """

    codes: Codes
    following: Codes
    n_states: int


def tabulated(replay: Replay, *, largest: int, smallest_visits: float, most_cut: float) -> Table | None:
    """The steps as table entries; None where observations are no small set, or say too little of what follows.

    Args:
        replay: every split; what two steps share is compared as logged, byte by byte.
        largest: most distinct observations S.
        smallest_visits: fewest steps, on average, for each observation and action.
        most_cut: largest share of episodes that the log cut: the values of these end by the clock, which is no part of
            the observation.
    """
    keys = _keys(replay)
    if keys is None or float(replay.truncated[replay.offsets[1:] - 1].mean()) > most_cut:
        return None
    head = keys[:_FIRST_ROWS]
    if len(np.unique(head)) > max(largest * 0.5, 0.5 * len(head)) and len(head) == _FIRST_ROWS:
        return None
    distinct, codes = np.unique(keys, return_inverse=True)
    if len(distinct) > largest or replay.n_steps < smallest_visits * replay.n_actions * len(distinct):
        return None
    codes = np.asarray(codes, dtype=np.int64).ravel()
    following = np.append(codes[1:], -1)
    following[replay.offsets[1:] - 1] = -1
    return Table(codes, following, len(distinct))


def _keys(replay: Replay) -> NDArray[np.void] | NDArray[np.int64] | None:
    """(T,) one comparable key per step of what was observed and available; None for images."""
    if any(values.dtype == np.uint8 for values in replay.observations.columns.values()):
        return None
    n = replay.n_steps
    columns = [np.ascontiguousarray(c[:n]).view(np.uint8).reshape(n, -1) for c in replay.observations.columns.values()]
    whole = np.concatenate([np.packbits(replay.available[:n], axis=1), *columns], axis=1)
    if whole.shape[1] <= 8:  # numbers sort ten times as fast as bytes
        padded = np.zeros((n, 8), dtype=np.uint8)
        padded[:, : whole.shape[1]] = whole
        return padded.view(np.int64).ravel()
    return np.ascontiguousarray(whole).view(np.dtype((np.void, whole.shape[1]))).ravel()


@dataclass(frozen=True)
class TabularEvaluation:
    """The steps that models are fitted on, as a table.

    Attributes:
        table: of these steps.
        actions, rewards: (T,) of them.
        times: (T,) position of each step in its episode.
        n_actions: A.
        gamma: discount of one step.
        horizon: steps of the longest episode.
        shrinkage: steps' worth of evidence for "like the rest": of an action for its observation's mean, and of an
            observation for the mean of all.
    """

    table: Table
    actions: Codes
    rewards: Array
    times: Codes
    n_actions: int
    gamma: float
    horizon: int
    shrinkage: float

    @cached_property
    def _pairs(self) -> Codes:
        return self.table.codes * self.n_actions + self.actions

    @cached_property
    def _counts(self) -> Array:
        """(S, A)"""
        return self._summed(None)

    @cached_property
    def _mean_rewards(self) -> Array:
        """(S, A); 0 where nothing was seen."""
        return self._summed(self.rewards) / np.maximum(self._counts, 1.0)

    @cached_property
    def _transitions(self) -> tuple[Codes, Codes, Array]:
        """Pair, following entry and share of each distinct transition that goes on."""
        goes_on = self.table.following >= 0
        keys = self._pairs[goes_on] * self.table.n_states + self.table.following[goes_on]
        distinct, counts = np.unique(keys, return_counts=True)
        pairs = distinct // self.table.n_states
        return pairs, distinct % self.table.n_states, counts / self._counts.ravel()[pairs]

    def q_table(self, evaluation_probs: Array) -> Array:
        """(S, A) action values of a policy with (T, A) probabilities at these steps, until the log's episodes end.

        Ridge regression of reward plus the next value on the entry, by action: each action's value is its entry's plus
        its own, both shrunk.

        Source: Le et al. 2019, Batch Policy Learning under Constraints (arXiv:1903.08738), algorithm 3, with one
        indicator per observation and action.
        """
        policy = self.policy_table(evaluation_probs)
        pairs, ends, shares = self._transitions
        largest = float(np.abs(self.rewards).max(initial=0.0))
        values = np.zeros(self.table.n_states)
        for _ in range(self.horizon):
            ahead = np.bincount(pairs, weights=shares * values[ends], minlength=self._counts.size)
            q_values = self._shrunk(self._mean_rewards + self.gamma * ahead.reshape(self._counts.shape))
            before, values = values, (policy * q_values).sum(axis=1)
            if float(np.abs(values - before).max()) <= _TOLERANCE * largest:
                break
        return q_values

    def fit_errors(self, evaluation_probs: Array, q_table: Array, starts: Array) -> Array:
        """(T,) by how much each step moved the mean value of episodes that begin at entries with (S,) probabilities.

        Its residual times the visits of its entry and action that the policy makes per step logged there.

        Source: Kallus and Uehara 2020, Double Reinforcement Learning (arXiv:1908.08526), the influence function of a
        tabular plug-in estimate.
        """
        policy, (pairs, ends, shares) = self.policy_table(evaluation_probs), self._transitions
        visits, total = starts, np.zeros(self._counts.size)
        for _ in range(self.horizon):
            made = (visits[:, None] * policy).ravel()
            total += made
            onward = np.bincount(ends, weights=shares * made[pairs], minlength=self.table.n_states)
            visits = np.asarray(self.gamma * onward, dtype=np.float64)
            if float(visits.sum()) <= _TOLERANCE:
                break
        values, following = (policy * q_table).sum(axis=1), self.table.following
        ahead = np.where(following >= 0, values[following], 0.0)
        residuals = self.rewards + self.gamma * ahead - q_table.ravel()[self._pairs]
        return np.asarray((total / (self._counts.ravel() + self.shrinkage))[self._pairs] * residuals)

    def policy_table(self, evaluation_probs: Array) -> Array:
        """(S, A) the policy's probabilities at each entry, uniform where no step stands."""
        codes, size = self.table.codes, self.table.n_states
        table = np.stack([np.bincount(codes, weights=column, minlength=size) for column in evaluation_probs.T], axis=1)
        visits = table.sum(axis=1, keepdims=True)
        return np.where(visits > 0, table / np.where(visits > 0, visits, 1.0), 1.0 / self.n_actions)

    def state_weights(self, ratios: Array) -> Array:
        """(S,) how much more often, discounted, a policy visits each entry than the log does; at least 0.

        Args:
            ratios: (T,) evaluation_prob / behavior_prob of each logged action.

        Source: Liu, Li, Tang, Zhou 2018, Breaking the Curse of Horizon (arXiv:1810.12429), eq. 9 for discounted
        visits, with one indicator per observation as test function. Differs from it: shrunk towards 1, the log's own
        visits, by `shrinkage` visits.
        """
        n, codes, following = self.table.n_states, self.table.codes, self.table.following
        reach = self.gamma**self.times
        visits = np.bincount(codes, weights=reach, minlength=n)
        on = following >= 0
        keys = following[on] * n + codes[on]
        flow = np.bincount(keys, weights=self.gamma * (reach * ratios)[on], minlength=n * n).reshape(n, n)
        starts = np.bincount(codes[self.times == 0], minlength=n)
        system = np.diag(visits + self.shrinkage) - flow
        found = np.linalg.solve(system, starts - visits + flow.sum(axis=1))
        return np.asarray(np.maximum(1.0 + found, 0.0))

    def _shrunk(self, means: Array) -> Array:
        """(S, A) ridge estimates from (S, A) means of the counted targets."""
        counts, ridge = self._counts, self.shrinkage
        center = float((counts * means).sum() / counts.sum())
        weights = counts * ridge / (counts + ridge)
        common = ((weights * means).sum(axis=1) + ridge * center) / (weights.sum(axis=1) + ridge)
        return np.asarray((counts * means + ridge * common[:, None]) / (counts + ridge))

    def _summed(self, weights: Array | None) -> Array:
        size = self.table.n_states * self.n_actions
        return np.bincount(self._pairs, weights=weights, minlength=size).reshape(-1, self.n_actions).astype(np.float64)
