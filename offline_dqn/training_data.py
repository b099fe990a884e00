"""The tensors that training gathers its batches from, checked once before the first update."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.contract import Contract
from datasets.encoding import Encoder
from datasets.errors import OfflineDqnError
from datasets.replay import Replay
from offline_dqn.data_checks import DataCheck

_logger = logging.getLogger(__name__)


class TrainingDataError(OfflineDqnError):
    """A replay dataset that nothing can be learned from."""


@dataclass(frozen=True)
class Batch:
    """B steps drawn for one update; shapes as in `TrainingData`, with B for S.

    Attributes:
        steps: (B,) int64, which of the S steps they are.
        next_rows: (B,) int64 rows of the observation that follows.
        weights: (B,) float32, what each counts in the loss; None where all count alike.
        returns: (B,) float32, what the log earned from there on.
    """

    steps: Tensor
    observations: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    available: Tensor
    next_rows: Tensor
    next_observations: Tensor
    next_available: Tensor
    returns: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class TrainingData:
    """S usable steps that index into M observations, each stored once.

    Attributes:
        observations: (M, D) float32, encoded.
        available: (M, A) bool.
        rows: (S,) int64, the observation of each step.
        next_rows: (S,) int64, the observation that a target bootstraps from; row 0 stands in where the discount is 0.
        actions: (S,) int64.
        rewards: (S,) float32, discounted sum over the n steps that a target spans, divided by the reward scale.
        discounts: (S,) float32, gamma^n * (1 - terminated).
        returns: (S,) float32, discounted return to the last logged step, divided by the reward scale.
    """

    observations: Tensor
    available: Tensor
    rows: Tensor
    next_rows: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    returns: Tensor

    @property
    def n_steps(self) -> int:
        """S."""
        return len(self.rows)

    def batch(self, steps: Tensor, weights: Tensor | None = None) -> Batch:
        """The given steps ((B,) int64)."""
        rows, next_rows = self.rows[steps], self.next_rows[steps]
        return Batch(
            steps=steps,
            observations=self.observations.index_select(0, rows),
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            discounts=self.discounts[steps],
            available=self._available(rows),
            next_rows=next_rows,
            next_observations=self.observations.index_select(0, next_rows),
            next_available=self._available(next_rows),
            returns=self.returns[steps],
            weights=weights,
        )

    @cached_property
    def _all_available(self) -> bool:
        return bool(self.available.all())

    def _available(self, rows: Tensor) -> Tensor:
        """(B, A); where nothing is ever unavailable, one row for all spares the gather."""
        if self._all_available:
            return self.available[:1].expand(len(rows), -1)
        return self.available.index_select(0, rows)

    def to(self, device: torch.device) -> TrainingData:
        """The same data on a device."""
        return TrainingData(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def digest(self) -> str:
        """SHA-256 of every tensor: what a checkpoint belongs to."""
        digest = hashlib.sha256()
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            digest.update(f"{field.name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().data)
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
    return scale_of_spread(float(rewards.std()), float(np.abs(rewards).mean()))


def scale_of_spread(spread: float, size: float) -> float:
    """The same from the rewards' standard deviation and the mean of their sizes."""
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


def prepare_training_data(
    replay: Replay, encoder: Encoder, scale: float, *, n_step: int = 1, potentials: NDArray[np.float64] | None = None
) -> TrainingData:
    """Encode the replay dataset and check it.

    Args:
        replay: the steps to learn from.
        encoder: of its observations.
        scale: what rewards are divided by.
        n_step: rewards that a target spans, fewer where the episode ends before.
        potentials: (M,) potential of each observation in reward units; `gamma * potential(next) - potential` is added
            to each reward (Ng et al. 1999), with 0 behind the end. Values learned are then less by the potential.

    Raises:
        TrainingDataError: no usable step, an encoded observation or reward that is not finite, a logged action that was
            not available, an observation with no available action, or gamma = 1 where no episode ever terminates.
    """
    data = encode_steps(replay, encoder, scale, n_step=n_step, potentials=potentials)
    refuse_unusable(check_steps(replay, data), replay.contract, encoder)
    return data


def encode_steps(
    replay: Replay, encoder: Encoder, scale: float, *, n_step: int = 1, potentials: NDArray[np.float64] | None = None
) -> TrainingData:
    """`prepare_training_data` of a part of a replay dataset, unchecked; it may well have no usable step."""
    steps = usable_steps(replay)
    encoded = encoder.encode(replay.observations)
    rewards, discounts, next_rows = n_step_targets(replay, steps, n_step)
    returns = returns_to_go(replay)[steps]
    if potentials is not None:
        rewards = rewards + discounts * potentials[next_rows] - potentials[steps]
        returns = returns - potentials[steps]
    return TrainingData(
        observations=torch.from_numpy(encoded),
        available=torch.from_numpy(_learnable(replay)),
        rows=torch.from_numpy(steps),
        next_rows=torch.from_numpy(next_rows),
        actions=torch.from_numpy(replay.actions[steps]),
        rewards=torch.from_numpy((rewards / scale).astype(np.float32)),
        discounts=torch.from_numpy(discounts.astype(np.float32)),
        returns=torch.from_numpy((returns / scale).astype(np.float32)),
    )


def check_steps(replay: Replay, data: TrainingData) -> DataCheck:
    """What is wrong with a part of a replay dataset, which all parts together have to answer for."""
    return DataCheck.of(replay, data.observations.numpy(), data.rows.numpy(), _ended(replay))


def refuse_unusable(found: DataCheck, contract: Contract, encoder: Encoder) -> None:
    """Raises what `prepare_training_data` says; warns of what teaches little."""
    problems = found.problems(contract, encoder.names)
    if problems:
        raise TrainingDataError("the replay dataset cannot be trained on:\n" + "\n".join(f"  {p}" for p in problems))
    for warning in found.warnings(contract):
        _logger.warning("%s", warning)


def n_step_targets(
    replay: Replay, steps: NDArray[np.int64], n_step: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """What a target of up to n steps is made of, for each of the given usable steps.

    A span ends early at the end of its episode, and before a last step that was cut off with nothing behind it: its
    observation is still known, its successor is not.

    Returns:
        (S,) discounted sum of the rewards in the span, in reward units; (S,) gamma^n, 0 where the task ended; (S,) row
        of the observation behind the span, 0 where the task ended.

    Source: Sutton 1988, Learning to Predict by the Methods of Temporal Differences; uncorrected for the policy, as in
    Hessel et al. 2018, Rainbow (arXiv:1710.02298), section 3.
    """
    gamma, ended = replay.contract.gamma, _ended(replay)
    usable = ended | (replay.next_row >= 0)
    last, rewards, power = steps.copy(), replay.rewards[steps].astype(np.float64), np.full(len(steps), gamma)
    for _ in range(1, n_step):
        following = np.minimum(last + 1, replay.n_steps - 1)
        # Behind the last step of all, row last + 1 is a final observation.
        goes_on = ~ended[last] & (replay.next_row[last] == last + 1) & (following > last) & usable[following]
        if not goes_on.any():
            break
        rewards += np.where(goes_on, power * replay.rewards[following], 0.0)
        power = np.where(goes_on, power * gamma, power)
        last = np.where(goes_on, following, last)
    done = ended[last]
    return rewards, np.where(done, 0.0, power), np.where(done, 0, replay.next_row[last])


def _ended(replay: Replay) -> NDArray[np.bool_]:
    """(T,) no value follows: the task terminated, or every row is an episode of its own."""
    return replay.terminated | (replay.contract.episodes.kind == "one_step")


def _learnable(replay: Replay) -> NDArray[np.bool_]:
    """(M, A) what a target may maximize over: what is permitted.

    An action that was logged and is forbidden by now stays in its own row, where the penalty speaks of it.
    """
    if not replay.contract.forbids:
        return np.ascontiguousarray(replay.available)
    permitted = np.array(replay.permitted)
    permitted[np.arange(replay.n_steps), replay.actions] = True
    return permitted
