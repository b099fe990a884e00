"""Where batches come from: a fixed replay dataset, drawn uniformly, by strata of age, or by priority."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.contract import Contract
from datasets.encoding import Encoder
from datasets.replay import Replay
from offline_dqn.train_config import TrainConfig
from offline_dqn.training_data import (
    Batch,
    prepare_training_data,
    reward_scale,
    usable_steps,
)

_SMALLEST_PRIORITY = 1e-3
"""Added to every TD error, in units of the reward scale, so that no step is never drawn again."""


class BatchSource(Protocol):
    """A fixed replay dataset, and an order in which its steps are drawn that depends on the seed alone.

    Attributes:
        contract, encoder: of its observations.
        n_steps, n_unusable_steps: steps that can be drawn, and steps left out because nothing is known to follow them.
        reward_scale: reward units per unit of the batches' rewards.
        start_level: mean of the returns to come, in scaled units.
        silent_inputs: (D,) bool, encoded columns that are 0 in every row.
        digest: of all that decides what is drawn but the seed.
        snapshot_digest: of the snapshot it came from.
        observations: (M, D) every encoded observation, where they are in memory and next rows index into them.
    """

    contract: Contract
    encoder: Encoder
    n_steps: int
    n_unusable_steps: int
    reward_scale: float
    start_level: float
    silent_inputs: Tensor
    digest: str
    snapshot_digest: str

    @property
    def observations(self) -> Tensor | None: ...

    def draw(self, progress: float) -> Batch:
        """The next batch; `progress` in [0, 1] is the share of updates done."""
        ...

    def learn(self, batch: Batch, td_errors: Tensor) -> None:
        """Takes note of the absolute TD errors (B,) that a batch drawn by priority, with weights, had."""
        ...

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Encoded observations (n, D) and available actions (n, A) of every usable step, in blocks."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that the next draw depends on."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `state`."""
        ...


class InMemorySource:
    """Draws with replacement from tensors that are gathered, not copied together."""

    def __init__(
        self,
        replay: Replay,
        config: TrainConfig,
        *,
        encoder: Encoder,
        device: torch.device | None = None,
        older: NDArray[np.bool_] | None = None,
        potentials: NDArray[np.float64] | None = None,
    ) -> None:
        """Encode and check the replay dataset.

        Args:
            replay: the episodes of the training split.
            config: batch size, n-step, priorities, share of older steps, seed.
            encoder: fitted on the training split.
            device: where the tensors live.
            older: (N,) bool, episodes from before the champion's snapshot; used where `older_share` is set.
            potentials: see `prepare_training_data`.

        Raises:
            TrainingDataError: nothing can be learned from these steps.
        """
        usable = usable_steps(replay)
        scale = config.reward_scale or (reward_scale(replay.rewards[usable]) if len(usable) else 1.0)
        data = prepare_training_data(replay, encoder, scale, n_step=config.n_step, potentials=potentials)
        self.contract, self.encoder, self.reward_scale = replay.contract, encoder, scale
        self.n_steps, self.n_unusable_steps = data.n_steps, replay.n_steps - data.n_steps
        self.start_level = float(data.returns.double().mean())
        self.silent_inputs = (data.observations == 0).all(dim=0)
        strata = b"" if older is None else hashlib.sha256(older.tobytes()).digest()
        self.digest, self.snapshot_digest = data.digest() + strata.hex(), replay.digest
        self.data = data.to(device or torch.device("cpu"))
        self._batch_size = config.batch_size
        self._generator = torch.Generator().manual_seed(config.seed)
        self._strata = _strata(replay, usable, older, config.older_share)
        self._priorities = _Priorities(self.n_steps, config) if config.priority_exponent else None

    @property
    def observations(self) -> Tensor:
        """(M, D)."""
        return self.data.observations

    def draw(self, progress: float) -> Batch:
        """B steps: by priority, else uniform, else so many of the older ones."""
        device = self.data.rows.device
        if self._priorities is not None:
            steps, weights = self._priorities.draw(self._batch_size, self._generator, progress)
            return self.data.batch(steps.to(device), weights.to(device))
        if self._strata is None:
            steps = torch.randint(self.n_steps, (self._batch_size,), generator=self._generator)
        else:
            older, newer, share = self._strata
            n_older = round(self._batch_size * share)
            steps = torch.cat(
                [
                    older[torch.randint(len(older), (n_older,), generator=self._generator)],
                    newer[torch.randint(len(newer), (self._batch_size - n_older,), generator=self._generator)],
                ]
            )
        return self.data.batch(steps.to(device))

    def learn(self, batch: Batch, td_errors: Tensor) -> None:
        """Sets the batch's priorities anew; nothing where draws are uniform."""
        if self._priorities is not None:
            self._priorities.set(batch.steps.cpu(), td_errors.double().cpu())

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of 65,536 steps."""
        for rows in torch.split(self.data.rows, 65_536):
            yield self.data.observations[rows], self.data.available[rows]

    def state(self) -> dict[str, Tensor]:
        """The generator's state, and every priority."""
        state = {"generator": self._generator.get_state()}
        if self._priorities is not None:
            state |= {"priorities": self._priorities.values, "priority_sums": self._priorities.sums}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `state`."""
        self._generator.set_state(state["generator"])
        if self._priorities is not None:
            self._priorities.restore(state["priorities"], state["priority_sums"])


def _strata(
    replay: Replay, usable: NDArray[np.int64], older: NDArray[np.bool_] | None, share: float | None
) -> tuple[Tensor, Tensor, float] | None:
    """Older steps, newer steps, and the share of the former in a batch; None draws from all alike."""
    if share is None or older is None:
        return None
    is_older = older[replay.episode_of_step[usable]]
    if is_older.all() or not is_older.any():
        return None  # there is one stratum only
    return torch.from_numpy(np.flatnonzero(is_older)), torch.from_numpy(np.flatnonzero(~is_older)), share


class _Priorities:
    """S priorities in blocks whose sums are kept, so that drawing and changing a batch touch few of them.

    Source: Schaul et al. 2016, Prioritized Experience Replay (arXiv:1511.05952), section 3.
    Differs from it: drawn independently instead of by ranges of equal mass; the first priorities are all 1; weights are
    divided by their mean instead of their maximum, so that a weighted mean of a batch is one.
    """

    _BLOCK = 512

    def __init__(self, n_steps: int, config: TrainConfig) -> None:
        self._n, self._exponent, self._importance = n_steps, config.priority_exponent, config.importance_exponent
        self.values = torch.zeros(-(-n_steps // self._BLOCK), self._BLOCK, dtype=torch.float64)
        self.values.view(-1)[:n_steps] = 1.0
        self.sums = self.values.sum(dim=1)

    def draw(self, n: int, generator: torch.Generator, progress: float) -> tuple[Tensor, Tensor]:
        """(n,) steps with probability in proportion to their priority, and the (n,) weights that correct for it."""
        bounds = self.sums.cumsum(0)
        points = torch.rand(n, dtype=torch.float64, generator=generator) * bounds[-1]
        blocks = torch.searchsorted(bounds, points, right=True).clamp_(max=len(bounds) - 1)
        within = self.values[blocks].cumsum(1)
        points = points - (bounds[blocks] - self.sums[blocks])
        places = torch.searchsorted(within, points[:, None], right=True).squeeze(1).clamp_(max=self._BLOCK - 1)
        # Rounding may point just behind the last step: its priority is 0, and so would be its probability.
        steps = (blocks * self._BLOCK + places).clamp_(max=self._n - 1)
        probabilities = self.values.view(-1)[steps] / bounds[-1]
        exponent = self._importance + (1.0 - self._importance) * progress
        weights = (self._n * probabilities) ** -exponent
        return steps, (weights / weights.mean()).float()

    def set(self, steps: Tensor, td_errors: Tensor) -> None:
        """New priorities (|TD error| + a little)^exponent of some steps."""
        self.values.view(-1)[steps] = (td_errors + _SMALLEST_PRIORITY) ** self._exponent
        blocks = torch.unique(steps // self._BLOCK)
        self.sums[blocks] = self.values[blocks].sum(dim=1)

    def restore(self, values: Tensor, sums: Tensor) -> None:
        """Takes over all priorities and the sums of their blocks, which are rounded in their own way."""
        self.values.copy_(values)
        self.sums.copy_(sums)
