"""Weights stored in a byte each: a quarter of the size, and the very numbers that act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from offline_dqn.architecture import Weights

_LARGEST = 127


class Int8Weights(Mapping[str, NDArray[np.float32]]):
    """Parameters whose weights are int8 codes times a float32 scale per member and output; biases stay float32.

    As a mapping it gives the float32 numbers that the codes stand for, so that acting, evaluating and exporting all
    use the same ones.

    Source: symmetric per-channel weight quantization (Krishnamoorthi 2018, arXiv:1806.08342, sections 2.1 and 3.1).
    Differs from it: activations stay float32.

    Args:
        codes, scales: by the name of the parameter; a scale has 1 for every axis that it is shared along.
        plain: parameters that are not quantized.
    """

    def __init__(
        self,
        codes: Mapping[str, NDArray[np.int8]],
        scales: Mapping[str, NDArray[np.float32]],
        plain: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.codes, self.scales, self._plain = dict(codes), dict(scales), dict(plain)
        widened = {name: code.astype(np.float32) * self.scales[name] for name, code in self.codes.items()}
        self._values: dict[str, NDArray[np.float32]] = widened | self._plain

    @classmethod
    def of(cls, weights: Weights) -> Int8Weights:
        """The nearest codes to float32 weights: largest error half a scale, the largest weight of an output / 127."""
        codes: dict[str, NDArray[np.int8]] = {}
        scales: dict[str, NDArray[np.float32]] = {}
        for name, values in weights.items():
            if name.endswith(".bias"):
                continue
            # Layers are (K, inputs, outputs), convolutions (K, outputs, inputs, 3, 3).
            shared = (1,) if values.ndim == 3 else (2, 3, 4)
            largest = np.abs(values).max(axis=shared, keepdims=True)
            scales[name] = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
            codes[name] = np.rint(values / scales[name]).clip(-_LARGEST, _LARGEST).astype(np.int8)
        return cls(codes, scales, {name: values for name, values in weights.items() if name not in codes})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.float32]]) -> Int8Weights:
        """What `tensors` gave."""
        codes = {n.removesuffix(".codes"): t.astype(np.int8) for n, t in tensors.items() if n.endswith(".codes")}
        scales = {name: tensors[f"{name}.scales"] for name in codes}
        return cls(codes, scales, {name: tensor for name, tensor in tensors.items() if name.endswith(".bias")})

    def tensors(self) -> dict[str, NDArray[np.int8] | NDArray[np.float32]]:
        """What is stored: codes and scales of each weight, and the biases."""
        tensors: dict[str, NDArray[np.int8] | NDArray[np.float32]] = dict(self._plain)
        for name in self.codes:
            tensors |= {f"{name}.codes": self.codes[name], f"{name}.scales": self.scales[name]}
        return tensors

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def int8_names(name: str, precision: str) -> tuple[str, ...]:
    """Under which names a parameter is stored."""
    if precision == "float32" or name.endswith(".bias"):
        return (name,)
    return (f"{name}.codes", f"{name}.scales")
