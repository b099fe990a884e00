"""How far an observation lies from those a policy was trained on: cheap for one row, and the same in a graph.

Two measures on coordinates in which every feature of the training data is about standard normal, whatever its tails:
the coordinate farthest out, and the distance that knows how coordinates go together. What is missing, and labels never
seen, have no coordinate; they are counted apart, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets.images import is_missing
from datasets.observations import MISSING_CODE, Observations

FARTHEST = 20.0
"""Standard deviations at which a coordinate is cut: far beyond any threshold, and finite."""

_LARGEST_BLOCK = 4_000_000
"""Numbers of images that are averaged at once."""

Floats = NDArray[np.float64]
ARRAYS = ("center", "low", "high", "mean", "directions", "precision")
"""What a `Familiarity` holds as arrays, in the order of its fields."""


@dataclass(frozen=True)
class FeatureView:
    """What one feature gives.

    Attributes:
        kind: "number" gives coordinates that are stretched; "boolean" and "labels" columns of 0 and 1; "image" the
            means of blocks of it.
        n_components: numbers of a vector; 1 of anything else but an image.
        logged: whether the logarithm is a coordinate, too: numbers that were positive in training.
        floor: smallest number whose logarithm is taken.
        labels: that were seen in training.
        shape: of an image, (height, width, channels); `blocks` (rows, columns) of its means.
        missing_nats, unseen_nats: minus the logarithm of how often it was missing, and of how often a new label came.
    """

    kind: Literal["number", "boolean", "labels", "image"]
    n_components: int = 1
    logged: bool = False
    floor: float = 0.0
    labels: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    missing_nats: float = 0.0
    unseen_nats: float = 0.0

    @property
    def n_stretched(self) -> int:
        """Coordinates that are stretched to standard normal."""
        if self.kind == "image":
            return self.blocks[0] * self.blocks[1] * self.shape[2]
        return self.n_components * (1 + self.logged) if self.kind == "number" else 0

    @property
    def n_flags(self) -> int:
        """Columns of 0 and 1."""
        return len(self.labels) if self.kind == "labels" else int(self.kind == "boolean")


@dataclass(frozen=True)
class Familiarity:
    """What observations of the training data look like.

    Of C stretched coordinates and D - C flags. Distances are in units of what 1 training row in 200 exceeds.

    Attributes:
        features: what each feature gives; stretched coordinates in their order, then flags in their order.
        center: (C,) medians.
        low, high: (2, C) bend a and scale b of each side: a coordinate x beyond its center by t becomes
            log(1 + a t) / b, which is 1.28 and 2.33 where 1 training row in 10 and in 100 lies farther out; a side with
            light tails stays straight.
        mean: (D,) of the coordinates.
        directions: (D, R) orthonormal, the directions of largest variance.
        precision: (R,) one over the variance along each, less `rest`.
        rest: one over the variance along every other direction; 0 where `directions` are all.
        farthest_unit, joint_unit: the two measures that 1 training row in 200 exceeds.
    """

    features: Mapping[str, FeatureView]
    center: Floats
    low: Floats
    high: Floats
    mean: Floats
    directions: Floats
    precision: Floats
    rest: float
    farthest_unit: float
    joint_unit: float
    _slots: dict[str, dict[str, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        slots = {name: {label: i for i, label in enumerate(view.labels)} for name, view in self.features.items()}
        object.__setattr__(self, "_slots", slots)

    def distance(self, observations: Observations) -> Floats:
        """(n,) how far out each row lies, by the larger of the two measures; 1 is as far as 1 training row in 200."""
        farthest, joint = self.measures(self.coordinates(observations))
        return np.maximum(farthest, joint)

    def measures(self, coordinates: Floats) -> tuple[Floats, Floats]:
        """(n,) the coordinate farthest out and (n,) the joint distance, both in their units."""
        n_stretched = len(self.center)
        stretched = np.abs(coordinates[:, :n_stretched])
        farthest = stretched.max(axis=1, initial=0.0) / self.farthest_unit
        centred = coordinates - self.mean
        along = centred @ self.directions
        squared = (along * along) @ self.precision + self.rest * (centred * centred).sum(axis=1)
        return farthest, np.sqrt(np.maximum(squared, 0.0)) / self.joint_unit

    def coordinates(self, observations: Observations) -> Floats:
        """(n, D); what is missing lies at its center, and a label never seen is none of those that were."""
        stretched = self.stretched(self.raw(observations))
        return np.concatenate([stretched, self.flags(observations)], axis=1)

    def raw(self, observations: Observations) -> Floats:
        """(n, C) numbers, logarithms and means of blocks before they are stretched; NaN where missing."""
        blocks = [_raw(view, observations.columns[name]) for name, view in self.features.items() if view.n_stretched]
        return np.concatenate(blocks, axis=1) if blocks else np.zeros((len(observations), 0))

    def stretched(self, raw: Floats) -> Floats:
        """(n, C) of raw coordinates."""
        beyond = raw - self.center
        with np.errstate(over="ignore", invalid="ignore"):  # NaN is missing, and what overflows is cut
            high = np.log1p(self.high[0] * np.maximum(beyond, 0.0)) / self.high[1]
            low = np.log1p(self.low[0] * np.maximum(-beyond, 0.0)) / self.low[1]
        return np.where(np.isnan(beyond), 0.0, np.clip(high - low, -FARTHEST, FARTHEST))

    def flags(self, observations: Observations) -> Floats:
        """(n, D - C) of 0 and 1; of what is missing their mean."""
        n_stretched = len(self.center)
        flags = np.zeros((len(observations), len(self.mean) - n_stretched))
        start = 0
        for name, view in self.features.items():
            block, mean = (a[..., start : start + view.n_flags] for a in (flags, self.mean[n_stretched:]))
            if view.kind == "boolean":
                values = observations.columns[name][:, None]
                block[:] = np.where(np.isnan(values), mean, values)
            elif view.kind == "labels":
                slots = self.slots(name, observations)
                present = np.flatnonzero(slots >= 0)
                block[present, slots[present]] = 1.0
                block[slots == MISSING_CODE] = mean
            start += view.n_flags
        return flags

    def slots(self, name: str, observations: Observations) -> NDArray[np.int64]:
        """(n,) which label of those seen in training a row has; -1 where missing, -2 where it was never seen."""
        known = self._slots[name]
        of_code = np.array([known.get(label, -2) for label in observations.vocabularies[name]] + [-1], dtype=np.int64)
        slots: NDArray[np.int64] = of_code[observations.columns[name]]  # MISSING_CODE picks the last entry
        return slots

    def absent(self, observations: Observations) -> dict[str, Floats]:
        """(n,) by feature: how surprising it is that it is missing or a new label, in nats; 0 where it is neither."""
        found: dict[str, Floats] = {}
        for name, view in self.features.items():
            values = observations.columns[name]
            if view.kind == "labels":
                slots = self.slots(name, observations)
                nats = np.where(slots == -1, view.missing_nats, 0.0) + np.where(slots == -2, view.unseen_nats, 0.0)
            elif view.kind == "image":
                nats = np.where(is_missing(values), view.missing_nats, 0.0)
            else:
                gone = np.isnan(values) if values.ndim == 1 else np.isnan(values).any(axis=1)
                nats = np.where(gone, view.missing_nats, 0.0)
            found[name] = nats
        return found

    def absence(self, observations: Observations) -> Floats:
        """(n,) the sum of `absent` over features."""
        total = np.zeros(len(observations))
        for nats in self.absent(observations).values():
            total += nats
        return total

    def shares_of_distance(self, observations: Observations) -> Floats:
        """(n, F) by feature: its part in how far out each row lies; rows sum to 1.

        Of a joint distance the parts of its square, so that two features that do not go together both have theirs.
        """
        coordinates = self.coordinates(observations)
        farthest, joint = self.measures(coordinates)
        centred = coordinates - self.mean
        pulled = (centred @ self.directions * self.precision) @ self.directions.T + self.rest * centred
        parts = np.maximum(centred * pulled, 0.0)
        alone = np.zeros_like(parts)
        stretched = np.abs(coordinates[:, : len(self.center)])
        if stretched.shape[1]:
            alone[np.arange(len(alone)), stretched.argmax(axis=1)] = 1.0
        parts = np.where((farthest >= joint)[:, None], alone, parts)
        owners = self.feature_of_coordinate()
        by_feature = np.stack([parts[:, owners == i].sum(axis=1) for i in range(len(self.features))], axis=1)
        shares: Floats = by_feature / np.maximum(by_feature.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        return shares

    def feature_of_coordinate(self) -> NDArray[np.int64]:
        """(D,) index of the feature that a coordinate comes from."""
        views = list(self.features.values())
        stretched = np.repeat(np.arange(len(views)), [view.n_stretched for view in views])
        return np.concatenate([stretched, np.repeat(np.arange(len(views)), [view.n_flags for view in views])])

    def middles(self) -> dict[str, Floats]:
        """The ordinary value of each component of the features that are numbers or truth values."""
        found: dict[str, Floats] = {}
        at, flag = 0, len(self.center)
        for name, view in self.features.items():
            if view.kind == "number":
                found[name] = self.center[at : at + view.n_components]
            elif view.kind == "boolean":
                found[name] = np.round(self.mean[flag : flag + 1])
            at, flag = at + view.n_stretched, flag + view.n_flags
        return found

    def arrays(self) -> dict[str, Floats]:
        """Its arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}


def _raw(view: FeatureView, values: NDArray[Any]) -> Floats:
    if view.kind == "image":
        return _block_means(view, values)
    table = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    if not view.logged:
        return table
    return np.concatenate([table, np.log(np.maximum(table, view.floor))], axis=1)


def pooling(side: int, n_blocks: int) -> Floats:
    """(n_blocks, side) that makes means of blocks of an image's side."""
    edges = np.arange(n_blocks + 1) * side // n_blocks
    inside = (np.arange(side) >= edges[:-1, None]) & (np.arange(side) < edges[1:, None])
    means: Floats = inside / inside.sum(axis=1, keepdims=True)
    return means


def _block_means(view: FeatureView, rows: NDArray[np.uint8]) -> Floats:
    """(n, blocks * channels) mean brightness in [0, 1] of each block and channel; NaN where the image is missing."""
    height, width, channels = view.shape
    vertical, horizontal = (pooling(side, n) for side, n in zip((height, width), view.blocks, strict=True))
    means = np.empty((len(rows), view.n_stretched))
    step = max(1, _LARGEST_BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        pictures = rows[start : start + step, :-1].astype(np.float64) / 255.0
        bands = (vertical @ pictures.reshape(-1, height, width * channels)).reshape(-1, len(vertical), width, channels)
        means[start : start + step] = (horizontal @ bands).reshape(len(pictures), -1)
    means[is_missing(rows)] = np.nan
    return means
