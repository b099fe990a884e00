"""From raw observations to the network's input, with statistics fitted on the training split alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, Contract, VectorFeature
from datasets.observations import MISSING_CODE, Observations

_CLIP = 10.0
"""Standard deviations beyond which an encoded number is cut, so that one wild value cannot saturate the network."""


@dataclass(frozen=True)
class FeatureEncoding:
    """How one feature becomes columns.

    Attributes:
        kind: "number" (numeric, boolean and vector components are standardised) or "labels" (one-hot).
        mean, scale: one per component; (x - mean) / scale, and a missing component becomes 0, the mean.
        missing: whether a 0/1 column says that the value was missing. Only where the training split had missing
            values: a column that was constant there has weights that nothing has fitted.
        labels: known labels of a one-hot; one more slot takes those never seen, which nothing has fitted either,
            so that it is the only slot that is 1 for all of them.
    """

    kind: str
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    missing: bool = False
    labels: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of encoded columns."""
        return (len(self.labels) + 1 if self.kind == "labels" else len(self.mean)) + int(self.missing)


@dataclass(frozen=True)
class Encoder:
    """Encodes observations as float32 (M, D). Lives in the policy's artefact."""

    features: Mapping[str, FeatureEncoding]

    @property
    def size(self) -> int:
        """D, the number of encoded columns."""
        return sum(encoding.size for encoding in self.features.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the D encoded columns."""
        names: list[str] = []
        for name, encoding in self.features.items():
            if encoding.kind == "labels":
                names += [f"{name}={label}" for label in encoding.labels] + [f"{name}=(unseen)"]
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
                )
                for name, v in values.items()
            }
        )


def fit_encoder(contract: Contract, observations: Observations) -> Encoder:
    """Statistics of the given rows, which should be those of the training split only.

    Raises:
        ValueError: there are no rows.
    """
    if len(observations) == 0:
        raise ValueError("an encoder needs at least one observation")
    encodings: dict[str, FeatureEncoding] = {}
    for name, feature in contract.features.items():
        values = observations.columns[name]
        if isinstance(feature, CategoricalFeature):
            present = np.unique(values[values != MISSING_CODE])
            labels = feature.values or tuple(observations.vocabularies[name][code] for code in present)
            encodings[name] = FeatureEncoding("labels", missing=bool((values == MISSING_CODE).any()), labels=labels)
            continue
        table = values if isinstance(feature, VectorFeature) else values[:, None]
        missing = np.isnan(table)
        n_present = np.maximum((~missing).sum(axis=0), 1)
        # Squares of huge values would overflow; a power of two loses no bit.
        shrink = np.where(np.where(missing, 0.0, np.abs(table)).max(axis=0) > 1e150, 2.0**-600, 1.0)
        small = np.where(missing, 0.0, table * shrink)
        mean = small.sum(axis=0) / n_present
        deviation = np.sqrt(np.where(missing, 0.0, (small - mean) ** 2).sum(axis=0) / n_present) / shrink
        mean = mean / shrink
        # A constant feature carries nothing; scale 1 keeps a later, different value finite and clipped.
        scale = np.where(deviation > 1e-12 * np.maximum(1.0, np.abs(mean)), deviation, 1.0)
        encodings[name] = FeatureEncoding(
            "number", mean=tuple(mean.tolist()), scale=tuple(scale.tolist()), missing=bool(missing.any())
        )
    return Encoder(encodings)


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


def _encode_numbers(block: NDArray[np.float32], values: NDArray[np.float64], encoding: FeatureEncoding) -> None:
    table = values if values.ndim == 2 else values[:, None]
    missing = np.isnan(table)
    with np.errstate(over="ignore"):  # what overflows is cut like anything else that is far out
        standardised = np.clip((table - np.array(encoding.mean)) / np.array(encoding.scale), -_CLIP, _CLIP)
    block[:, : table.shape[1]] = np.where(missing, 0.0, standardised)
    if encoding.missing:
        block[:, -1] = missing.any(axis=1)
