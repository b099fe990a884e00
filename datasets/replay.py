"""The fixed replay dataset in memory: steps, episodes and splits as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations

TRAIN, SELECT, GATE = 0, 1, 2
"""Codes of the splits: fitted on, chosen on, judged on."""

SPLIT_NAMES = ("train", "select", "gate")


@dataclass(frozen=True)
class Replay:
    """T steps of N episodes, contiguous per episode, episodes ordered by start. Fixed before training; never grows.

    Attributes:
        contract: the decision problem.
        digest: SHA-256 of the snapshot's content; a subset keeps the digest of the snapshot it came from.
        observations: M >= T rows: row t is step t's observation, the final observations follow.
        available: (M, A) bool, which actions were available; True where the log says nothing.
        actions: (T,) int64 index into `contract.actions.names`.
        rewards: (T,) float64.
        terminated, truncated: (T,) bool, as logged, or by idleness at an episode's last step.
        next_row: (T,) int64 row of `observations` that follows; -1 where none is known: the step terminated, or was
            truncated without a final observation.
        behavior_prob: (T,) float64 in (0, 1], NaN where not logged.
        offsets: (N + 1,) int64; episode n is steps offsets[n]:offsets[n + 1].
        episode_ids: (N,) str.
        clusters: (N,) int64 code of the episode's cluster.
        nights: (N,) datetime64[D], the UTC day on which the episode started.
        policy_versions: (N,) str logged at the episode's first step, "" where not logged.
        split: (N,) int8, one of TRAIN, SELECT, GATE.
    """

    contract: Contract
    digest: str
    observations: Observations
    available: NDArray[np.bool_]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    next_row: NDArray[np.int64]
    behavior_prob: NDArray[np.float64]
    offsets: NDArray[np.int64]
    episode_ids: NDArray[Any]
    clusters: NDArray[np.int64]
    nights: NDArray[np.datetime64]
    policy_versions: NDArray[Any]
    split: NDArray[np.int8]

    @property
    def n_steps(self) -> int:
        """T."""
        return len(self.actions)

    @property
    def n_episodes(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @property
    def n_actions(self) -> int:
        """A."""
        return len(self.contract.actions.names)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) steps of each episode."""
        return np.diff(self.offsets)

    @cached_property
    def episode_of_step(self) -> NDArray[np.int64]:
        """(T,) index of the episode a step belongs to."""
        return np.repeat(np.arange(self.n_episodes), self.lengths)

    @cached_property
    def step_in_episode(self) -> NDArray[np.int64]:
        """(T,) 0 for the first step of its episode."""
        return np.arange(self.n_steps) - self.offsets[:-1][self.episode_of_step]

    def of_split(self, *splits: int) -> Replay:
        """The episodes of the given splits."""
        return self.subset(np.isin(self.split, splits))

    def subset(self, episodes: NDArray[np.bool_]) -> Replay:
        """The chosen episodes ((N,) bool), copied and re-indexed; order and digest are kept."""
        steps = np.flatnonzero(episodes[self.episode_of_step])
        n_kept = len(steps)
        # Final observations stand behind the steps: those of kept steps move up, in their order.
        next_row = np.array(self.next_row[steps])
        finals = next_row >= self.n_steps
        rows = np.concatenate([steps, next_row[finals]])
        new_row_of_step = np.full(self.n_steps, -1, dtype=np.int64)
        new_row_of_step[steps] = np.arange(n_kept)
        inner = (next_row >= 0) & ~finals
        next_row[inner] = new_row_of_step[next_row[inner]]
        next_row[finals] = n_kept + np.arange(int(finals.sum()))
        return replace(
            self,
            observations=self.observations.take(rows),
            available=self.available[rows],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            terminated=self.terminated[steps],
            truncated=self.truncated[steps],
            next_row=next_row,
            behavior_prob=self.behavior_prob[steps],
            offsets=np.concatenate([[0], np.cumsum(self.lengths[episodes])]).astype(np.int64),
            episode_ids=self.episode_ids[episodes],
            clusters=self.clusters[episodes],
            nights=self.nights[episodes],
            policy_versions=self.policy_versions[episodes],
            split=self.split[episodes],
        )
