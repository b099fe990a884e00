"""The features of fitted Q evaluation: observation and time, piecewise linear and through random cosines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.encoding import Encoder
from datasets.replay import Replay
from offline_dqn.fqe_config import FqeConfig

_POOLED_SIDE = 6
"""Cells that a side of an image is averaged into."""

Array = NDArray[np.float64]
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Basis:
    """Features of a step: a constant, the encoded observation, bends in time, and random cosines of both.

    Attributes:
        encoder: of observations.
        knots: (K,) step indices where the effect of time may bend.
        time_scale: steps per unit of time.
        directions, phases: (D + 1, R) and (R,) of the cosines; the last row is time's.
        size: of the constant, and of all cosines together; the root of the inputs' total variance, so that the three
            parts are shrunk alike.
    """

    encoder: Encoder
    knots: Array
    time_scale: float
    directions: Array
    phases: Array
    size: float

    @staticmethod
    def drawn(replay: Replay, encoder: Encoder, config: FqeConfig, rng: np.random.Generator) -> Basis:
        """Knots along the step index, directions of lengths that suit the spread of the observations."""
        last = float(replay.step_in_episode.max())
        n_even = (config.n_time_knots + 1) // 2
        even = np.linspace(0.0, last, n_even, endpoint=False)
        shares = np.linspace(0.0, 1.0, config.n_time_knots - n_even, endpoint=False)
        knots = np.unique(np.round([*even, *np.quantile(replay.step_in_episode, shares)]))
        knots = knots[knots < last]  # beyond the last step nothing can bend; none for episodes of one step
        time_scale = max(last, 1.0)
        inputs = _inputs(replay, encoder, time_scale)
        room = config.max_coefficients // replay.n_actions - inputs.shape[1] - len(knots)
        n_random = min(config.n_random_features, max(room, 50))
        spread = float(np.sqrt(inputs.var(axis=0).sum())) or 1.0
        lengths = np.exp(rng.uniform(np.log(0.5), np.log(6.0), n_random)) / spread
        directions = rng.normal(size=(inputs.shape[1], n_random)) * lengths
        phases = rng.uniform(0.0, 2.0 * np.pi, n_random)
        return Basis(encoder, knots, time_scale, directions, phases, spread)

    def features(self, replay: Replay) -> Features:
        """(T, D')."""
        inputs = _inputs(replay, self.encoder, self.time_scale)
        bends = np.maximum(inputs[:, -1:] - self.knots / self.time_scale, 0.0)
        cosines = self.size * np.sqrt(2.0 / max(len(self.phases), 1)) * np.cos(inputs @ self.directions + self.phases)
        constant = np.full((len(inputs), 1), self.size)
        return np.concatenate([constant, inputs[:, :-1], bends, cosines], axis=1, dtype=np.float32)


def _inputs(replay: Replay, encoder: Encoder, time_scale: float) -> Array:
    """(T, D + 1): the encoded observation of each step, and its time."""
    encoded = _pooled(encoder.encode(replay.observations.take(np.arange(replay.n_steps))), encoder.image_shape)
    return np.concatenate([encoded, replay.step_in_episode[:, None] / time_scale], axis=1, dtype=np.float64)


def _pooled(encoded: Features, image_shape: tuple[int, ...] | None) -> Features:
    """The encoded rows with the image, which stands first, averaged over at most `_POOLED_SIDE` cells a side.

    The linear solves grow with the cube of the inputs; every pixel of a picture would be too many of them.
    """
    if image_shape is None:
        return encoded
    height, width, channels = image_shape
    n_pixels = height * width * channels
    cells: NDArray[np.floating] = encoded[:, :n_pixels].reshape(-1, channels, height, width)
    for axis, side in ((2, height), (3, width)):
        bounds = np.unique(np.linspace(0, side, min(side, _POOLED_SIDE) + 1).astype(int))
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        cells = np.add.reduceat(cells, bounds[:-1], axis=axis) / np.diff(bounds).reshape(shape)
    return np.concatenate([cells.reshape(len(encoded), -1), encoded[:, n_pixels:]], axis=1, dtype=np.float32)
