"""Two streams of rows side by side: how far apart they are in every column, whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.binning import in_order
from drift.comparison import column_bins, distance_of_values, divergences_of_shares
from drift.counting import MAX_VALUES, Block, RowSample, count_blocks
from drift.records import ColumnDrift
from drift.windows import DriftColumn, DriftDataError

Rows = Callable[[frozenset[str]], Iterable[Block]]
"""A side: its blocks without the columns named, anew each time it is called and always in the same order."""

NO_VERDICT = "no verdict: rows may depend on each other"


@dataclass(frozen=True)
class RowComparison:
    """What two sides show, column by column.

    Attributes:
        columns: in the reference's order.
        reference_rows, live_rows: of each side.
        reference_sample, live_sample: rows that Wasserstein-1 is of, and the reference's that bins are cut on: all,
            or as many as a sample holds. Shares are of all rows.
        floor: smallest share that a bin is given in PSI and KL.
        basis: what the verdicts rest on, in words; "" where there are none.
    """

    columns: tuple[ColumnDrift, ...]
    reference_rows: int
    live_rows: int
    reference_sample: int
    live_sample: int
    floor: float
    basis: str = ""

    @property
    def drifted(self) -> tuple[ColumnDrift, ...]:
        """The drifted columns, the largest PSI first."""
        return tuple(sorted((c for c in self.columns if c.drifted), key=lambda c: -(c.psi or 0.0)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        facts = {name: value for name, value in self.__dict__.items() if name != "columns"}
        return {**facts, "columns": [column.to_json() for column in self.columns]}


def compare_rows(reference: Rows, live: Rows, *, n_bins: int, floor: float) -> RowComparison:
    """How far apart two sides are in every column; judges none. See `compare_rows_by_cell`."""
    return compare_rows_by_cell(reference, live, n_bins=n_bins, floor=floor, n_cells=1)[0]


def compare_rows_by_cell(
    reference: Rows, live: Rows, *, n_bins: int, floor: float, n_cells: int
) -> tuple[RowComparison, dict[str, NDArray[np.float64]]]:
    """How far apart two sides are in every column, and (n_cells, K) rows of the reference by cell and slot.

    Memory does not grow with rows. The live side is read once; a reference too large to hold is read twice, the first
    time for the bins.

    Args:
        reference, live: the same scalar columns, of the same kinds.
        n_bins: of a numeric column.
        floor: as in `population_stability_index`.
        n_cells: cells that the reference's blocks are of.

    Raises:
        DriftDataError: a side is empty, holds fewer rows than there are bins, or holds infinite values; all columns
            that do are named.
    """
    sample, live_sample = RowSample(), RowSample()
    watch = _Watch()
    held: list[Block] = []
    for block in _kept(watch.over(reference(frozenset()), "reference"), sample):
        held.append(block)
        if sample.n_rows * len(block.columns) > MAX_VALUES:
            held.clear()
    watch.refuse({"reference": sample.n_rows}, n_bins)
    before = _in_order(sample.columns())
    bins = {name: column_bins(column, n_bins=n_bins) for name, column in before.items()}
    names = frozenset(name for name, column in before.items() if _is_unlabelled(column, bins[name].labels))
    bins = {name: of_column for name, of_column in bins.items() if name not in names}
    is_held = sum(block.n_rows for block in held) == sample.n_rows
    counts = count_blocks(held if is_held else reference(names), bins, n_cells=n_cells)
    held.clear()
    live_counts = count_blocks(_kept(watch.over(live(names), "live side"), live_sample), bins)
    watch.refuse({"reference": sample.n_rows, "live side": live_sample.n_rows}, n_bins)
    now = _in_order(live_sample.columns())
    n_rows = sample.n_rows, live_sample.n_rows
    columns = tuple(
        _unlabelled(name, column, n_rows)
        if name in names
        else _column(name, column, now[name], bins[name].labels, counts[name].sum(axis=0), live_counts[name][0], floor)
        for name, column in before.items()
    )
    return RowComparison(columns, *n_rows, sample.n_kept, live_sample.n_kept, floor), counts


class _Watch:
    """Looks for infinite values in the blocks that go by, and counts them by side and column."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], int] = {}

    def over(self, blocks: Iterable[Block], side: str) -> Iterator[Block]:
        """The same blocks."""
        for block in blocks:
            for name, column in block.columns.items():
                if column.kind == "numeric" and (n := np.count_nonzero(np.isinf(column.values))):
                    self._found[side, name] = self._found.get((side, name), 0) + int(n)
            yield block

    def refuse(self, n_rows: Mapping[str, int], n_bins: int) -> None:
        """Raises for what was found so far, and for sides with too few rows for bins."""
        for side, n in n_rows.items():
            if n < n_bins:
                what = f"holds {n} rows for {n_bins} bins; take more rows or fewer bins" if n else "is empty"
                raise DriftDataError(f"The {side} {what}.")
        if self._found:
            lines = "\n".join(
                f"  {name}: {n:,} of {n_rows[side]:,} rows of the {side}" for (side, name), n in self._found.items()
            )
            raise DriftDataError(
                f"Infinite values cannot be compared:\n{lines}\n"
                "Write such values as null, leave those rows out, or leave the column out."
            )


def _kept(blocks: Iterable[Block], sample: RowSample) -> Iterator[Block]:
    """The same blocks, sampled as they go by."""
    for block in blocks:
        sample.add(block)
        yield block


def _in_order(columns: Mapping[str, DriftColumn]) -> dict[str, DriftColumn]:
    """Each numeric column sorted for itself: bins and distances ask for no row, and sort what is sorted in no time."""
    return {
        name: replace(column, values=in_order(column.values)) if column.kind == "numeric" else column
        for name, column in columns.items()
    }


def _column(
    name: str,
    before: DriftColumn,
    now: DriftColumn,
    labels: tuple[str, ...],
    counts: NDArray[np.float64],
    live_counts: NDArray[np.float64],
    floor: float,
) -> ColumnDrift:
    """A column's numbers from its counts, and Wasserstein-1 from what the samples hold."""
    probs, live_probs = counts / counts.sum(), live_counts / live_counts.sum()
    distance = distance_of_values(before.values, now.values) if before.kind == "numeric" else None
    missing = [side for side, share in (("reference", probs[-1]), ("live side", live_probs[-1])) if share == 1.0]
    return ColumnDrift(
        name=name,
        kind=before.kind,
        exogenous=False,
        status="not enough data",
        reason=f"all missing on the {' and the '.join(missing)}" if missing else NO_VERDICT,
        reference_rows=int(counts.sum()),
        live_rows=int(live_counts.sum()),
        **divergences_of_shares(before.kind, labels, probs, live_probs, distance, floor=floor),
    )


def _is_unlabelled(before: DriftColumn, labels: tuple[str, ...]) -> bool:
    """Whether a column holds labels, but none often enough for a slot of its own."""
    return before.kind == "categorical" and len(labels) == 2 and bool((before.values >= 0).any())


def _unlabelled(name: str, before: DriftColumn, n_rows: tuple[int, int]) -> ColumnDrift:
    return ColumnDrift(
        name=name,
        kind=before.kind,
        exogenous=False,
        status="not enough data",
        reason="not compared: no label holds more than 0.1 % of the reference, as in a column of identifiers",
        reference_rows=n_rows[0],
        live_rows=n_rows[1],
    )
