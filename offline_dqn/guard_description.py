"""A guard as plain JSON values and named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from datasets.contract import CategoricalFeature, Contract, ImageFeature
from datasets.settings import Settings, build_settings
from offline_dqn.familiarity import ARRAYS, Familiarity, FeatureView
from offline_dqn.guard import CAUSES, NEVER, Calibration, Guard

PREFIX = "guard."
"""Before the names of a guard's tensors."""

Nats = Annotated[float, Field(ge=0)]


class _Part(Settings):
    model_config = ConfigDict(extra="ignore")


class _View(_Part):
    kind: Literal["number", "boolean", "labels", "image"]
    n_components: int = Field(gt=0)
    logged: bool
    floor: float = Field(ge=0)
    labels: tuple[str, ...]
    shape: tuple[Annotated[int, Field(gt=0)], ...]
    blocks: tuple[Annotated[int, Field(gt=0)], ...]
    missing_nats: Nats
    unseen_nats: Nats


class _Calibration(_Part):
    false_alarm_share: float = Field(gt=0, lt=1)
    shares: dict[str, float]
    n_rows: int = Field(ge=0)
    n_clusters: int = Field(ge=0)
    held: bool


class _Guard(_Part):
    features: dict[str, _View]
    rest: float = Field(ge=0)
    farthest_unit: float = Field(gt=0)
    joint_unit: float = Field(gt=0)
    thresholds: dict[str, Annotated[float, Field(gt=0)] | None]
    calibration: _Calibration


def describe_guard(guard: Guard) -> dict[str, Any]:
    """Plain JSON values of everything but the tensors; a threshold of null never fires."""
    familiarity, calibration = guard.familiarity, guard.calibration
    return {
        "features": {name: dict(vars(view)) for name, view in familiarity.features.items()},
        "rest": familiarity.rest,
        "farthest_unit": familiarity.farthest_unit,
        "joint_unit": familiarity.joint_unit,
        "thresholds": {cause: None if value == NEVER else value for cause, value in guard.thresholds.items()},
        "calibration": {**vars(calibration), "shares": dict(calibration.shares)},
    }


def guard_tensors(guard: Guard) -> dict[str, NDArray[np.float64]]:
    """Every tensor by name, after "guard."."""
    return {f"{PREFIX}{name}": values for name, values in guard.familiarity.arrays().items()}


def build_guard(
    values: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], contract: Contract, where: str
) -> Guard:
    """The guard that `describe_guard` and `guard_tensors` took apart.

    Raises:
        ValueError, SettingsError: a part is missing, of another type or shape, not finite, or none of the contract's.
    """
    found = build_settings(_Guard, values, where)
    views = {name: FeatureView(**dict(view)) for name, view in found.features.items()}
    for name, view in views.items():
        _check_view(name, view, contract)
    n_stretched = sum(view.n_stretched for view in views.values())
    size = n_stretched + sum(view.n_flags for view in views.values())
    wanted = {"center": (n_stretched,), "low": (2, n_stretched), "high": (2, n_stretched), "mean": (size,)}
    absent = [name for name in ARRAYS if f"{PREFIX}{name}" not in tensors]
    if absent:
        raise ValueError(f"the weights lack the guard's {', '.join(absent)}")
    arrays = {name: tensors[f"{PREFIX}{name}"] for name in ARRAYS}
    wanted["precision"] = (arrays["directions"].shape[-1],) if arrays["directions"].ndim else (0,)
    wanted["directions"] = (size, *wanted["precision"])
    for name, values_of in arrays.items():
        if values_of.shape != wanted[name] or values_of.dtype != np.float64 or not np.isfinite(values_of).all():
            raise ValueError(f"the guard's {name} wants finite float64 numbers of shape {wanted[name]}")
    if (arrays["low"] <= 0).any() or (arrays["high"] <= 0).any():
        raise ValueError("the guard's low and high want numbers above 0")
    familiarity = Familiarity(
        views, **arrays, rest=found.rest, farthest_unit=found.farthest_unit, joint_unit=found.joint_unit
    )
    thresholds = {cause: found.thresholds.get(cause) for cause in CAUSES}
    calibration = Calibration(**{**dict(found.calibration), "shares": dict(found.calibration.shares)})
    return Guard(familiarity, {c: NEVER if value is None else value for c, value in thresholds.items()}, calibration)


def _check_view(name: str, view: FeatureView, contract: Contract) -> None:
    feature = contract.features.get(name)
    if feature is None:
        raise ValueError(f"the guard looks at '{name}', which is none of the contract's features")
    kinds = {"numeric": "number", "vector": "number", "categorical": "labels", "boolean": "boolean", "image": "image"}
    length = getattr(feature, "length", 1)
    if view.kind != kinds[feature.type] or view.n_components != length:
        raise ValueError(f"the guard takes '{name}' for {view.kind} of {view.n_components}; it is {feature.type}")
    if isinstance(feature, ImageFeature) and (view.shape != feature.shape or len(view.blocks) != 2):
        raise ValueError(f"the guard takes '{name}' for an image of {view.shape}; it is {feature.shape}")
    if isinstance(feature, CategoricalFeature) and len(set(view.labels)) < len(view.labels):
        raise ValueError(f"the guard knows a label of '{name}' twice")
