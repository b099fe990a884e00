"""What is ordinary, learned from the observations of the training split, so that a few wild ones change little."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import (
    BooleanFeature,
    CategoricalFeature,
    Contract,
    Feature,
    ImageFeature,
    NumericFeature,
    VectorFeature,
)
from datasets.images import is_missing
from datasets.observations import MISSING_CODE, Observations
from offline_dqn.familiarity import Familiarity, FeatureView, Floats

_AT_90, _AT_99 = 1.2815515655446004, 2.3263478740408408
"""Standard normal quantiles."""

_MOST_BLOCKS, _MOST_LABELS, _MOST_DIRECTIONS = 8, 200, 64
"""Blocks along a side of an image; labels of a feature that have a column; directions with a variance of their own."""

_ORDINARY = 4.0
"""Standard deviations to which coordinates are cut when it is learned how they go together."""

_RIDGE = 0.05
"""Variance that is added along every direction: one that hardly varies in the sample may still vary that much."""

_UNIT_SHARE = 0.005
"""Of the training rows, beyond one unit of distance."""

_TRIMMED = 0.01
"""Of the rows, those that go together worst, which do not say how coordinates go together."""


def fit_familiarity(contract: Contract, observations: Observations) -> Familiarity:
    """Learns what rows of the training split look like.

    Medians and quantiles up to 99 % scale each coordinate, and the covariance is that of cut coordinates without the
    worst 1 % of rows: outliers fewer than that can make the guard less alert, but not blind.

    Raises:
        ValueError: there are no rows.
    """
    if not len(observations):
        raise ValueError("the guard needs at least one observation to learn from")
    views = {name: _view(feature, observations, name) for name, feature in contract.features.items()}
    n_stretched = sum(view.n_stretched for view in views.values())
    size = n_stretched + sum(view.n_flags for view in views.values())
    blank = Familiarity(
        views,
        center=np.zeros(n_stretched),
        low=np.ones((2, n_stretched)),
        high=np.ones((2, n_stretched)),
        mean=np.zeros(size),
        directions=np.zeros((size, 0)),
        precision=np.zeros(0),
        rest=0.0,
        farthest_unit=1.0,
        joint_unit=1.0,
    )
    raw = blank.raw(observations)
    center, low, high = _sides(raw)
    parts: dict[str, Any] = {"center": center, "low": low, "high": high}
    stretched = Familiarity(**{**_fields(blank), **parts}).stretched(raw)
    coordinates = np.concatenate([stretched, _flags_with_means(blank, observations)], axis=1)
    ordinary = np.clip(coordinates, -_ORDINARY, _ORDINARY)
    kept = np.ones(len(ordinary), dtype=bool)
    for _ in range(2):
        parts |= _joint(ordinary[kept])
        fitted = Familiarity(**{**_fields(blank), **parts})
        _, joint = fitted.measures(coordinates)
        kept = joint <= np.quantile(joint, 1.0 - _TRIMMED)
    farthest, joint = fitted.measures(coordinates)
    tiny = 1e-6  # where everything is constant, what is not is far away
    parts["farthest_unit"] = max(float(np.quantile(farthest, 1.0 - _UNIT_SHARE)), tiny)
    parts["joint_unit"] = max(float(np.quantile(joint, 1.0 - _UNIT_SHARE)), tiny)
    return Familiarity(**{**_fields(blank), **parts})


def _fields(familiarity: Familiarity) -> dict[str, Any]:
    return {name: value for name, value in vars(familiarity).items() if not name.startswith("_")}


def _flags_with_means(blank: Familiarity, observations: Observations) -> Floats:
    """Flags whose missing ones have the mean of the others."""
    flags = blank.flags(observations)
    start = 0
    for name, view in blank.features.items():
        block = flags[:, start : start + view.n_flags]
        if view.kind == "labels":
            missing = observations.columns[name] == MISSING_CODE
        elif view.kind == "boolean":
            missing = np.isnan(observations.columns[name])
        else:
            continue
        if missing.any() and not missing.all():
            block[missing] = block[~missing].mean(axis=0)
        start += view.n_flags
    return flags


def _view(feature: Feature, observations: Observations, name: str) -> FeatureView:
    values = observations.columns[name]
    if isinstance(feature, CategoricalFeature):
        return _labels(values, observations.vocabularies[name])
    if isinstance(feature, ImageFeature):
        blocks = tuple(min(_MOST_BLOCKS, side) for side in feature.shape[:2])
        return FeatureView("image", shape=feature.shape, blocks=blocks, missing_nats=_nats(is_missing(values)))
    gone = np.isnan(values) if values.ndim == 1 else np.isnan(values).any(axis=1)
    if isinstance(feature, BooleanFeature):
        return FeatureView("boolean", missing_nats=_nats(gone))
    n_components = feature.length if isinstance(feature, VectorFeature) else 1
    floor = _floor_of_logarithm(values[~gone]) if isinstance(feature, NumericFeature) else None
    return FeatureView(
        "number",
        n_components=n_components,
        logged=floor is not None,
        floor=floor or 0.0,
        missing_nats=_nats(gone),
    )


def _floor_of_logarithm(values: Floats) -> float | None:
    """Numbers that were positive but for 1 in 1,000 have a logarithm, which shows a unit that was mistaken."""
    positive = values[values > 0]
    if len(positive) < 2 or len(positive) < 0.999 * len(values) or positive.min() == positive.max():
        return None
    floor = float(positive.min()) * 1e-9
    return floor if floor > 0 else None


def _labels(codes: NDArray[np.int32], vocabulary: tuple[str, ...]) -> FeatureView:
    counts = np.bincount(codes[codes != MISSING_CODE], minlength=len(vocabulary))
    seen = np.flatnonzero(counts)
    kept = np.sort(seen[np.argsort(-counts[seen], kind="stable")][:_MOST_LABELS])
    # Good and Turing: how often a label comes that never came before is what came once (and what has no column).
    new = int((counts == 1).sum()) + int(counts[np.setdiff1d(seen, kept)].sum())
    return FeatureView(
        "labels",
        labels=tuple(vocabulary[code] for code in kept),
        missing_nats=_nats(codes == MISSING_CODE),
        unseen_nats=-math.log((new + 0.5) / (len(codes) + 1.0)),
    )


def _nats(happened: NDArray[np.bool_]) -> float:
    """Minus the logarithm of how often it happens, never 0: what always happens still counts a little."""
    return max(-math.log((int(happened.sum()) + 0.5) / (len(happened) + 1.0)), 1e-3)


def _sides(raw: Floats) -> tuple[Floats, Floats, Floats]:
    """Median, and bend and scale of the sides below and above it, of each column."""
    n_columns = raw.shape[1]
    center, low, high = np.zeros(n_columns), np.ones((2, n_columns)), np.ones((2, n_columns))
    for column in range(n_columns):
        values = raw[:, column]
        values = values[~np.isnan(values)]
        if not len(values):
            continue
        center[column] = np.median(values)
        below, above = (_quantiles_beyond(sign * (values - center[column])) for sign in (-1.0, 1.0))
        # A constant gives no scale: a thousandth of it is another value.
        spare = max(below[1], above[1]) or _AT_99 * 1e-3 * max(abs(center[column]), 1e-3)
        for side, (at_90, at_99) in ((low, below), (high, above)):
            side[:, column] = _bend(at_90, at_99 or spare)
    return center, low, high


def _quantiles_beyond(beyond: Floats) -> tuple[float, float]:
    """What 1 row in 10, and in 100, lies beyond the center on one side; of what is rarer, its mean counts as both."""
    at_90, at_99 = np.quantile(beyond, [0.9, 0.99])
    if at_99 > 0:
        return max(float(at_90), 0.0), float(at_99)
    rare = beyond[beyond > 0]
    return 0.0, float(rare.mean()) if len(rare) else 0.0


def _bend(at_90: float, at_99: float) -> tuple[float, float]:
    """a and b of log(1 + a t) / b that puts both quantiles where a standard normal has them, or nearly straight."""
    if at_90 <= 0 or at_99 / at_90 <= _AT_99 / _AT_90:
        bend = 1e-4 / at_99
    else:
        at_90 = max(at_90, at_99 / 50.0)
        lowest, highest = math.log(1e-6 / at_99), math.log(1e9 / at_99)
        for _ in range(80):
            middle = (lowest + highest) / 2.0
            a = math.exp(middle)
            too_straight = math.log1p(a * at_99) / math.log1p(a * at_90) > _AT_99 / _AT_90
            lowest, highest = (middle, highest) if too_straight else (lowest, middle)
        bend = math.exp((lowest + highest) / 2.0)
    return bend, math.log1p(bend * at_99) / _AT_99


def _joint(ordinary: Floats) -> dict[str, Any]:
    """How coordinates go together."""
    mean = ordinary.mean(axis=0)
    size = ordinary.shape[1]
    covariance = np.atleast_2d(np.cov(ordinary, rowvar=False, bias=True)) if size else np.zeros((0, 0))
    variances, directions = np.linalg.eigh(covariance + _RIDGE * np.eye(size))
    n_kept = min(size, _MOST_DIRECTIONS)
    kept = slice(size - n_kept, size)
    others = variances[: size - n_kept]
    rest = 1.0 / float(others.mean()) if len(others) else 0.0
    return {
        "mean": mean,
        "directions": np.ascontiguousarray(directions[:, kept]),
        "precision": 1.0 / variances[kept] - rest,
        "rest": rest,
    }
