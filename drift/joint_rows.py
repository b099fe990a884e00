"""The rows on which columns are compared jointly: a bounded number of them, drawn by cluster and night, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drift.numbers import as_numbers, frequent_labels
from drift.windows import DriftWindow

ROLES = ("feature", "action", "reward")
"""What is looked at jointly: what a policy says of these follows from them."""

N_PLACES = 32
"""Of a number for a classifier."""

_ENOUGH_CELLS = 200
"""So many cells are drawn where a window holds them, whatever the size of the largest."""

_FURTHEST = 8.0
"""Spreads from the median at which a value is cut off: one outlier shall not hide how the others moved."""


@dataclass(frozen=True)
class Side:
    """A window's rows: cells are a cluster's rows of one night.

    Attributes:
        values: (n, P) float64, NaN where missing.
        weights: (n,) not negative, 1 on average.
        cell: (n,) index of the row's cell.
        cluster_of_cell, night_of_cell: (cells,) numbered from 0 without gaps, nights by date.
    """

    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    cell: NDArray[np.int64]
    cluster_of_cell: NDArray[np.int64]
    night_of_cell: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """n."""
        return len(self.cell)

    @property
    def n_nights(self) -> int:
        """Distinct nights."""
        return int(self.night_of_cell.max()) + 1

    @property
    def cluster(self) -> NDArray[np.int64]:
        """(n,) of each row."""
        return np.asarray(self.cluster_of_cell[self.cell])


@dataclass(frozen=True)
class JointRows:
    """Both windows on the same P numbers.

    Attributes:
        names: (P,) the column that each number is of.
        is_label: (P,) whether it is 1 for one label and 0 for the others.
    """

    names: tuple[str, ...]
    is_label: NDArray[np.bool_]
    reference: Side
    live: Side


def joint_rows(reference: DriftWindow, live: DriftWindow, *, most_rows: int, seed: int) -> JointRows:
    """Features, action and reward that both windows have, on at most about `most_rows` rows of each.

    Rows are drawn by cells: a cluster's rows of one night, whole unless one would leave too few others. Then so many of
    its rows are drawn, in both windows alike: a heavy user must not count for more in one than in the other.

    A reference's weights go with its rows, in exogenous columns too: those are not moved by the weights, and all
    columns of a row must stay together.

    Raises:
        ValueError: the windows share no such column.
    """
    rng = np.random.default_rng([seed, 0])
    most = min(_most_of_a_cell(reference, most_rows), _most_of_a_cell(live, most_rows))
    chosen = _draw_cells(reference, most_rows, most, rng), _draw_cells(live, most_rows, most, rng)
    names: list[str] = []
    is_label: list[bool] = []
    parts: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    for name, column in reference.columns.items():
        now = live.columns.get(name)
        if column.role not in ROLES or column.rows is not None or now is None or now.kind != column.kind:
            continue
        if column.kind == "vector" and column.values.shape[1] != now.values.shape[1]:
            continue
        labels = frequent_labels(column, chosen[0][0]) if column.kind == "categorical" else ()
        for part, side, (rows, _, _) in zip(parts, (column, now), chosen, strict=True):
            part.append(as_numbers(side, rows, labels, seed))
        width = parts[0][-1].shape[1]
        names += [name] * width
        is_label += [column.kind in ("categorical", "boolean")] * width
    if not names:
        raise ValueError("the windows share no feature, action or reward that could be compared jointly")
    sides = [
        _side(window, np.concatenate(part, axis=1), rows, cells, cell_of_row)
        for window, part, (rows, cells, cell_of_row) in zip((reference, live), parts, chosen, strict=True)
    ]
    return JointRows(tuple(names), np.array(is_label), *sides)


def ranked(rows: JointRows) -> JointRows:
    """The same with each number replaced by its place among the quantiles of both windows, NaN where missing.

    Trees ask for order alone, and so they need not look for quantiles again in every one of many fits.
    """
    before, now = rows.reference.values.copy(), rows.live.values.copy()
    share = np.linspace(0.0, 1.0, N_PLACES + 1)[1:-1]
    for j in np.flatnonzero(~rows.is_label):
        pooled = np.concatenate([before[:, j], now[:, j]])
        known = pooled[~np.isnan(pooled)]
        edges = np.unique(np.quantile(known, share)) if len(known) else known
        for values in (before, now):
            places = np.searchsorted(edges, values[:, j], side="right").astype(np.float64)
            values[:, j] = np.where(np.isnan(values[:, j]), np.nan, places)
    return replace(rows, reference=replace(rows.reference, values=before), live=replace(rows.live, values=now))


def standardized(rows: JointRows) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """(n, P') numbers of reference and live in spreads of the reference around its median; (P',) column of each.

    Spread: the interquartile range as of a normal, or the standard deviation where half of the values are one point.
    Labels stay 0 and 1. Missing numbers are 0, with a number of their own that says so.
    """
    before, now = rows.reference.values, rows.live.values
    center, spread = np.zeros(before.shape[1]), np.ones(before.shape[1])
    for j in np.flatnonzero(~rows.is_label):
        seen = before[~np.isnan(before[:, j]), j]
        if len(seen):
            low, center[j], high = np.quantile(seen, [0.25, 0.5, 0.75])
            spread[j] = (high - low) / 1.349 or seen.std() or 1.0
    missing = np.isnan(before).any(axis=0) | np.isnan(now).any(axis=0)
    found = []
    for values in (before, now):
        scaled = np.clip(np.nan_to_num((values - center) / spread), -_FURTHEST, _FURTHEST)
        found.append(np.concatenate([scaled, np.isnan(values[:, missing]).astype(np.float64)], axis=1))
    return found[0], found[1], (*rows.names, *(rows.names[j] for j in np.flatnonzero(missing)))


_Chosen = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Rows of the window; episode of each cell's first row; cell of each row."""


def _cells(window: DriftWindow) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(cells,) first episode of each; (rows,) cell of each row; (cells,) rows of each."""
    _, first, cell_of_episode = np.unique(
        np.stack([window.day_numbers, window.clusters]), axis=1, return_index=True, return_inverse=True
    )
    cell_of_row = cell_of_episode.reshape(-1)[window.episode_of_row]
    return first, cell_of_row, np.bincount(cell_of_row, minlength=len(first))


def _most_of_a_cell(window: DriftWindow, most_rows: int) -> int:
    """Rows of a cell that leave room for enough others; all of them where the window is within `most_rows`."""
    if window.n_rows <= most_rows:
        return most_rows
    sizes = _cells(window)[2]
    return max(1, most_rows // min(int((sizes > 0).sum()), _ENOUGH_CELLS))


def _draw_cells(window: DriftWindow, most_rows: int, most_of_a_cell: int, rng: np.random.Generator) -> _Chosen:
    """As many cells, by chance, as stay within `most_rows`, and at least one; of each at most so many rows."""
    first, cell_of_row, sizes = _cells(window)
    largest = int(sizes.max(initial=0))
    sizes = np.minimum(sizes, most_of_a_cell)
    order = rng.permutation(len(first))
    within = np.cumsum(sizes[order]) <= max(most_rows, int(sizes[order[:1]].sum()))
    kept = np.sort(order[within & (sizes[order] > 0)])
    place = np.full(len(first), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    rows = np.flatnonzero(place[cell_of_row] >= 0)
    if largest > most_of_a_cell:
        by_cell = np.lexsort((rng.random(len(rows)), cell_of_row[rows]))
        in_order = cell_of_row[rows[by_cell]]
        rank = np.arange(len(rows)) - np.searchsorted(in_order, in_order)
        rows = np.sort(rows[by_cell[rank < most_of_a_cell]])
    return rows, first[kept], place[cell_of_row[rows]]


def _side(
    window: DriftWindow,
    values: NDArray[np.float64],
    rows: NDArray[np.int64],
    episode_of_cell: NDArray[np.int64],
    cell_of_row: NDArray[np.int64],
) -> Side:
    weights = np.ones(len(rows)) if window.weights is None else window.weights[rows]
    total = float(weights.sum())
    return Side(
        values=values,
        weights=weights * (len(rows) / total) if total > 0 else weights,
        cell=cell_of_row,
        cluster_of_cell=np.unique(window.clusters[episode_of_cell], return_inverse=True)[1],
        night_of_cell=np.unique(window.nights[episode_of_cell], return_inverse=True)[1],
    )
