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

_SWEEPS = 3
"""Rounds in which the parts of observations and of actions are told apart; more change nothing that matters."""

_FIRST_ROWS = 2_000
"""Rows that are looked at first: what is nearly all distinct there is no small set."""


@dataclass(frozen=True)
class Table:
    """The steps of a replay as entries of a small table of observations (with what was available there).

    Attributes:
        codes: (T,) entry of each step, in [0, S).
        following: (T,) entry of the step behind it in its episode; -1 at the last.
        n_states: S.
        clock: steps after which the log cuts every episode that goes on, so that values and visits depend on time; None
            where episodes end by themselves.
    """

    codes: Codes
    following: Codes
    n_states: int
    clock: int | None = None

    def of(self, steps: NDArray[np.bool_]) -> Table:
        """Of whole episodes, whose `steps` (T,) are chosen."""
        return Table(self.codes[steps], self.following[steps], self.n_states, self.clock)


def tabulated(replay: Replay, *, largest: int, smallest_visits: float, most_cut: float) -> Table | None:
    """The steps as table entries; None where observations are no small set, or episodes are cut at odd times.

    Args:
        replay: every split; what two steps share is compared as logged, byte by byte.
        largest: most distinct observations S.
        smallest_visits: fewest steps, on average, for each observation and action.
        most_cut: largest share of episodes that the log may cut. More are fine where all are cut after the same number
            of steps; else values end by something that no table knows.
    """
    keys = _keys(replay)
    cut = replay.truncated[replay.offsets[1:] - 1]
    clock = int(replay.lengths.max()) if float(cut.mean()) > most_cut else None
    if keys is None or (clock is not None and not np.all(replay.lengths[cut] == clock)):
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
    return Table(codes, following, len(distinct), clock)


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
    def _by_clock(self) -> NDArray[np.bool_]:
        """(T,) steps behind which the log cuts whatever went on: they tell of no end."""
        return np.asarray(self.times + 1 == (self.table.clock or 0))

    @cached_property
    def _transitions(self) -> tuple[Codes, Codes, Array]:
        """Pair, following entry and share of each distinct transition that goes on."""
        goes_on = self.table.following >= 0
        keys = self._pairs[goes_on] * self.table.n_states + self.table.following[goes_on]
        distinct, counts = np.unique(keys, return_counts=True)
        pairs = distinct // self.table.n_states
        known = np.bincount(self._pairs[~self._by_clock], minlength=self._counts.size)
        return pairs, distinct % self.table.n_states, counts / known[pairs]

    def weights_at(self, ratios: Array, codes: Codes, times: Codes) -> Array:
        """(n,) of `state_weights` at the given entries and positions in their episodes, both (n,)."""
        tables = self.state_weights(ratios)
        return np.asarray(tables[np.minimum(times, len(tables) - 1), codes])

    def q_table(self, evaluation_probs: Array) -> Array:
        """(K, S, A) action values of a policy with (T, A) probabilities at these steps, until the log's episodes end.

        K is 1, or the clock's steps: the values at each of them. Ridge regression of reward plus the next value on the
        entry, by action: a pair's value is its observation's plus its action's plus its own, all shrunk.

        Source: Le et al. 2019, Batch Policy Learning under Constraints (arXiv:1903.08738), algorithm 3, with one
        indicator per observation and action.
        """
        policy = self.policy_table(evaluation_probs)
        pairs, ends, shares = self._transitions
        largest = float(np.abs(self.rewards).max(initial=0.0))
        values, found = np.zeros(self.table.n_states), []
        for _ in range(self.horizon):
            ahead = np.bincount(pairs, weights=shares * values[ends], minlength=self._counts.size)
            found.append(self._shrunk(self._mean_rewards + self.gamma * ahead.reshape(self._counts.shape)))
            before, values = values, (policy * found[-1]).sum(axis=1)
            if float(np.abs(values - before).max()) <= _TOLERANCE * largest:
                break
        if self.table.clock is None:
            return found[-1][None]
        early = [found[-1]] * (self.horizon - len(found))  # further from the end nothing changes any more
        return np.stack([*early, *found[::-1]])

    def fit_errors(self, evaluation_probs: Array, q_tables: Array, starts: Array) -> Array:
        """(T,) by how much each step moved the mean value of episodes that begin at entries with (S,) probabilities.

        Its residual times the visits of its entry and action that the policy makes per step logged there, summed over
        the steps of an episode; `q_tables` (K, S, A) are the fitted values.

        Source: Kallus and Uehara 2020, Double Reinforcement Learning (arXiv:1908.08526), the influence function of a
        tabular plug-in estimate.
        """
        policy, (pairs, ends, shares) = self.policy_table(evaluation_probs), self._transitions
        values = (policy * q_tables).sum(axis=2)  # (K, S)
        last = len(q_tables) - 1
        visits, made, of_q = starts, np.zeros(self._counts.size), np.zeros(self._counts.size)
        of_next = np.zeros(len(pairs))
        for step in range(self.horizon):
            now = (visits[:, None] * policy).ravel()
            made += now
            of_q += now * q_tables[min(step, last)].ravel()
            if self.table.clock is None or step < last:  # behind the clock's last step nothing counts
                of_next += self.gamma * now[pairs] * values[min(step + 1, last)][ends]
            onward = np.bincount(ends, weights=shares * now[pairs], minlength=self.table.n_states)
            visits = np.asarray(self.gamma * onward, dtype=np.float64)
            if float(visits.sum()) <= _TOLERANCE:
                break
        ahead = self._ahead(of_next, pairs, ends, shares)
        moved = made[self._pairs] * self.rewards + ahead - of_q[self._pairs]
        return np.asarray(moved / (self._counts.ravel() + self.shrinkage)[self._pairs])

    def _ahead(self, of_next: Array, pairs: Codes, ends: Codes, shares: Array) -> Array:
        """(T,) what each step saw of (transitions,) values behind it: 0 at an end, the expectation where it was cut."""
        following = self.table.following
        keys = pairs * self.table.n_states + ends  # ascending
        asked = self._pairs * self.table.n_states + np.maximum(following, 0)
        found = (
            np.minimum(np.searchsorted(keys, asked), len(keys) - 1) if len(keys) else np.zeros(len(asked), dtype=int)
        )
        seen = np.where(following >= 0, of_next[found], 0.0) if len(keys) else np.zeros(len(asked))
        expected = np.bincount(pairs, weights=shares * of_next, minlength=self._counts.size)
        return np.where(self._by_clock, expected[self._pairs], seen)

    def policy_table(self, evaluation_probs: Array) -> Array:
        """(S, A) the policy's probabilities at each entry, uniform where no step stands."""
        codes, size = self.table.codes, self.table.n_states
        table = np.stack([np.bincount(codes, weights=column, minlength=size) for column in evaluation_probs.T], axis=1)
        visits = table.sum(axis=1, keepdims=True)
        return np.where(visits > 0, table / np.where(visits > 0, visits, 1.0), 1.0 / self.n_actions)

    def state_weights(self, ratios: Array) -> Array:
        """(K, S) how much more often a policy visits each entry than the log does; at least 0.

        K is 1, of discounted visits over the whole episode, or the clock's steps: the visits at each of them.

        Args:
            ratios: (T,) evaluation_prob / behavior_prob of each logged action.

        Source: Liu, Li, Tang, Zhou 2018, Breaking the Curse of Horizon (arXiv:1810.12429), eq. 9 for discounted
        visits, with one indicator per observation as test function; by step, Xie, Ma, Wang 2019 (arXiv:1906.03393),
        with the same transitions at every step. Differs from them: shrunk towards 1, the log's own visits, by
        `shrinkage` visits.
        """
        if self.table.clock is not None:
            return self._weights_by_step(ratios)
        n, codes, following = self.table.n_states, self.table.codes, self.table.following
        reach = self.gamma**self.times
        visits = np.bincount(codes, weights=reach, minlength=n)
        on = following >= 0
        keys = following[on] * n + codes[on]
        flow = np.bincount(keys, weights=self.gamma * (reach * ratios)[on], minlength=n * n).reshape(n, n)
        starts = np.bincount(codes[self.times == 0], minlength=n)
        system = np.diag(visits + self.shrinkage) - flow
        found = np.linalg.solve(system, starts - visits + flow.sum(axis=1))
        return np.maximum(1.0 + found, 0.0)[None]

    def _weights_by_step(self, ratios: Array) -> Array:
        starts = np.bincount(self.table.codes[self.times == 0], minlength=self.table.n_states).astype(np.float64)
        ours, theirs = self._flow(ratios), self._flow(np.ones(len(ratios)))
        visits, logged, weights = starts, starts, []
        for _ in range(self.horizon):
            weights.append((visits + self.shrinkage) / (logged + self.shrinkage))
            visits, logged = visits @ ours, logged @ theirs
        return np.stack(weights)

    def _flow(self, weights: Array) -> Array:
        """(S, S) share of the weighted steps at an entry that lead to each entry; the rest ends."""
        n, codes, following = self.table.n_states, self.table.codes, self.table.following
        on, told = following >= 0, ~self._by_clock
        moved = np.bincount(codes[on] * n + following[on], weights=weights[on], minlength=n * n).reshape(n, n)
        left = np.bincount(codes[told], weights=weights[told], minlength=n)
        return np.asarray(moved / np.where(left > 0, left, 1.0)[:, None])

    def _shrunk(self, means: Array) -> Array:
        """(S, A) ridge estimates from (S, A) means of the counted targets.

        An entry is shrunk towards what its observation and its action are worth on the whole: the log avoids bad
        actions, so what it never tried somewhere is worth less than what it did there.
        """
        counts, ridge = self._counts, self.shrinkage
        weights = counts * ridge / (counts + ridge)  # what is left to say of an observation, its own entries apart
        of_action, of_state = np.zeros(self.n_actions), np.zeros(len(counts))
        for _ in range(_SWEEPS):
            rest = means - of_action
            center = float((counts * rest).sum() / counts.sum())
            of_state = ((weights * rest).sum(axis=1) + ridge * center) / (weights.sum(axis=1) + ridge)
            left = (weights * (means - of_state[:, None])).sum(axis=0)
            of_action = left / (weights.sum(axis=0) + ridge)
        prior = of_state[:, None] + of_action
        return np.asarray((counts * means + ridge * prior) / (counts + ridge))

    def _summed(self, weights: Array | None) -> Array:
        size = self.table.n_states * self.n_actions
        return np.bincount(self._pairs, weights=weights, minlength=size).reshape(-1, self.n_actions).astype(np.float64)
