"""An endless stream of batches from blocks of episodes, shuffled in a pool far smaller than the data.

Blocks come in a new random order at every pass. P of them are in the pool at any time. The stream goes by periods: in
each, every block of the pool gives the next P-th of its steps, in an order of its own, and all of these are shuffled
together; then the oldest block leaves and the next one comes. A block so has given each of its steps once when it
leaves, and no two batches in a row are made of the same few episodes.

What a period holds is a function of the seed and the period's number alone. A thread makes the next periods ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.replay import Replay
from offline_dqn.episode_blocks import BlockReader, EpisodeBlocks
from offline_dqn.training_data import Batch, TrainingData

_AHEAD = 2
"""Periods made ahead."""

_BLOCK_ORDER, _STEP_ORDER, _PERIOD_ORDER = 0, 1, 2
"""What a generator is for, so that no two are the same."""


class ShuffledStream:
    """Batches of the chosen steps of a replay dataset, each step once a pass.

    The first batches draw from a full pool; what its first blocks would have given before is left out, once.
    """

    def __init__(
        self,
        blocks: EpisodeBlocks,
        encode: Callable[[Replay], TrainingData],
        *,
        n_pooled: int,
        seed: Sequence[int],
        device: torch.device | None = None,
    ) -> None:
        """Nothing is read before the first batch.

        Args:
            blocks: with at least one usable step.
            encode: what makes a block ready to be gathered from.
            n_pooled: P, at most the number of blocks.
            seed: the stream's own.
            device: where batches go.
        """
        self._pool = _Pool(blocks, encode, min(n_pooled, len(blocks)), tuple(seed))
        self._device = device or torch.device("cpu")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="next-steps")
        self._ahead: deque[Future[Batch]] = deque()
        self._period, self._place = 0, 0
        self._steps: Batch | None = None

    def take(self, n: int) -> Batch:
        """The next n steps."""
        parts = []
        while n:
            if self._steps is None or self._place == len(self._steps.steps):
                self._go_on()
                continue
            some = min(n, len(self._steps.steps) - self._place)
            parts.append(_slice(self._steps, self._place, some))
            self._place += some
            n -= some
        return parts[0] if len(parts) == 1 else concatenated(parts)

    def _go_on(self) -> None:
        """To the next period, or to the one that `restore` chose."""
        if self._steps is not None:
            self._period, self._place = self._period + 1, 0
        while len(self._ahead) <= _AHEAD:
            self._ahead.append(self._worker.submit(self._pool.period, self._period + len(self._ahead)))
        self._steps = _on(self._ahead.popleft().result(), self._device)

    def state(self) -> dict[str, Tensor]:
        """The period's number, and the steps of it that were taken."""
        return {"period": torch.tensor(self._period), "place": torch.tensor(self._place)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `state`; the pool is read anew with the next batch."""
        for made in self._ahead:
            made.cancel()
        self._ahead.clear()
        self._steps = None
        self._period, self._place = int(state["period"]), int(state["place"])


class _Pool:
    """P blocks in arrays that each block has a fixed part of; used by one thread."""

    def __init__(
        self, blocks: EpisodeBlocks, encode: Callable[[Replay], TrainingData], n_pooled: int, seed: tuple[int, ...]
    ) -> None:
        self._blocks, self._encode, self._n_pooled, self._seed = blocks, encode, n_pooled, seed
        self._reader = BlockReader(blocks)
        self._n_steps, self._n_rows = blocks.largest
        self._held = [-1] * n_pooled
        self._orders: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * n_pooled
        self._rows: dict[str, NDArray[Any]] = {}
        self._by_step: dict[str, NDArray[Any]] = {}
        self._pass, self._block_order = -1, np.empty(0, np.int64)

    def period(self, number: int) -> Batch:
        """All steps of a period, shuffled."""
        arrivals = range(number, number + self._n_pooled)
        for arrival in arrivals:
            if self._held[arrival % self._n_pooled] != arrival:
                self._admit(arrival, self._reader.read(self._block(arrival)))
        steps = np.concatenate([self._share(arrival, number) for arrival in arrivals])
        return self._gathered(self._rng(_PERIOD_ORDER, number).permutation(steps))

    def _block(self, arrival: int) -> int:
        """Which block is the so-manieth of the stream."""
        number, place = divmod(arrival, len(self._blocks))
        if number != self._pass:
            self._pass, self._block_order = number, self._rng(_BLOCK_ORDER, number).permutation(len(self._blocks))
        return int(self._block_order[place])

    def _admit(self, arrival: int, replay: Replay) -> None:
        data, slot = self._encode(replay), arrival % self._n_pooled
        positions = self._blocks.positions(self._block(arrival))[data.rows.numpy()]
        rows = {"observations": data.observations, "available": data.available}
        by_step = {name: getattr(data, name) for name in ("actions", "rewards", "discounts", "returns")}
        first_row = slot * self._n_rows
        by_step |= {"rows": data.rows + first_row, "next_rows": data.next_rows + first_row}
        by_step["steps"] = torch.from_numpy(positions)
        _put(self._rows, {name: t.numpy() for name, t in rows.items()}, first_row, self._n_pooled * self._n_rows)
        first_step = slot * self._n_steps
        _put(self._by_step, {n: t.numpy() for n, t in by_step.items()}, first_step, self._n_pooled * self._n_steps)
        self._orders[slot] = first_step + self._rng(_STEP_ORDER, arrival).permutation(data.n_steps)
        self._held[slot] = arrival

    def _share(self, arrival: int, number: int) -> NDArray[np.int64]:
        """What a block gives in a period: the newest of the pool its first P-th, the oldest its last."""
        order, age = self._orders[arrival % self._n_pooled], number + self._n_pooled - 1 - arrival
        return order[len(order) * age // self._n_pooled : len(order) * (age + 1) // self._n_pooled]

    def _gathered(self, steps: NDArray[np.int64]) -> Batch:
        found = {name: values.take(steps) for name, values in self._by_step.items()}
        rows = found.pop("rows")
        for prefix, which in (("", rows), ("next_", found["next_rows"])):
            found |= {prefix + name: values.take(which, axis=0) for name, values in self._rows.items()}
        return Batch(**{name: torch.from_numpy(values) for name, values in found.items()})

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, purpose, number])


def concatenated(batches: Sequence[Batch]) -> Batch:
    """One batch of the steps of several."""
    names = [name for name, tensor in vars(batches[0]).items() if tensor is not None]
    return replace(batches[0], **{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names})


def _slice(batch: Batch, start: int, n: int) -> Batch:
    return replace(batch, **{name: t.narrow(0, start, n) for name, t in vars(batch).items() if t is not None})


def _on(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return replace(batch, **{name: t.to(device) for name, t in vars(batch).items() if t is not None})


def _put(arrays: dict[str, NDArray[Any]], values: Mapping[str, NDArray[Any]], first: int, capacity: int) -> None:
    """Writes values from row `first` on, into arrays that the first ones to come make."""
    for name, new in values.items():
        if name not in arrays:
            arrays[name] = np.empty((capacity, *new.shape[1:]), new.dtype)
        arrays[name][first : first + len(new)] = new
