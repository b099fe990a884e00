"""Raw feature values of many rows, before any encoding."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import (
    BooleanFeature,
    CategoricalFeature,
    Contract,
    ImageFeature,
    NumericFeature,
    VectorFeature,
)
from datasets.errors import OfflineDqnError
from datasets.images import image_problem, image_rows

MISSING_CODE = -1
"""Categorical code of a missing value."""


class ObservationError(OfflineDqnError):
    """Observations that the contract does not describe; lists every problem."""


@dataclass(frozen=True)
class Observations:
    """Raw feature values of M rows, one array per feature.

    Attributes:
        columns: by feature name. Numeric and boolean: float64 (M,), NaN where missing. Vector: float64 (M, L), a row
            of NaN where missing. Categorical: int32 (M,) codes into `vocabularies[name]`, -1 where missing. Image:
            uint8 (M, H * W * C + 1), its numbers row by row as [row][column][channel], then 1 where it is missing
            (and zeros before), else 0.
        vocabularies: labels of each categorical feature, by feature name.
    """

    columns: Mapping[str, NDArray[Any]]
    vocabularies: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, rows: NDArray[Any]) -> Observations:
        """The given rows (int64 indices or a boolean mask), in that order."""
        return Observations({name: values[rows] for name, values in self.columns.items()}, self.vocabularies)

    def labels(self, name: str) -> NDArray[Any]:
        """(M,) object array of a categorical feature's labels, None where missing."""
        vocabulary = np.array([*self.vocabularies[name], None], dtype=object)
        labels: NDArray[Any] = vocabulary[self.columns[name]]  # MISSING_CODE picks the last entry
        return labels


def observations_from_records(contract: Contract, records: Sequence[Mapping[str, object]]) -> Observations:
    """Observations from JSON-like records, one mapping of feature name to value per row.

    Raises:
        ObservationError: a feature is missing that may not be, has the wrong type, is not finite, or is unknown; every
            problem (the first ten of them) is named with its row.
    """
    problems: list[str] = []
    for row, record in enumerate(records):
        problems += [f"row {row + 1}: {problem}" for problem in observation_problems(contract, record)]
    if problems:
        shown = "\n".join(f"  {text}" for text in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ObservationError(f"{len(problems)} values do not fit the contract:\n{shown}{more}")
    return observations_of_checked(contract, records)


def observations_of_checked(contract: Contract, records: Sequence[Mapping[str, object]]) -> Observations:
    """As `observations_from_records`, of records in which nothing is wrong."""
    columns: dict[str, NDArray[Any]] = {}
    vocabularies: dict[str, tuple[str, ...]] = {}
    for name, feature in contract.features.items():
        values = [record.get(name) for record in records]
        if isinstance(feature, CategoricalFeature):
            labels = [None if value is None else _label(value) for value in values]
            vocabularies[name] = tuple(sorted({label for label in labels if label is not None}))
            codes = {label: code for code, label in enumerate(vocabularies[name])}
            columns[name] = np.array([MISSING_CODE if v is None else codes[v] for v in labels], dtype=np.int32)
        elif isinstance(feature, VectorFeature):
            blank = [math.nan] * feature.length
            rows = [blank if value is None else value for value in values]
            columns[name] = np.array(rows, dtype=np.float64).reshape(len(records), feature.length)
        elif isinstance(feature, ImageFeature):
            columns[name] = image_rows(values, feature)
        else:
            columns[name] = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return Observations(columns, vocabularies)


def record_of(contract: Contract, values: Mapping[str, object]) -> dict[str, Any]:
    """An observation in which nothing is wrong, with each value in the one form that it has in the lake.

    Returns:
        Numbers as float, vectors as lists of float, labels as text; features that are missing are left out.
    """
    return record_reader(contract)(values)


def record_reader(contract: Contract) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """`record_of` under one contract, made once for many observations."""
    forms = {name: _FORMS.get(type(feature), _as_it_is) for name, feature in contract.features.items()}
    return lambda values: {name: forms[name](value) for name, value in values.items() if value is not None}


def observation_problems(contract: Contract, record: Mapping[str, object]) -> list[str]:
    """What keeps one record from being an observation of the contract; empty if nothing does."""
    unknown = [name for name in record if name not in contract.features]
    problems = [f"'{unknown[0]}' is no feature of the contract '{contract.name}'"] if unknown else []
    for name, feature in contract.features.items():
        problem = _problem(feature, record.get(name))
        if problem:
            problems.append(f"{name} {problem}")
    return problems


def _label(value: object) -> str:
    """A label as the lake holds it: anything but text by its JSON text."""
    return value if isinstance(value, str) else json.dumps(value)


def _numbers(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def _as_it_is(value: Any) -> Any:
    return value


_FORMS: Mapping[type, Callable[[Any], Any]] = {
    NumericFeature: float,
    CategoricalFeature: _label,
    VectorFeature: _numbers,
}
"""What each kind of feature's values become; others stay as they are."""


def _problem(feature: object, value: object) -> str | None:
    """What is wrong with one value, or None."""
    if value is None:
        return None if getattr(feature, "nullable", False) else "is missing"
    if isinstance(feature, BooleanFeature):
        return None if isinstance(value, bool) else f"wants true or false, found {value!r}"
    if isinstance(feature, CategoricalFeature):
        if isinstance(value, str):
            return None if value else "is empty"
        if isinstance(value, bool):
            return None
        return _number_problem(value) and f"wants a label, found {str(value)[:60]!r}"
    if isinstance(feature, VectorFeature):
        if not isinstance(value, list) or len(value) != feature.length:
            return f"wants a list of {feature.length} numbers, found {str(value)[:60]}"
        return next((_number_problem(v) for v in value if _number_problem(v)), None)
    if isinstance(feature, ImageFeature):
        return image_problem(feature, value)
    problem = _number_problem(value)
    if problem is None and isinstance(feature, NumericFeature):
        number = float(value)  # type: ignore[arg-type]  # _number_problem has checked that it is a number
        if (feature.min is not None and number < feature.min) or (feature.max is not None and number > feature.max):
            low = "-inf" if feature.min is None else feature.min
            high = "inf" if feature.max is None else feature.max
            return f"is {number}, outside [{low}, {high}]"
    return problem


def _number_problem(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"wants a number, found {value!r}"
    try:
        return None if math.isfinite(value) else f"is {value}, which is not finite"
    except OverflowError:
        return "is too large for a number"
