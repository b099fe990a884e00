"""Columns as numbers, for what takes several of them at once: a classifier, a kernel, a model of what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.windows import DriftColumn, row_norms

MOST_LABELS = 12
"""Labels of a column, the reference's most frequent ones, that get a number of their own; the others share one."""

MOST_COMPONENTS = 16
"""A longer vector is seen by its norm and so many random projections."""


def frequent_labels(column: DriftColumn, rows: NDArray[np.int64]) -> tuple[str, ...]:
    """The labels that get a number of their own: those that the given rows hold most often."""
    codes = column.values[rows]
    counts = np.bincount(codes[codes >= 0], minlength=len(column.vocabulary))
    frequent = [code for code in np.argsort(-counts, kind="stable")[:MOST_LABELS].tolist() if counts[code]]
    return tuple(column.vocabulary[code] for code in frequent)


def as_numbers(column: DriftColumn, rows: NDArray[np.int64], labels: tuple[str, ...], seed: int) -> NDArray[np.float64]:
    """(rows, P) float64 what a column's values become, NaN where missing.

    Args:
        column: all of its rows.
        rows: which of them.
        labels: of a categorical column, from `frequent_labels`: one number each, then one for all others and one for
            missing.
        seed: of the projections of a long vector.
    """
    values: NDArray[Any] = column.values[rows]
    if column.kind == "categorical":
        slot = {label: i for i, label in enumerate(labels)}
        # Behind the labels: all others, and the missing ones, which code -1 picks.
        places = np.array([*(slot.get(label, len(labels)) for label in column.vocabulary), len(labels) + 1])
        one_hot: NDArray[np.float64] = np.eye(len(labels) + 2)[places[values]]
        return one_hot
    if column.kind == "vector" and values.shape[1] > MOST_COMPONENTS:
        length = values.shape[1]
        directions = np.random.default_rng([seed, 1, length]).standard_normal((length, MOST_COMPONENTS))
        return np.column_stack([row_norms(values), values @ directions / np.sqrt(length)])
    return values.reshape(len(rows), -1).astype(np.float64)
