"""What follows a step, given its observation and action: models of reward and next observation, and where in them the
truth fell.

Each outcome becomes its place among what the model says could have followed: uniform in [0, 1] if the model is right,
whichever observations and actions a policy visits. So a new policy moves none of it, and a changed world does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.replay import Replay
from drift.numbers import as_numbers, frequent_labels
from drift.windows import DriftColumn, feature_columns, row_norms
from reports.estimators import Floats, Ints

MOST_STEPS = 50_000
"""On which a model is fitted."""

MOST_TARGETS = 40
"""Features whose next value is modelled; those beyond are left out."""

_STEPS_IN_ALL = 400_000  # of all models together: twice as many features take twice as long to predict, not to fit
_FEWEST_STEPS = 200
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_TARGET = 1e30
"""Boosting holds gradients, sums and differences of targets, in float32."""
_MOST_LEAVES, _SMALLEST_LEAF = 32, 100
_NOTHING = 0.05
"""Residuals within this share of the target's spread are one: they are the model's own error, which differs from
observation to observation."""


@dataclass(frozen=True)
class Placed:
    """Where outcomes fell.

    Attributes:
        rows: (n,) step of each.
        values: (n,) in [0, 1], the model's chance of less, ties by chance; NaN where the outcome is missing.
    """

    rows: Ints
    values: Floats


@dataclass(frozen=True)
class _NumberModel:
    """A mean, and the residuals of like steps: those of a leaf of a tree that was fitted on their size."""

    mean: Any
    sizes: Any
    residuals: Mapping[int, Floats]
    nothing: float

    def place(self, inputs: Floats, values: Floats, noise: Floats) -> Floats:
        """(n,) share of like residuals below each one's, those that tie with it in part."""
        residuals = _without_small(_tamed(values) - self.mean.predict(inputs), self.nothing)
        leaves = self.sizes.apply(inputs.astype(np.float32))
        placed = np.empty(len(values))
        for leaf, known in self.residuals.items():
            own = leaves == leaf
            low, high = (np.searchsorted(known, residuals[own], side=side) for side in ("left", "right"))
            # One more than n residuals leave n + 1 places between them; the truth is in one of those, by chance.
            placed[own] = (low + noise[own] * (high - low + 1)) / (len(known) + 1)
        return placed


@dataclass(frozen=True)
class _LabelModel:
    """Chances of the labels, the last one standing for all that have no number of their own."""

    model: Any

    def place(self, inputs: Floats, values: Floats, noise: Floats) -> Floats:
        """(n,) chance of a label before the one that came, and a part of its own; a label never seen comes last."""
        chances = self.model.predict_proba(inputs)
        below = np.concatenate([np.zeros((len(values), 1)), np.cumsum(chances, axis=1)], axis=1)
        slot = np.searchsorted(self.model.classes_, values)
        known = self.model.classes_[slot.clip(max=len(self.model.classes_) - 1)] == values
        rows = np.arange(len(values))
        slot = slot.clip(max=chances.shape[1] - 1)
        return np.where(known, below[rows, slot] + noise * chances[rows, slot], 1.0)


@dataclass(frozen=True)
class DynamicsModels:
    """Of one log.

    Attributes:
        inputs: the features, and the action, in the order in which a model sees them.
        labels: of each categorical feature and of the action, those that a model sees one by one.
        reward: None where the log was too short.
        following: by feature, of its value after the step.
    """

    inputs: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    reward: _NumberModel | None
    following: Mapping[str, _NumberModel | _LabelModel]


def fit_dynamics(train: Replay, *, seed: int) -> DynamicsModels:
    """Gradient boosted trees for the reward and each feature's next value, given observation and action.

    Of an image the next mean brightness is modelled, of a vector the next norm.

    Args:
        train: episodes that are never compared: what a model was fitted on is nearer to it than anything new.
        seed: of the steps that are drawn.

    Source: Friedman 2001, Greedy function approximation, for the trees; Brockwell 2007 for placing discrete outcomes.
    """
    if train.n_steps < _FEWEST_STEPS:
        return DynamicsModels((), {}, None, {})
    n_models = 1 + min(len(train.contract.features), MOST_TARGETS)
    n_steps = min(MOST_STEPS, max(5_000, _STEPS_IN_ALL // n_models))
    drawn = np.sort(np.random.default_rng(seed).permutation(train.n_steps)[:n_steps])
    columns = _inputs_of(train, drawn)
    everything = np.arange(len(drawn))
    labels = {name: frequent_labels(c, everything) for name, c in columns.items() if c.kind == "categorical"}
    inputs = _table(columns, columns, labels)
    reward = _fit_numbers(inputs, train.rewards[drawn])
    known = train.next_row[drawn] >= 0
    models: dict[str, _NumberModel | _LabelModel] = {}
    for name, column in list(_following(train, drawn[known]).items())[:MOST_TARGETS]:
        target, is_label = _target(column, labels.get(name, ()))
        seen = ~np.isnan(target)
        if seen.sum() >= _FEWEST_STEPS:
            models[name] = (_fit_labels if is_label else _fit_numbers)(inputs[known][seen], target[seen])
    return DynamicsModels(tuple(columns), labels, reward, models)


def place_outcomes(models: DynamicsModels, replay: Replay, *, seed: int) -> dict[str, Placed]:
    """Where the rewards (`reward`) and next features (by name) of other episodes fell.

    Args:
        replay: of the same decision problem; its contract may be newer. A feature that it lacks is left out.
        seed: of the draw between what ties.
    """
    if models.reward is None or not replay.n_steps:
        return {}
    rng = np.random.default_rng([seed, 1])
    steps = np.arange(replay.n_steps)
    inputs = _table(_inputs_of(replay, slice(replay.n_steps)), models.inputs, models.labels)
    noise = rng.random(replay.n_steps)
    placed = {"reward": Placed(steps, models.reward.place(inputs, replay.rewards, noise))}
    with_next = np.flatnonzero(replay.next_row >= 0)
    following = _following(replay, with_next)
    for name, model in models.following.items():
        if name not in following or not len(with_next):
            continue
        values, _ = _target(following[name], models.labels.get(name, ()))
        seen = ~np.isnan(values)
        found = np.full(len(values), np.nan)
        if seen.any():
            rows = with_next[seen]
            found[seen] = model.place(inputs[rows], values[seen], noise[rows])
        placed[name] = Placed(with_next, found)
    return placed


_ACTION = "the action"  # no feature's name holds a space


def _inputs_of(replay: Replay, rows: slice | Ints) -> dict[str, DriftColumn]:
    columns = feature_columns(replay.contract, replay.observations, rows)
    return columns | {_ACTION: DriftColumn("categorical", replay.actions[rows], replay.contract.actions.names)}


def _table(columns: Mapping[str, DriftColumn], names: Iterable[str], labels: Mapping[str, tuple[str, ...]]) -> Floats:
    """(rows, P) the numbers that a model sees."""
    everything = np.arange(len(columns[_ACTION].values))
    parts = [as_numbers(columns[name], everything, labels.get(name, ()), 0) for name in names]
    # Trees compare in float32, where a larger number is infinite and refused.
    return np.concatenate(parts, axis=1).clip(-_LARGEST, _LARGEST)


def _following(replay: Replay, steps: Ints) -> dict[str, DriftColumn]:
    """The features after the given steps, all of which something is known to follow."""
    columns = feature_columns(replay.contract, replay.observations, replay.next_row[steps])
    return {
        name: replace(column, kind="numeric", values=row_norms(column.values)) if column.kind == "vector" else column
        for name, column in columns.items()
    }


def _target(column: DriftColumn, labels: tuple[str, ...]) -> tuple[Floats, bool]:
    """(rows,) numbers to predict, NaN where missing, and whether they stand for labels."""
    if column.kind == "categorical":
        slot = {label: i for i, label in enumerate(labels)}
        slots = np.array([*(slot.get(label, len(labels)) for label in column.vocabulary), np.nan], dtype=np.float64)
        return slots[column.values], True
    return np.asarray(column.values, dtype=np.float64), column.kind == "boolean"


def _fit_numbers(inputs: Floats, target: Floats) -> _NumberModel:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.tree import DecisionTreeRegressor
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

    target = _tamed(target)
    mean = HistGradientBoostingRegressor(
        max_iter=60, learning_rate=0.15, max_leaf_nodes=15, min_samples_leaf=20, early_stopping=False, random_state=0
    )
    with threadpool_limits(limits=1):  # the bits must not depend on how many there are
        mean.fit(inputs, target)
        fitted = mean.predict(inputs)
    nothing = _NOTHING * float(target.std())
    residuals = _without_small(target - fitted, nothing)
    smallest = max(1, min(_SMALLEST_LEAF, len(target) // 4))
    sizes = DecisionTreeRegressor(max_leaf_nodes=_MOST_LEAVES, min_samples_leaf=smallest, random_state=0)
    sizes.fit(inputs, np.abs(residuals))
    leaves = sizes.apply(inputs.astype(np.float32))
    return _NumberModel(
        mean, sizes, {int(leaf): np.sort(residuals[leaves == leaf]) for leaf in np.unique(leaves)}, nothing
    )


def _fit_labels(inputs: Floats, target: NDArray[Any]) -> _LabelModel:
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    if len(np.unique(target)) < 2:
        return _LabelModel(DummyClassifier(strategy="prior").fit(inputs, target))
    model = HistGradientBoostingClassifier(
        max_iter=20, learning_rate=0.2, max_leaf_nodes=15, min_samples_leaf=20, early_stopping=False, random_state=0
    )
    with threadpool_limits(limits=1):
        return _LabelModel(model.fit(inputs, target))


def _tamed(targets: Floats) -> Floats:
    return targets.clip(-_LARGEST_TARGET, _LARGEST_TARGET)


def _without_small(residuals: Floats, nothing: float) -> Floats:
    return np.where(np.abs(residuals) <= nothing, 0.0, residuals)
