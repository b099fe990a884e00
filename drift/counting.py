"""Histograms of any number of rows, block by block: neither memory nor the bins' cost grows with them.

A side of a comparison is a stream of blocks. Bins are cut on a bounded sample of the reference (`RowSample`), and every
row is then counted on them. DuckDB reads, numpy counts, in files as in windows in memory (`drift.binning`): twelve
numeric columns of a million rows take numpy about 20 ms of processor time by comparing. DuckDB took 160 ms with one
`count_if` per edge, half of it to read the Parquet file, and 1.3 s with `count(*) FILTER`, of a table in memory too. By
cell numpy needs one `bincount` a column, where DuckDB's every aggregate would look up the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.binning import histograms_by_unit
from drift.comparison import ColumnBins
from drift.windows import DriftColumn

WHOLE_ROWS = 131_072
"""Rows up to which a sample holds all."""

SAMPLE_ROWS = 32_768
"""Rows that it holds at most of a longer stream. With half as many a decile still holds 10 % with a standard
deviation of .23 %, and counts on it are of all rows whatever it holds."""

MAX_VALUES = 2**24
"""Values that a sample holds at most: 128 MB. Beyond 128 columns it holds fewer rows."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a side.

    Attributes:
        columns: scalar ones by name, each with an entry for every row; every block of a side has the same.
        cells: (rows,) index of each row's cell, such as its night and cluster; None where there is one.
    """

    columns: Mapping[str, DriftColumn]
    cells: NDArray[np.int64] | None = None

    @property
    def n_rows(self) -> int:
        """Rows of every column."""
        return len(next(iter(self.columns.values())).values) if self.columns else 0


def count_blocks(
    blocks: Iterable[Block], bins: Mapping[str, ColumnBins], *, n_cells: int = 1
) -> dict[str, NDArray[np.float64]]:
    """(n_cells, K) rows in each slot, of every column that has bins.

    Args:
        blocks: read once, in any order.
        bins: K slots by column.
        n_cells: cells that the blocks' rows are of.
    """
    tables = {name: np.zeros((n_cells, len(of_column.labels))) for name, of_column in bins.items()}
    for block in blocks:
        for name, table in tables.items():
            column = block.columns[name]
            if n_cells == 1:
                table[0] += bins[name].counts(column)
            else:
                cells = np.zeros(block.n_rows, dtype=np.int64) if block.cells is None else block.cells
                slots = bins[name].assign(column)
                table += histograms_by_unit(slots, table.shape[1], cells, n_cells)
    return tables


class RowSample:
    """Rows of a stream, the same ones in every run: all of a short one, and of a longer one those whose number in the
    stream has a small hash, so that no order and no period of the rows can favor any.

    Attributes:
        n_rows: rows that went by.
    """

    def __init__(self, *, whole: int = WHOLE_ROWS, limit: int = SAMPLE_ROWS) -> None:
        """For all of at most `whole` rows, and at most `limit` of more; many columns lower both."""
        self.n_rows = 0
        self._most, self._limit = whole, min(limit, whole)
        self._largest = 2**64 - 1
        self._hashes = np.empty(0, dtype=np.uint64)
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self._codes: dict[str, dict[str, int]] = {}
        self._like: dict[str, DriftColumn] = {}

    @property
    def n_kept(self) -> int:
        """Rows that it holds."""
        return len(self._hashes)

    @property
    def whole(self) -> bool:
        """Whether it holds every row."""
        return self.n_kept == self.n_rows

    def add(self, block: Block) -> None:
        """Takes what it keeps of the stream's next rows."""
        if not self._like:
            self._like = dict(block.columns)
            self._most = max(1, min(self._most, MAX_VALUES // max(1, len(block.columns))))
            self._limit = min(self._limit, self._most)
            self._parts = {name: [] for name in block.columns}
        hashes = _hashed(self.n_rows, block.n_rows)
        self.n_rows += block.n_rows
        n_kept = self.n_kept + int(np.count_nonzero(hashes <= self._largest))
        if n_kept > self._most:
            self._most = self._limit
            while n_kept > self._limit:
                self._largest //= 2
                n_kept = int(
                    np.count_nonzero(self._hashes <= self._largest) + np.count_nonzero(hashes <= self._largest)
                )
            self._drop()
        kept = np.flatnonzero(hashes <= self._largest)
        self._hashes = np.concatenate([self._hashes, hashes[kept]])
        if len(kept):
            for name, column in block.columns.items():
                self._parts[name].append(self._taken(name, column, kept))

    def columns(self) -> dict[str, DriftColumn]:
        """The rows that were kept, in the stream's order."""
        return {
            name: DriftColumn(
                like.kind,
                np.concatenate(self._parts[name]) if self._parts[name] else like.values[:0],
                tuple(self._codes.get(name, like.vocabulary)),
                like.exogenous,
                like.role,
            )
            for name, like in self._like.items()
        }

    def _drop(self) -> None:
        """Leaves only hashes that are small enough by now."""
        small = self._hashes <= self._largest
        self._hashes = self._hashes[small]
        for parts in self._parts.values():
            if parts:
                parts[:] = [np.concatenate(parts)[small]]

    def _taken(self, name: str, column: DriftColumn, kept: NDArray[np.int64]) -> NDArray[Any]:
        """Values of the kept rows; of labels, codes into a vocabulary that grows with the sample."""
        values = column.values if len(kept) == len(column.values) else column.values[kept]
        if column.kind != "categorical":
            return values
        known = self._codes.setdefault(name, {})
        found = np.unique(values)
        renumbered = [-1 if code < 0 else known.setdefault(column.vocabulary[code], len(known)) for code in found]
        return np.array(renumbered, dtype=np.int64)[np.searchsorted(found, values)]


def _hashed(first: int, n: int) -> NDArray[np.uint64]:
    """(n,) scrambled numbers of consecutive rows. Source: Steele, Lea and Flood 2014, SplitMix64's finalizer."""
    mixed = np.arange(first + 1, first + n + 1, dtype=np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed
