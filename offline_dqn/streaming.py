"""Training on more steps than memory holds: a source of batches that reads the snapshot in shuffled blocks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.encoding import Encoder, fit_encoder_to_blocks
from datasets.moments import Moments
from datasets.observations import Observations
from datasets.replay import STEP_ARRAYS, Replay
from offline_dqn.data_checks import DataCheck
from offline_dqn.episode_blocks import EpisodeBlocks
from offline_dqn.sampling import BatchSource, InMemorySource
from offline_dqn.shuffled_stream import ShuffledStream, concatenated
from offline_dqn.train_config import TrainConfig
from offline_dqn.training_data import (
    Batch,
    TrainingData,
    TrainingDataError,
    check_steps,
    encode_steps,
    refuse_unusable,
    scale_of_spread,
)

_POOL_SHARE = 0.25
"""Of `largest_in_memory_mb`: what the pool takes. Reading, encoding and the network need the rest."""

_POOLED_BLOCKS = 128
"""Blocks in the pool, where there are as many: more mix better, fewer are read in larger pieces."""

_SMALLEST_BLOCK = 64
_READ_BYTES = 16_000_000
"""Raw size of the blocks in which everything is read once, before the first update."""

_STEP_BYTES = 48
"""Of a step in the pool, beside its observation: indices, action, reward, discount and return."""

_WATCHED_STEPS = 1_000_000
"""Steps that `blocks` goes through at most."""

_WATCHED_ROWS = 16_384
"""Of them at a time: what a network makes of them on its way is larger than they are."""

Potential = Callable[[Observations], NDArray[np.float64]]
"""(M,) potential of each observation, in reward units."""


def training_source(
    replay: Replay,
    chosen: NDArray[np.bool_],
    config: TrainConfig,
    *,
    encoder: Encoder | None = None,
    device: torch.device | None = None,
    older: NDArray[np.bool_] | None = None,
    potential: Potential | None = None,
) -> BatchSource:
    """Where training gets its batches from: tensors in memory, or the snapshot itself where they would be too large.

    Args:
        replay: the snapshot; its arrays may be memory-mapped.
        chosen: (N,) bool, the episodes to learn from: its training split.
        config: see `largest_in_memory_mb`.
        encoder: of observations; by default fitted to the chosen episodes.
        device: where batches go.
        older: (N,) bool, episodes from before the champion's snapshot; used where `older_share` is set.
        potential: added to the rewards as a difference; see `prepare_training_data`.

    Raises:
        TrainingDataError: nothing can be learned from these steps, or not with priorities because there are too many.
        ValueError: no episode is chosen.
    """
    blocks = EpisodeBlocks.cut(replay, chosen, max(_SMALLEST_BLOCK, _READ_BYTES // _raw_step_bytes(replay)))
    encoder = encoder or fit_encoder_to_blocks(replay.contract, (part.observations for part in blocks))
    if in_memory_mb(blocks, encoder) > config.largest_in_memory_mb:
        return StreamedSource(blocks, config, encoder=encoder, device=device, older=older, potential=potential)
    kept = replay.subset(chosen)
    return InMemorySource(
        kept,
        config,
        encoder=encoder,
        device=device,
        older=None if older is None else older[chosen],
        potentials=None if potential is None else potential(kept.observations),
    )


def in_memory_mb(blocks: EpisodeBlocks, encoder: Encoder) -> float:
    """What the chosen episodes would take in memory, raw and encoded, in MB."""
    replay = blocks.replay
    return blocks.n_steps * (_raw_step_bytes(replay) + _encoded_step_bytes(replay, encoder)) / 1e6


class StreamedSource:
    """Draws without replacement from a pool through which the blocks of a snapshot pass (see `ShuffledStream`).

    Two steps of one block share a batch as often as if the pool were all there is; steps of different blocks about as
    often as if everything were in memory. Priorities would need every step at any time, and are refused.
    """

    observations: Tensor | None = None

    def __init__(
        self,
        blocks: EpisodeBlocks,
        config: TrainConfig,
        *,
        encoder: Encoder,
        device: torch.device | None = None,
        older: NDArray[np.bool_] | None = None,
        potential: Potential | None = None,
    ) -> None:
        """Reads everything once, to check it.

        Args:
            blocks: the chosen episodes, in the pieces in which they are looked through.
            config: batch size, n-step, share of older steps, size of the pool, seed.
            encoder: fitted on the chosen episodes.
            device, older, potential: see `training_source`.

        Raises:
            TrainingDataError: see `training_source`.
        """
        if config.priority_exponent:
            raise TrainingDataError(
                f"priority_exponent = {config.priority_exponent:g} needs every step in memory, and they would take "
                f"about {in_memory_mb(blocks, encoder):,.0f} MB. Set train.largest_in_memory_mb (now "
                f"{config.largest_in_memory_mb}) above that, or train.priority_exponent = 0."
            )
        replay, found = blocks.replay, _survey(blocks, encoder, potential)
        refuse_unusable(found.check, replay.contract, encoder)
        self.contract, self.encoder, self.snapshot_digest = replay.contract, encoder, replay.digest
        self.n_steps, self.n_unusable_steps = found.check.n_usable, found.check.n_steps - found.check.n_usable
        self.reward_scale = config.reward_scale or found.reward_scale
        self.silent_inputs = torch.from_numpy(found.check.silent)
        self._blocks, self._potential, self._n_step = blocks, potential, config.n_step
        self._device = device or torch.device("cpu")
        self.start_level = found.mean_return / self.reward_scale
        self._streams: list[tuple[int, ShuffledStream]] = []
        digest = hashlib.sha256(f"{replay.digest} {self.reward_scale!r} {config.n_step}".encode())
        digest.update(json.dumps(encoder.to_json()).encode())
        for i, (n, share, part) in enumerate(_strata(blocks, older, config)):
            pool_steps = int(config.largest_in_memory_mb * 1e6 * _POOL_SHARE * share)
            pool_steps //= _encoded_step_bytes(replay, encoder)
            pooled = EpisodeBlocks.cut(replay, part, max(_SMALLEST_BLOCK, pool_steps // _POOLED_BLOCKS))
            n_pooled = max(1, min(_POOLED_BLOCKS, pool_steps // pooled.largest[0]))
            digest.update(f"{n} {n_pooled} {pooled.bounds.tolist()}".encode() + part.tobytes())
            seed = (config.seed, i)
            stream = ShuffledStream(pooled, self._encode, n_pooled=n_pooled, seed=seed, device=self._device)
            self._streams.append((n, stream))
        self.digest = digest.hexdigest()

    def _encode(self, replay: Replay) -> TrainingData:
        potentials = None if self._potential is None else self._potential(replay.observations)
        return encode_steps(replay, self.encoder, self.reward_scale, n_step=self._n_step, potentials=potentials)

    def draw(self, progress: float) -> Batch:  # noqa: ARG002  # only priorities change as training goes on
        """The next B steps: from all alike, or so many of the older ones."""
        parts = [stream.take(n) for n, stream in self._streams if n]
        return parts[0] if len(parts) == 1 else concatenated(parts)

    def learn(self, batch: Batch, td_errors: Tensor) -> None:
        """Nothing: every step comes once a pass."""

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """As read; of a million steps and more only every so-manieth block."""
        every = -(-self.n_steps // _WATCHED_STEPS)
        for part in self._blocks.read(range(0, len(self._blocks), every)):
            data = self._encode(part)
            for rows in torch.split(data.rows, _WATCHED_ROWS) if data.n_steps else ():
                yield data.observations[rows].to(self._device), data.available[rows].to(self._device)

    def state(self) -> dict[str, Tensor]:
        """Where the streams are; the pool is read anew from the snapshot."""
        return {f"{i}.{name}": t for i, (_, stream) in enumerate(self._streams) for name, t in stream.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `state`."""
        for i, (_, stream) in enumerate(self._streams):
            stream.restore({name: state[f"{i}.{name}"] for name in stream.state()})


@dataclass(frozen=True)
class _Survey:
    """Of all chosen steps: what is wrong, what rewards are divided by, and their mean return to go in reward units."""

    check: DataCheck
    reward_scale: float
    mean_return: float


def _survey(blocks: EpisodeBlocks, encoder: Encoder, potential: Potential | None) -> _Survey:
    check: DataCheck | None = None
    moments: Moments | None = None
    total_size = total_return = 0.0
    for part in blocks:
        potentials = None if potential is None else potential(part.observations)
        data = encode_steps(part, encoder, 1.0, potentials=potentials)
        found = check_steps(part, data)
        check = found if check is None else check.merged(found)
        rewards = part.rewards[data.rows.numpy()]
        rewards = rewards[np.isfinite(rewards)]  # the others are found by the check
        if len(rewards):
            spread = Moments.of(rewards[:, None])
            moments = spread if moments is None else moments.merged(spread)
            total_size += float(np.abs(rewards).sum())
            total_return += float(data.returns.double().sum())
    assert check is not None  # some episode was chosen
    if moments is None:
        return _Survey(check, 1.0, 0.0)
    scale = scale_of_spread(float(moments.deviation[0]), total_size / float(moments.n_present[0]))
    return _Survey(check, scale, total_return / max(1, check.n_usable))


def _strata(
    blocks: EpisodeBlocks, older: NDArray[np.bool_] | None, config: TrainConfig
) -> list[tuple[int, float, NDArray[np.bool_]]]:
    """Of each stream: its steps in a batch, its share of the pool, and its episodes ((N,) bool)."""
    if config.older_share is None or older is None:
        return [(config.batch_size, 1.0, blocks.chosen)]
    parts = [blocks.chosen & older, blocks.chosen & ~older]
    if not all(_any_usable(blocks.replay, part) for part in parts):
        return [(config.batch_size, 1.0, blocks.chosen)]
    n_older = round(config.batch_size * config.older_share)
    sizes = [n_older, config.batch_size - n_older]
    return [(n, n / config.batch_size, part) for n, part in zip(sizes, parts, strict=True) if n]


def _any_usable(replay: Replay, episodes: NDArray[np.bool_]) -> bool:
    """Whether some step of these episodes can be learned from."""
    usable = replay.terminated | (replay.next_row >= 0) | (replay.contract.episodes.kind == "one_step")
    return bool(np.logical_or.reduceat(usable, replay.offsets[:-1])[episodes].any())


def _raw_step_bytes(replay: Replay) -> int:
    """Of one step of the snapshot, with its observation."""
    arrays = [*replay.observations.columns.values(), *(getattr(replay, name) for name in STEP_ARRAYS)]
    return int(sum(values[:1].nbytes for values in arrays))


def _encoded_step_bytes(replay: Replay, encoder: Encoder) -> int:
    """Of one step that is ready to be drawn, with its observation."""
    return 4 * encoder.size + replay.n_actions + _STEP_BYTES
