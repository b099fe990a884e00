"""The shape of K Q-networks, and their forward pass in numpy, so that acting and querying need no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from datasets.settings import Settings

Weights = Mapping[str, NDArray[np.float32]]
"""Parameters by name, each with a leading axis of K members."""

_CHUNK_VALUES = 8_000_000
"""Hidden activations of a chunk of rows; bounds the memory of a forward pass."""

CONVOLUTIONS = (16, 32)
"""Channels of the convolutions before an image's features are flattened: 3x3, stride 2, padding 1, ReLU. Two halve
each side twice, which suits the small pictures that stand in decision logs."""


class ImageShape(Settings):
    """The image that the first inputs hold, flattened as (channels, height, width)."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    channels: int = Field(gt=0)

    @property
    def size(self) -> int:
        """Inputs that it takes."""
        return self.channels * self.height * self.width

    @property
    def n_features(self) -> int:
        """What the convolutions leave of it."""
        return CONVOLUTIONS[-1] * _halved(self.height) * _halved(self.width)


class Architecture(Settings):
    """K multilayer perceptrons of one shape, from an encoded observation to the value of each action."""

    n_inputs: int = Field(gt=0)
    """D, encoded columns of an observation."""
    n_actions: int = Field(gt=1)
    """A."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer, ReLU between them."""
    dueling: bool = False
    """Split the head into a state value and centred advantages (Wang et al. 2016, arXiv:1511.06581, eq. 9)."""
    n_members: int = Field(1, gt=0)
    """K, networks side by side."""
    n_quantiles: int = Field(1, gt=0)
    """N, quantiles of the return per action (Dabney et al. 2018, arXiv:1710.10044); 1 is the mean."""
    image: ImageShape | None = None
    """What the first inputs are, where the observation holds a picture."""

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Inputs of the first hidden layer, then units of each."""
        inputs = self.n_inputs if self.image is None else self.n_inputs - self.image.size + self.image.n_features
        return (inputs, *self.hidden)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by name; a layer is (K, inputs, outputs): `x @ weight + bias` applies it."""
        sizes, members = self.layer_sizes, self.n_members
        layers = {f"hidden.{i}": sizes[i : i + 2] for i in range(len(self.hidden))}
        layers["head"] = (sizes[-1], self.n_actions * self.n_quantiles)
        if self.dueling:
            layers["value"] = (sizes[-1], self.n_quantiles)
        shapes: dict[str, tuple[int, ...]] = {}
        if self.image is not None:
            channels = (self.image.channels, *CONVOLUTIONS)
            for i, n_out in enumerate(CONVOLUTIONS):
                shapes |= {
                    f"convolution.{i}.weight": (members, n_out, channels[i], 3, 3),
                    f"convolution.{i}.bias": (members, n_out),
                }
        for name, (n_in, n_out) in layers.items():
            shapes |= {f"{name}.weight": (members, n_in, n_out), f"{name}.bias": (members, 1, n_out)}
        return shapes


def forward(architecture: Architecture, weights: Weights, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values (K, n, A, N) of encoded observations (n, D), in the scaled units the networks were trained in."""
    members, n_rows = architecture.n_members, len(encoded)
    values = np.empty((members, n_rows, architecture.n_actions, architecture.n_quantiles), dtype=np.float32)
    widest = max(architecture.layer_sizes) if architecture.image is None else architecture.image.size * 16
    chunk = max(1, _CHUNK_VALUES // (members * widest))
    for start in range(0, n_rows, chunk):
        rows = slice(start, start + chunk)
        values[:, rows] = _forward(architecture, weights, encoded[rows])
    return values


def _forward(architecture: Architecture, weights: Weights, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
    features: NDArray[np.float32] = encoded[None]  # (1 or K, n, D)
    if architecture.image is not None:
        features = _with_convolved_image(architecture.image, weights, encoded)
    for layer in range(len(architecture.hidden)):
        features = np.maximum(_affine(weights, f"hidden.{layer}", features), 0.0)
    shape = (architecture.n_members, len(encoded), architecture.n_actions, architecture.n_quantiles)
    values = _affine(weights, "head", features).reshape(shape)
    if architecture.dueling:
        values -= values.mean(axis=2, keepdims=True)
        values += _affine(weights, "value", features)[:, :, None, :]
    return values


def _affine(weights: Weights, layer: str, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    outputs: NDArray[np.float32] = inputs @ weights[f"{layer}.weight"] + weights[f"{layer}.bias"]
    return outputs


def _with_convolved_image(image: ImageShape, weights: Weights, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """(K, n, features + other inputs)."""
    n_members, n_rows = len(weights["convolution.0.bias"]), len(encoded)
    picture = encoded[:, : image.size].reshape(1, n_rows, image.channels, image.height, image.width)
    for i in range(len(CONVOLUTIONS)):
        picture = np.maximum(
            _convolve(picture, weights[f"convolution.{i}.weight"], weights[f"convolution.{i}.bias"]), 0
        )
    others = np.broadcast_to(encoded[:, image.size :], (n_members, n_rows, encoded.shape[1] - image.size))
    return np.concatenate([picture.reshape(n_members, n_rows, -1), others], axis=2)


def _convolve(
    pictures: NDArray[np.float32], kernels: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(K, n, C', h', w') of (1 or K, n, C, h, w): 3x3, stride 2, padding 1."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(3, 4))[:, :, :, ::2, ::2]
    patches = np.moveaxis(windows, 2, 4)  # (1 or K, n, h', w', C, 3, 3)
    n_members, n_out = bias.shape
    flat = patches.reshape(*patches.shape[:4], -1).reshape(len(patches), -1, kernels[0, 0].size)
    convolved = flat @ kernels.reshape(n_members, n_out, -1).transpose(0, 2, 1) + bias[:, None, :]
    n_rows, height, width = patches.shape[1:4]
    result: NDArray[np.float32] = convolved.reshape(n_members, n_rows, height, width, n_out).transpose(0, 1, 4, 2, 3)
    return result


def _halved(side: int) -> int:
    """Of a side after the convolutions."""
    for _ in CONVOLUTIONS:
        side = (side + 1) // 2
    return side
