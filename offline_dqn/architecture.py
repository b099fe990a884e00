"""The shape of a Q-network, and its forward pass in numpy, so that acting and querying need no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from datasets.settings import Settings

Weights = Mapping[str, NDArray[np.float32]]
"""Parameters by name, as `QNetwork.state_dict` names them."""

_CHUNK_ROWS = 65_536
"""Rows per forward pass; bounds the memory of the hidden activations."""


class Architecture(Settings):
    """A multilayer perceptron from an encoded observation to the value of each action."""

    n_inputs: int = Field(gt=0)
    """D, encoded columns of an observation."""
    n_actions: int = Field(gt=1)
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer, ReLU between them."""
    dueling: bool = False
    """Split the head into a state value and centred advantages (Wang et al. 2016, arXiv:1511.06581, eq. 9)."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by name."""
        sizes = (self.n_inputs, *self.hidden)
        layers = {f"hidden.{i}": (n_out, n_in) for i, (n_in, n_out) in enumerate(zip(sizes, self.hidden, strict=False))}
        layers["head"] = (self.n_actions, sizes[-1])
        if self.dueling:
            layers["value"] = (1, sizes[-1])
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (n_out, n_in) in layers.items():
            shapes |= {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}
        return shapes


def forward(architecture: Architecture, weights: Weights, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Q-values (n, A) of encoded observations (n, D), in the scaled units the network was trained in."""
    q_values = np.empty((len(encoded), architecture.n_actions), dtype=np.float32)
    for start in range(0, len(encoded), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        features = encoded[rows]
        for layer in range(len(architecture.hidden)):
            features = np.maximum(_affine(weights, f"hidden.{layer}", features), 0.0)
        q_values[rows] = _affine(weights, "head", features)
        if architecture.dueling:
            q_values[rows] -= q_values[rows].mean(axis=1, keepdims=True)
            q_values[rows] += _affine(weights, "value", features)
    return q_values


def _affine(weights: Weights, layer: str, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    outputs: NDArray[np.float32] = inputs @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
    return outputs
