"""Regions of the features in which a number differs, cut by a small tree and told in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, ImageFeature
from datasets.observations import MISSING_CODE, Observations
from reports.estimators import Floats, Ints

EVERYWHERE = "everywhere"

_MOST_ROWS = 100_000
_MOST_LABELS = 50
_SMALLEST_GAIN = 0.02
"""Share of the target's variance that a cut must explain: less is noise that happens to lie somewhere."""


@dataclass(frozen=True)
class FeatureRegions:
    """Disjoint regions that cover every row; `words` (R) say where each lies."""

    region: Ints
    """(n,) number of each row's region."""
    words: tuple[str, ...]


def cut_regions(
    contract: Contract, observations: Observations, target: Floats, *, most: int, smallest: int
) -> FeatureRegions:
    """Regions in which (n,) `target` differs most: the leaves of a regression tree on the raw features.

    Pictures take no part, as no sentence could tell where in them a region lies. Without a feature to ask, or without
    a difference, there is one region.

    Args:
        contract: the decision problem.
        observations: n rows.
        target: (n,) finite.
        most: regions, at most.
        smallest: rows that a region holds at least.

    Source: Breiman, Friedman, Olshen, Stone 1984, Classification and regression trees.
    """
    from sklearn.tree import DecisionTreeRegressor

    n = len(target)
    columns = list(_columns(contract, observations))
    if not columns or n < 2 * smallest or float(np.ptp(target)) == 0.0:
        return FeatureRegions(np.zeros(n, dtype=np.int64), (EVERYWHERE,))
    table = np.stack([column.values for column in columns], axis=1)
    rows = np.arange(0, n, -(-n // _MOST_ROWS))
    leaf_rows = max(1, smallest * len(rows) // n)
    gain = _SMALLEST_GAIN * float(target[rows].var())
    tree = DecisionTreeRegressor(
        max_leaf_nodes=most, min_samples_leaf=leaf_rows, min_impurity_decrease=gain, random_state=0
    )
    tree.fit(table[rows], target[rows])
    leaves, region = np.unique(tree.apply(table), return_inverse=True)
    paths = dict(_paths(tree.tree_, 0, ()))
    return FeatureRegions(
        np.asarray(region, dtype=np.int64), tuple(_said(paths[int(leaf)], columns) for leaf in leaves)
    )


@dataclass(frozen=True)
class _Column:
    """One number per row that the tree may ask for.

    Attributes:
        name: how a sentence calls it; for yes-or-no columns, the sentence itself.
        denied: the sentence where a yes-or-no column says no; None for numbers.
        whole: whether all values are whole numbers.
    """

    name: str
    values: NDArray[np.float32]
    denied: str | None = None
    unit: str = ""
    whole: bool = False


def _columns(contract: Contract, observations: Observations) -> Iterator[_Column]:
    for name, feature in contract.features.items():
        values = observations.columns[name]
        if isinstance(feature, ImageFeature):
            continue
        if isinstance(feature, CategoricalFeature):
            counts = np.bincount(values[values != MISSING_CODE], minlength=1)
            for code in np.argsort(-counts, kind="stable")[:_MOST_LABELS].tolist():
                if counts[code]:
                    label = observations.vocabularies[name][code]
                    yield _yes_or_no(values == code, f"{name} = {label}", f"{name} other than {label}")
            missing = values == MISSING_CODE
        elif isinstance(feature, BooleanFeature):
            yield _yes_or_no(values == 1.0, name, f"not {name}")
            missing = np.isnan(values)
        else:
            parts = values[:, None] if values.ndim == 1 else values
            missing = np.isnan(parts[:, 0])
            for i in range(parts.shape[1]):
                shown = name if values.ndim == 1 else f"{name}[{i}]"
                yield _number(parts[:, i], missing, shown, getattr(feature, "unit", None) or "")
        if missing.any():
            yield _yes_or_no(missing, f"{name} missing", f"{name} known")


def _yes_or_no(values: NDArray[np.bool_], said: str, denied: str) -> _Column:
    return _Column(said, values.astype(np.float32), denied)


def _number(values: Floats, missing: NDArray[np.bool_], name: str, unit: str) -> _Column:
    known = values[~missing]
    filled = np.where(missing, float(np.median(known)) if len(known) else 0.0, values)
    whole = bool(len(known)) and bool(np.all(known == np.round(known)))
    return _Column(name, filled.astype(np.float32), unit=f" {unit}" if unit else "", whole=whole)


_Step = tuple[int, bool, float]
"""Column, whether its value is above the threshold, and the threshold."""


def _paths(tree: Any, node: int, before: tuple[_Step, ...]) -> Iterator[tuple[int, tuple[_Step, ...]]]:
    """Each leaf with the questions that lead to it."""
    if tree.children_left[node] < 0:
        yield node, before
        return
    column, threshold = int(tree.feature[node]), float(tree.threshold[node])
    yield from _paths(tree, int(tree.children_left[node]), (*before, (column, False, threshold)))
    yield from _paths(tree, int(tree.children_right[node]), (*before, (column, True, threshold)))


def _said(path: tuple[_Step, ...], columns: list[_Column]) -> str:
    """The path as conditions joined by "and", with one condition per number however often it was asked."""
    said = []
    for column in dict.fromkeys(step[0] for step in path):
        asked, steps = columns[column], [step for step in path if step[0] == column]
        low = max((threshold for _, above, threshold in steps if above), default=-math.inf)
        high = min((threshold for _, above, threshold in steps if not above), default=math.inf)
        if asked.denied is not None:
            said.append(asked.name if low > -math.inf else asked.denied)
        else:
            said.append(_range_words(asked, low, high))
    return " and ".join(said) or EVERYWHERE


def _range_words(column: _Column, low: float, high: float) -> str:
    if column.whole:
        low, high = math.floor(low) + 1 if low > -math.inf else low, math.floor(high) if high < math.inf else high
        if low == high:
            return f"{column.name} = {low:g}{column.unit}"
        if low == -math.inf:
            return f"{column.name} <= {high:g}{column.unit}"
        return f"{column.name} >= {low:g}{column.unit}" if high == math.inf else f"{low:g} <= {column.name} <= {high:g}"
    if low == -math.inf:
        return f"{column.name} <= {high:.3g}{column.unit}"
    return f"{column.name} > {low:.3g}{column.unit}" if high == math.inf else f"{low:.3g} < {column.name} <= {high:.3g}"
