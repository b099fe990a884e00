"""From raw observations to the network's input, with statistics fitted on the training split alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, Contract, Feature, ImageFeature
from datasets.images import channels_first, is_missing
from datasets.moments import Moments
from datasets.observations import MISSING_CODE, Observations

CLIP = 10.0
"""Standard deviations beyond which an encoded number is cut, so that one wild value cannot saturate the network."""


@dataclass(frozen=True)
class FeatureEncoding:
    """How one feature becomes columns.

    Attributes:
        kind: "number" (numeric, boolean and vector components are standardised), "labels" (one-hot) or "image" (each
            number / 255, a missing image is black).
        mean, scale: one per component; (x - mean) / scale, and a missing component becomes 0, the mean.
        missing: whether a 0/1 column says that the value was missing. Only where the training split had missing
            values: a column that was constant there has weights that nothing has fitted.
        labels: known labels of a one-hot; one more slot takes those never seen, which nothing has fitted either,
            so that it is the only slot that is 1 for all of them.
        shape: of an image, (height, width, channels); its columns are (channels, height, width) flattened.
    """

    kind: str
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    missing: bool = False
    labels: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of encoded columns."""
        if self.kind == "image":
            return math.prod(self.shape) + int(self.missing)
        return (len(self.labels) + 1 if self.kind == "labels" else len(self.mean)) + int(self.missing)


@dataclass(frozen=True)
class Encoder:
    """Encodes observations as float32 (M, D), an image before all else. Lives in the policy's artefact."""

    features: Mapping[str, FeatureEncoding]

    @property
    def size(self) -> int:
        """D, the number of encoded columns."""
        return sum(encoding.size for encoding in self.features.values())

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(height, width, channels) of the image that the first columns hold; None where there is none."""
        return next((encoding.shape for encoding in self.features.values() if encoding.kind == "image"), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the D encoded columns."""
        names: list[str] = []
        for name, encoding in self.features.items():
            if encoding.kind == "labels":
                names += [f"{name}={label}" for label in encoding.labels] + [f"{name}=(unseen)"]
            elif encoding.kind == "image":
                height, width, channels = map(range, encoding.shape)
                names += [f"{name}[{row},{column},{c}]" for c in channels for row in height for column in width]
            elif len(encoding.mean) == 1:
                names.append(name)
            else:
                names += [f"{name}[{i}]" for i in range(len(encoding.mean))]
            names += [f"{name} is missing"] if encoding.missing else []
        return tuple(names)

    def encode(self, observations: Observations) -> NDArray[np.float32]:
        """Observations of M rows as float32 (M, D), always finite for finite input.

        Raises:
            ValueError: a feature of this encoder is not among the observations.
        """
        absent = [name for name in self.features if name not in observations.columns]
        if absent:
            raise ValueError(f"observations lack the features {', '.join(absent)}")
        encoded = np.zeros((len(observations), self.size), dtype=np.float32)
        start = 0
        for name, encoding in self.features.items():
            block = encoded[:, start : start + encoding.size]
            if encoding.kind == "labels":
                _encode_labels(block, observations.columns[name], observations.vocabularies[name], encoding)
            elif encoding.kind == "image":
                _encode_images(block, observations.columns[name], encoding)
            else:
                _encode_numbers(block, observations.columns[name], encoding)
            start += encoding.size
        return encoded

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: asdict(encoding) for name, encoding in self.features.items()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Encoder:
        """The encoder that `to_json` wrote."""
        return Encoder(
            {
                name: FeatureEncoding(
                    kind=v["kind"],
                    mean=tuple(v["mean"]),
                    scale=tuple(v["scale"]),
                    missing=v["missing"],
                    labels=tuple(v["labels"]),
                    shape=tuple(v["shape"]),
                )
                for name, v in values.items()
            }
        )


def fit_encoder(contract: Contract, observations: Observations) -> Encoder:
    """Statistics of the given rows, which should be those of the training split only.

    Raises:
        ValueError: there are no rows.
    """
    return fit_encoder_to_blocks(contract, [observations])


def fit_encoder_to_blocks(contract: Contract, blocks: Iterable[Observations]) -> Encoder:
    """The same of rows that come block by block, equal to rounding; the blocks share their vocabularies.

    Raises:
        ValueError: there are no rows.
    """
    images = [name for name, feature in contract.features.items() if isinstance(feature, ImageFeature)]
    seen = {name: _seen(contract.features[name]) for name in dict.fromkeys([*images, *contract.features])}
    n_rows = 0
    for block in blocks:
        n_rows += len(block)
        if len(block):
            for name, feature in seen.items():
                feature.see(block.columns[name], block.vocabularies.get(name, ()))
    if not n_rows:
        raise ValueError("an encoder needs at least one observation")
    return Encoder({name: feature.encoding() for name, feature in seen.items()})


def _seen(feature: Feature) -> _SeenLabels | _SeenImages | _SeenNumbers:
    if isinstance(feature, CategoricalFeature):
        return _SeenLabels(feature)
    return _SeenImages(feature) if isinstance(feature, ImageFeature) else _SeenNumbers()


class _SeenLabels:
    def __init__(self, feature: CategoricalFeature) -> None:
        self._declared = feature.values
        self._codes: set[int] = set()
        self._vocabulary: tuple[str, ...] = ()

    def see(self, codes: NDArray[np.int32], vocabulary: tuple[str, ...]) -> None:
        self._codes.update(np.unique(codes).tolist())
        self._vocabulary = vocabulary

    def encoding(self) -> FeatureEncoding:
        present = tuple(self._vocabulary[code] for code in sorted(self._codes - {MISSING_CODE}))
        return FeatureEncoding("labels", missing=MISSING_CODE in self._codes, labels=self._declared or present)


class _SeenImages:
    def __init__(self, feature: ImageFeature) -> None:
        self._shape = feature.shape
        self._any_missing = False

    def see(self, rows: NDArray[np.uint8], _: tuple[str, ...]) -> None:
        self._any_missing |= bool(is_missing(rows).any())

    def encoding(self) -> FeatureEncoding:
        return FeatureEncoding("image", missing=self._any_missing, shape=self._shape)


class _SeenNumbers:
    def __init__(self) -> None:
        self._moments: Moments | None = None

    def see(self, values: NDArray[np.float64], _: tuple[str, ...]) -> None:
        found = Moments.of(values.reshape(len(values), -1))
        self._moments = found if self._moments is None else self._moments.merged(found)

    def encoding(self) -> FeatureEncoding:
        assert self._moments is not None  # no encoder without rows
        mean, deviation = self._moments.mean, self._moments.deviation
        # A constant feature carries nothing; scale 1 keeps a later, different value finite and clipped.
        scale = np.where(deviation > 1e-12 * np.maximum(1.0, np.abs(mean)), deviation, 1.0)
        return FeatureEncoding(
            "number", mean=tuple(mean.tolist()), scale=tuple(scale.tolist()), missing=self._moments.any_missing
        )


def _encode_labels(
    block: NDArray[np.float32], codes: NDArray[np.int32], vocabulary: tuple[str, ...], encoding: FeatureEncoding
) -> None:
    slots = {label: slot for slot, label in enumerate(encoding.labels)}
    unseen = len(encoding.labels)
    slot_of_code = np.array([slots.get(label, unseen) for label in vocabulary] + [-1], dtype=np.int64)
    row_slots = slot_of_code[codes]  # MISSING_CODE = -1 picks the last entry
    present = np.flatnonzero(row_slots >= 0)
    block[present, row_slots[present]] = 1.0
    if encoding.missing:
        block[:, -1] = row_slots < 0


def _encode_images(block: NDArray[np.float32], rows: NDArray[np.uint8], encoding: FeatureEncoding) -> None:
    pictures = channels_first(rows, encoding.shape)
    written = block[:, : math.prod(encoding.shape)].reshape(pictures.shape)
    assert np.may_share_memory(written, block)  # a view: to cut the last axis moves nothing
    np.divide(pictures, np.float32(255), out=written)
    if encoding.missing:
        block[:, -1] = is_missing(rows)


def _encode_numbers(block: NDArray[np.float32], values: NDArray[np.float64], encoding: FeatureEncoding) -> None:
    table = values if values.ndim == 2 else values[:, None]
    missing = np.isnan(table)
    with np.errstate(over="ignore"):  # what overflows is cut like anything else that is far out
        standardised = np.clip((table - np.array(encoding.mean)) / np.array(encoding.scale), -CLIP, CLIP)
    block[:, : table.shape[1]] = np.where(missing, 0.0, standardised)
    if encoding.missing:
        block[:, -1] = missing.any(axis=1)
