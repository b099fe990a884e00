"""The fixed replay dataset in memory: steps, episodes and splits as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.constraints import Rules
from datasets.contract import Contract, with_rules
from datasets.observations import Observations
from datasets.step_rules import ConstraintError, permitted_actions

TRAIN, SELECT, GATE = 0, 1, 2
"""Codes of the splits: fitted on, chosen on, judged on."""

SPLIT_NAMES = ("train", "select", "gate")


STEP_ARRAYS = ("available", "actions", "rewards", "terminated", "truncated", "next_row", "behavior_prob")
"""Arrays with one entry per step (`available`: per observation)."""


@dataclass(frozen=True)
class Replay:
    """T steps of N episodes, contiguous per episode, episodes ordered by start. Fixed before training; never grows.

    Attributes:
        contract: the decision problem.
        digest: SHA-256 of the snapshot's content; a subset keeps the digest of the snapshot it came from. "" where
            nothing was frozen.
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
        starts: (N,) datetime64[us], UTC instant of each episode's first step, NaT where the log does not say; None
            where no episode's is known.
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
    starts: NDArray[np.datetime64] | None = None

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

    @cached_property
    def permitted(self) -> NDArray[np.bool_]:
        """(M, A) bool, what a policy may do: `available` without what the contract's constraints forbid.

        The log's own policy may have been free to do more, so what is asked of the log (was the action available?) is
        asked of `available`.

        Raises:
            ConstraintError: a condition fails on a row.
        """
        return permitted_actions(self.contract, self.observations, self.available)

    def shielded(self) -> Replay:
        """The same, with `permitted` evaluated for all rows at once, so that no part of it does so again."""
        assert self.permitted.shape == self.available.shape
        return self

    def under(self, rules: Rules) -> Replay:
        """The same steps under other rules: those of the current contract.

        Raises:
            ConstraintError: a rule speaks of a feature or action that the steps were frozen without.
        """
        try:
            return replace(self, contract=with_rules(self.contract, rules))
        except ValueError as error:
            raise ConstraintError(
                f"The contract's rules cannot hold for what was frozen under an older contract: {error}. Freeze a new "
                "snapshot with `offline-dqn snapshot`."
            ) from error

    def step_blocks(self, size: int) -> Iterator[tuple[NDArray[np.int64], Replay]]:
        """The steps in runs of `size`, with the replay to read them from.

        Of memory-mapped arrays the pages that were read count as memory of the process; they are mapped anew now and
        then, so that a pass over everything needs no more than a part of it.
        """
        replay = self
        for block, start in enumerate(range(0, self.n_steps, size)):
            if block % 8 == 7:
                replay = self.mapped_anew()
            yield np.arange(start, min(start + size, self.n_steps)), replay

    def mapped_anew(self) -> Replay:
        """The same, without the pages of memory-mapped arrays that were read so far, once `self` is let go."""
        columns = {name: _mapped_anew(values) for name, values in self.observations.columns.items()}
        changes: dict[str, Any] = {name: _mapped_anew(getattr(self, name)) for name in STEP_ARRAYS}
        return replace(self, observations=Observations(columns, self.observations.vocabularies), **changes)

    def of_split(self, *splits: int) -> Replay:
        """The episodes of the given splits."""
        return self.subset(np.isin(self.split, splits))

    def subset(self, episodes: NDArray[np.bool_]) -> Replay:
        """The chosen episodes ((N,) bool), copied and re-indexed; order and digest are kept."""
        chosen = np.flatnonzero(episodes)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        n_kept = int(offsets[-1])
        # How far the steps of an episode move up: no array here is as long as the whole.
        moved = np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        steps = np.arange(n_kept) + moved
        # Final observations stand behind the steps: those of kept steps move up, in their order.
        next_row = np.array(self.next_row[steps])
        finals = next_row >= self.n_steps
        rows = np.concatenate([steps, next_row[finals]])
        inner = (next_row >= 0) & ~finals
        next_row[inner] -= moved[inner]
        next_row[finals] = n_kept + np.arange(int(finals.sum()))
        kept = replace(
            self,
            observations=self.observations.take(rows),
            available=self.available[rows],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            terminated=self.terminated[steps],
            truncated=self.truncated[steps],
            next_row=next_row,
            behavior_prob=self.behavior_prob[steps],
            offsets=offsets,
            episode_ids=self.episode_ids[chosen],
            clusters=self.clusters[chosen],
            nights=self.nights[chosen],
            policy_versions=self.policy_versions[chosen],
            split=self.split[chosen],
            starts=None if self.starts is None else self.starts[chosen],
        )
        if self.contract.forbids and "permitted" in self.__dict__:  # evaluated once for a whole and all of its parts
            kept.__dict__["permitted"] = self.permitted[rows]
        return kept


def _mapped_anew(values: NDArray[Any]) -> NDArray[Any]:
    file = values.filename if isinstance(values, np.memmap) else None
    mapped: NDArray[Any] = values if file is None else np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped
