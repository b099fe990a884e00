"""The two windows that a drift check compares, as columns over rows, episodes, clusters and nights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, Contract, ImageFeature
from datasets.errors import OfflineDqnError
from datasets.images import mean_brightness
from datasets.observations import Observations
from datasets.replay import Replay
from drift.seasons import hours_of

ColumnKind = Literal["numeric", "boolean", "categorical", "vector"]

ColumnRole = Literal["feature", "action", "reward", "episode", "policy", "dynamics"]
"""What a column is of: a feature of the observation; the action; the reward; a whole episode (return, length); what a
policy says of the step (propensity, Q-value); or what follows from a step beside what was predicted (TD-error,
residuals)."""


class DriftDataError(OfflineDqnError):
    """A window whose values cannot be compared; names every column at fault."""


@dataclass(frozen=True)
class DriftColumn:
    """One column of a window.

    Attributes:
        kind: how `values` are to be read.
        values: numeric, boolean: (entries,) float64, NaN where missing. Vector: (entries, L) float64, NaN all along
            where missing. Categorical: (entries,) integer codes into `vocabulary`, -1 where missing.
        vocabulary: labels of a categorical column. Windows are matched by label, so theirs may differ.
        exogenous: not moved by our own actions, so a window's weights do not apply to it.
        role: what the column is of.
        rows: (entries,) the window's row that each entry of `values` is of; None: they hold one for every row. A return
            is of its episode's last row, so each episode counts once; what followed a step is of steps that something
            followed.
    """

    kind: ColumnKind
    values: NDArray[Any]
    vocabulary: tuple[str, ...] = ()
    exogenous: bool = False
    role: ColumnRole = "feature"
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class DriftWindow:
    """Rows of some nights, their columns, and what makes them dependent.

    Attributes:
        columns: by name, over the rows or some of them.
        episode_of_row: (rows,) index of the row's episode.
        clusters: (episodes,) code of what makes episodes dependent; the episode's own number where nothing does.
        nights: (episodes,) datetime64[D], the day on which the episode started.
        weights: (rows,) not negative, or None for all alike: a reference as the acting policy would have seen it.
        hours: (episodes,) hour of the day, 0 to 23, in which each episode started, -1 where that is not known; None
            where it is of none.

    Raises:
        ValueError: shapes or indices do not fit together.
        DriftDataError: a column holds infinite values, or a boolean one something else than 0, 1 and NaN.
    """

    columns: Mapping[str, DriftColumn]
    episode_of_row: NDArray[np.int64]
    clusters: NDArray[np.int64]
    nights: NDArray[np.datetime64]
    weights: NDArray[np.float64] | None = None
    hours: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        problems = [text for name, column in self.columns.items() for text in _value_problems(name, column)]
        if self.weights is not None and not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            problems.append("weights: some are negative or not finite; a row's weight is a number of at least 0")
        if problems:
            lines = "\n".join(f"  {text}" for text in problems)
            raise DriftDataError(f"{len(problems)} columns of the window cannot be compared:\n{lines}")

    @property
    def n_rows(self) -> int:
        """Steps."""
        return len(self.episode_of_row)

    @property
    def n_episodes(self) -> int:
        """Episodes."""
        return len(self.clusters)

    @property
    def day_numbers(self) -> NDArray[np.int64]:
        """(episodes,) `nights` as days since 1970."""
        return self.nights.astype("datetime64[D]").astype(np.int64)

    @property
    def n_clusters(self) -> int:
        """Distinct clusters."""
        return len(np.unique(self.clusters))

    @property
    def n_nights(self) -> int:
        """Distinct days on which episodes started."""
        return len(np.unique(self.nights))

    def episodes_of(self, column: DriftColumn) -> NDArray[np.int64]:
        """(entries,) index of the episode that each entry of a column is of."""
        return self.episode_of_row if column.rows is None else np.asarray(self.episode_of_row[column.rows])

    def weights_of(self, column: DriftColumn) -> NDArray[np.float64] | None:
        """(entries,) weight of each entry of a column; None where all count alike, as in an exogenous one.

        A return weighs what its episode's last row does: there the product of ratios is complete, and what the episode
        came to depends on every action in it.
        """
        if self.weights is None or column.exogenous:
            return None
        return self.weights if column.rows is None else np.asarray(self.weights[column.rows])

    def subset(self, episodes: NDArray[np.bool_]) -> DriftWindow:
        """The chosen episodes ((episodes,) bool), re-indexed."""
        kept = episodes[self.episode_of_row]
        place = np.cumsum(kept) - 1
        columns = {}
        for name, column in self.columns.items():
            if column.rows is None:
                columns[name] = replace(column, values=column.values[kept])
                continue
            entries = kept[column.rows]
            columns[name] = replace(column, values=column.values[entries], rows=place[column.rows[entries]])
        return DriftWindow(
            columns,
            (np.cumsum(episodes) - 1)[self.episode_of_row[kept]],
            self.clusters[episodes],
            self.nights[episodes],
            None if self.weights is None else self.weights[kept],
            None if self.hours is None else self.hours[episodes],
        )

    @property
    def effective_episodes(self) -> float:
        """Kish's effective number of episodes under the weights: (sum w)^2 / sum w^2 of the episodes' mean weights."""
        if self.weights is None or not self.weights.any():
            return float(self.n_episodes) if self.weights is None else 0.0
        rows = np.bincount(self.episode_of_row, minlength=self.n_episodes)
        mean = np.bincount(self.episode_of_row, self.weights, minlength=self.n_episodes) / np.maximum(rows, 1)
        return float(mean.sum() ** 2 / (mean**2).sum())

    def _check_shapes(self) -> None:
        wrong = []
        for name, column in self.columns.items():
            wanted = self.n_rows if column.rows is None else len(column.rows)
            if len(column.values) != wanted:
                wrong.append(f"column '{name}' has {len(column.values)} entries of {wanted} rows")
            elif column.rows is not None and wanted and not 0 <= column.rows.min() <= column.rows.max() < self.n_rows:
                wrong.append(f"column '{name}' has entries of rows outside the window")
        if self.weights is not None and self.weights.shape != (self.n_rows,):
            wrong.append(f"weights have shape {self.weights.shape}")
        if wrong:
            raise ValueError(f"the window has {self.n_rows} rows of {self.n_episodes} episodes, but {'; '.join(wrong)}")
        if self.hours is not None and self.hours.shape != self.nights.shape:
            raise ValueError(f"{self.hours.shape} hours and {self.nights.shape} nights: wants one per episode")
        if self.nights.shape != self.clusters.shape:
            raise ValueError(f"{self.clusters.shape} clusters and {self.nights.shape} nights: wants one per episode")
        if self.n_rows and not 0 <= self.episode_of_row.min() <= self.episode_of_row.max() < self.n_episodes:
            raise ValueError(f"episode_of_row points outside the {self.n_episodes} episodes")


def window_from_replay(replay: Replay, weights: NDArray[np.float64] | None = None) -> DriftWindow:
    """The steps of a replay dataset as a window: `observation.<feature>`, `action` and `reward`.

    Hours are those of the contract's `[time] zone`, UTC without one.

    Args:
        replay: T steps of N episodes.
        weights: (T,) not negative, what each step counts under the acting policy; None counts all alike.
    """
    features = feature_columns(replay.contract, replay.observations, slice(replay.n_steps))
    columns = {f"observation.{name}": column for name, column in features.items()}
    columns["action"] = DriftColumn("categorical", replay.actions, replay.contract.actions.names, role="action")
    columns["reward"] = DriftColumn("numeric", replay.rewards, role="reward")
    hours = None if replay.starts is None else hours_of(replay.starts, replay.contract.time.zone)
    return DriftWindow(columns, replay.episode_of_step, replay.clusters, replay.nights, weights, hours)


def feature_columns(
    contract: Contract, observations: Observations, rows: slice | NDArray[np.int64]
) -> dict[str, DriftColumn]:
    """The features of some rows of observations, by name; of an image its mean brightness, `<feature>.brightness`."""
    columns: dict[str, DriftColumn] = {}
    for name, feature in contract.features.items():
        values = observations.columns[name][rows]
        if isinstance(feature, ImageFeature):
            brightness = mean_brightness(values)
            columns[f"{name}.brightness"] = DriftColumn("numeric", brightness, exogenous=feature.exogenous)
            continue
        vocabulary = observations.vocabularies[name] if isinstance(feature, CategoricalFeature) else ()
        columns[name] = DriftColumn(feature.type, values, vocabulary, feature.exogenous)
    return columns


def scalar_columns(name: str, column: DriftColumn) -> dict[str, DriftColumn]:
    """The columns that are compared: a vector as its Euclidean norm and its components, others as they are.

    The norm sees a change of scale that is spread thinly over many components; the components see the rest. The cost
    grows with the vector's length, and so does the price of looking at many columns at once.
    """
    if column.kind != "vector":
        return {name: column}
    parts = {f"{name}.norm": row_norms(column.values)}
    parts |= {f"{name}[{i}]": column.values[:, i] for i in range(column.values.shape[1])}
    return {part: replace(column, kind="numeric", values=values) for part, values in parts.items()}


def row_norms(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(entries,) Euclidean norm of each row, largest float at most: the plain square of a wild value would be infinite.

    Scaled by a power of two, which leaves every bit of an ordinary norm as it is.
    """
    largest = np.abs(values).max(axis=1, initial=0.0)
    exponents = np.where(np.isfinite(largest), np.frexp(largest)[1] - 1, 0)
    scaled = np.linalg.norm(np.ldexp(values, -exponents[:, None]), axis=1)
    with np.errstate(over="ignore"):
        norms: NDArray[np.float64] = np.minimum(np.ldexp(scaled, exponents), np.finfo(np.float64).max)
    return norms


def _value_problems(name: str, column: DriftColumn) -> list[str]:
    """What is wrong with a column's values; empty if nothing."""
    values = column.values
    if (values.ndim == 2) != (column.kind == "vector"):
        raise ValueError(f"column '{name}' is {column.kind} but has {values.ndim} dimensions")
    if column.kind == "categorical":
        if len(values) and not -1 <= values.min() <= values.max() < len(column.vocabulary):
            raise ValueError(f"column '{name}' has codes outside its vocabulary of {len(column.vocabulary)} labels")
        return []
    infinite = np.isinf(values)
    if infinite.any():
        rows = np.flatnonzero(infinite if values.ndim == 1 else infinite.any(axis=1))
        return [
            f"{name}: {len(rows)} of {len(values)} rows are infinite, first row {rows[0] + 1}. Log them as null, or "
            "give the feature a range in the contract so that such rows go to quarantine."
        ]
    if column.kind == "boolean" and not (np.isnan(values) | (values == 0) | (values == 1)).all():
        return [f"{name}: a boolean column holds other numbers than 0 and 1. Declare it numeric in the contract."]
    return []
