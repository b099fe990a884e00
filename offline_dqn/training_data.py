"""The tensors that training gathers its batches from, checked once before the first update."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.encoding import Encoder
from datasets.errors import OfflineDqnError
from datasets.replay import Replay

_logger = logging.getLogger(__name__)


class TrainingDataError(OfflineDqnError):
    """A replay dataset that nothing can be learned from."""


@dataclass(frozen=True)
class Batch:
    """B steps drawn for one update; shapes as in `TrainingData`, with B for S."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    available: Tensor
    next_observations: Tensor
    next_available: Tensor


@dataclass(frozen=True)
class TrainingData:
    """S usable steps that index into M observations, each stored once.

    Attributes:
        observations: (M, D) float32, encoded.
        available: (M, A) bool.
        rows: (S,) int64, the observation of each step.
        next_rows: (S,) int64, the observation that follows; row 0 stands in where the discount is 0.
        actions: (S,) int64.
        rewards: (S,) float32, divided by the reward scale.
        discounts: (S,) float32, gamma * (1 - terminated).
    """

    observations: Tensor
    available: Tensor
    rows: Tensor
    next_rows: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor

    @property
    def n_steps(self) -> int:
        """S."""
        return len(self.rows)

    def batch(self, steps: Tensor) -> Batch:
        """The given steps ((B,) int64)."""
        rows, next_rows = self.rows[steps], self.next_rows[steps]
        return Batch(
            observations=self.observations.index_select(0, rows),
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            discounts=self.discounts[steps],
            available=self.available.index_select(0, rows),
            next_observations=self.observations.index_select(0, next_rows),
            next_available=self.available.index_select(0, next_rows),
        )

    def to(self, device: torch.device) -> TrainingData:
        """The same data on a device."""
        return TrainingData(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def digest(self) -> str:
        """SHA-256 of every tensor: what a checkpoint belongs to."""
        digest = hashlib.sha256()
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            digest.update(f"{field.name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def usable_steps(replay: Replay) -> NDArray[np.int64]:
    """Steps that can be a target: those that terminated, and those whose next observation is known.

    The rest were cut off with nothing behind them. They never bootstrap from themselves and are never taken as
    terminal.
    """
    return np.flatnonzero(_ended(replay) | (replay.next_row >= 0))


def reward_scale(rewards: NDArray[np.float64]) -> float:
    """Standard deviation of the rewards, or their size where they are all alike; what training divides them by.

    The difference that one action makes is then of order 1 whatever the unit, and so is a sensible penalty weight.
    """
    spread, size = float(rewards.std()), float(np.abs(rewards).mean())
    if spread > 1e-9 * size:
        return spread
    return size or 1.0


def returns_to_go(replay: Replay) -> NDArray[np.float64]:
    """(T,) discounted return from each step to the last logged one of its episode, in reward units."""
    returns = replay.rewards.astype(np.float64)
    last = replay.offsets[1:] - 1
    for steps_to_last in range(1, int(replay.lengths.max(initial=0))):
        steps = last[replay.lengths > steps_to_last] - steps_to_last
        returns[steps] += replay.contract.gamma * returns[steps + 1]
    return returns


def prepare_training_data(replay: Replay, encoder: Encoder, scale: float) -> TrainingData:
    """Encode the replay dataset and check it.

    Raises:
        TrainingDataError: no usable step, an encoded observation or reward that is not finite, a logged action that was
            not available, an observation with no available action, or gamma = 1 where no episode ever terminates.
    """
    steps = usable_steps(replay)
    if not len(steps):
        raise TrainingDataError(
            f"none of the {replay.n_steps} steps of {replay.n_episodes} episodes can be learned from: a step needs "
            "a next observation or terminated = true. Log a following step, or final_observation where one is cut."
        )
    ended, next_rows = _ended(replay)[steps], replay.next_row[steps]
    next_rows = np.where(ended, 0, next_rows)
    encoded = encoder.encode(replay.observations)
    _check(replay, encoder, encoded, steps, next_rows[~ended], any_ended=bool(ended.any()))
    return TrainingData(
        observations=torch.from_numpy(encoded),
        available=torch.from_numpy(np.ascontiguousarray(replay.available)),
        rows=torch.from_numpy(steps),
        next_rows=torch.from_numpy(next_rows),
        actions=torch.from_numpy(replay.actions[steps]),
        rewards=torch.from_numpy((replay.rewards[steps] / scale).astype(np.float32)),
        discounts=torch.from_numpy(np.where(ended, 0.0, replay.contract.gamma).astype(np.float32)),
    )


def _ended(replay: Replay) -> NDArray[np.bool_]:
    """(T,) no value follows: the task terminated, or every row is an episode of its own."""
    return replay.terminated | (replay.contract.episodes.kind == "one_step")


def _check(
    replay: Replay,
    encoder: Encoder,
    encoded: NDArray[np.float32],
    steps: NDArray[np.int64],
    bootstrapped_rows: NDArray[np.int64],
    *,
    any_ended: bool,
) -> None:
    problems = []
    bad_columns = np.flatnonzero(~np.isfinite(encoded).all(axis=0))
    if len(bad_columns):
        names = ", ".join(encoder.names[column] for column in bad_columns[:5])
        row = int(np.flatnonzero(~np.isfinite(encoded).all(axis=1))[0])
        problems.append(
            f"encoded observations are not finite in {len(bad_columns)} columns ({names}), first in row {row}; "
            "a value of the log is infinite or too large for float32"
        )
    bad_rewards = np.flatnonzero(~np.isfinite(replay.rewards))
    if len(bad_rewards):
        problems.append(
            f"reward is not finite in {len(bad_rewards)} of {replay.n_steps} steps, first {_at(replay, bad_rewards)}"
        )
    forbidden = steps[~replay.available[steps, replay.actions[steps]]]
    if len(forbidden):
        label = replay.contract.actions.names[replay.actions[forbidden[0]]]
        problems.append(
            f"the logged action was not available in {len(forbidden)} steps, first '{label}' {_at(replay, forbidden)}; "
            "correct available_actions upstream"
        )
    stuck = bootstrapped_rows[~replay.available[bootstrapped_rows].any(axis=1)]
    if len(stuck):
        problems.append(f"no action is available at {len(stuck)} next observations, first row {stuck[0]}")
    if replay.contract.gamma == 1.0 and not any_ended:
        problems.append(
            "gamma = 1 and no episode terminates: the values are infinite sums. Set gamma below 1 in the contract, or "
            'log terminated = true where the task ends (on_timeout = "terminated" if idleness ends it)'
        )
    if problems:
        raise TrainingDataError("the replay dataset cannot be trained on:\n" + "\n".join(f"  {p}" for p in problems))
    taken = np.unique(replay.actions[steps])
    if len(taken) == 1:
        _logger.warning(
            "every logged action is '%s': the log says nothing about the others, and only the penalty ranks them",
            replay.contract.actions.names[taken[0]],
        )


def _at(replay: Replay, steps: NDArray[np.int64]) -> str:
    step = steps[0]
    return f"in episode '{replay.episode_ids[replay.episode_of_step[step]]}' step {replay.step_in_episode[step]}"
