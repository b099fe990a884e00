"""A replay dataset in blocks of whole episodes, each small enough for memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.replay import Replay

_MAPPED_BLOCKS = 16
"""Blocks read from one mapping of the files: pages that were read count as memory of the process until it goes."""


@dataclass(frozen=True)
class EpisodeBlocks:
    """K runs of consecutive episodes, of which only the chosen ones are read.

    Attributes:
        replay: all episodes; its arrays may be memory-mapped.
        chosen: (N,) bool.
        bounds: (K + 1,) int64; block k is the chosen ones among the episodes bounds[k]:bounds[k + 1].
    """

    replay: Replay
    chosen: NDArray[np.bool_]
    bounds: NDArray[np.int64]

    @staticmethod
    def cut(replay: Replay, chosen: NDArray[np.bool_], n_steps: int) -> EpisodeBlocks:
        """Blocks of the fewest episodes that make `n_steps` steps or more; the last takes what is left.

        A block is at least one episode, however long that is.

        Raises:
            ValueError: no episode is chosen, or n_steps is not positive.
        """
        if n_steps < 1 or not chosen.any():
            raise ValueError(f"wanted blocks of at least 1 step of some episode, found {n_steps} of {chosen.sum()}")
        ends = np.cumsum(np.where(chosen, replay.lengths, 0))
        n_blocks = max(1, int(ends[-1]) // n_steps)
        # The first episode with which the steps so far reach the block's share: no block is much smaller than another.
        marks = np.searchsorted(ends, ends[-1] * np.arange(1, n_blocks) // n_blocks) + 1
        return EpisodeBlocks(replay, chosen, np.unique(np.concatenate([[0], marks, [replay.n_episodes]])))

    @property
    def n_steps(self) -> int:
        """Steps of all chosen episodes."""
        return int(self.replay.lengths[self.chosen].sum())

    def __iter__(self) -> Iterator[Replay]:
        """Every block, in order."""
        return self.read(range(len(self)))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def episodes(self, block: int) -> NDArray[np.bool_]:
        """(N,) bool, the episodes of a block."""
        inside = np.zeros(self.replay.n_episodes, dtype=bool)
        run = slice(self.bounds[block], self.bounds[block + 1])
        inside[run] = self.chosen[run]
        return inside

    def positions(self, block: int) -> NDArray[np.int64]:
        """(T of the block,) which steps of the whole replay dataset its steps are."""
        run = slice(self.bounds[block], self.bounds[block + 1])
        inside = np.repeat(self.chosen[run], self.replay.lengths[run])
        return np.asarray(self.replay.offsets[self.bounds[block]] + np.flatnonzero(inside))

    @property
    def largest(self) -> tuple[int, int]:
        """Most steps of a block, and most rows: its steps, and a final observation for each of its episodes."""
        lengths = np.where(self.chosen, self.replay.lengths, 0)
        n_steps = np.add.reduceat(lengths, self.bounds[:-1])
        n_episodes = np.add.reduceat(self.chosen.astype(np.int64), self.bounds[:-1])
        return int(n_steps.max()), int((n_steps + n_episodes).max())

    def read(self, blocks: Iterable[int]) -> Iterator[Replay]:
        """The given blocks one after the other, each copied into memory."""
        reader = BlockReader(self)
        return (reader.read(block) for block in blocks)


class BlockReader:
    """Reads blocks from files that it maps anew now and then, so that no more than a part of them is in memory."""

    def __init__(self, blocks: EpisodeBlocks) -> None:
        self._blocks, self._mapped, self._n_read = blocks, blocks.replay, 0

    def read(self, block: int) -> Replay:
        """A block, copied into memory."""
        if self._n_read % _MAPPED_BLOCKS == 0:
            self._mapped = self._blocks.replay.mapped_anew()
        self._n_read += 1
        return self._mapped.subset(self._blocks.episodes(block))
