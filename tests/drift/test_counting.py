from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drift.binning import UNSEEN_LABEL, histograms_by_unit
from drift.comparison import column_bins
from drift.counting import MAX_VALUES, SAMPLE_ROWS, WHOLE_ROWS, Block, RowSample, count_blocks
from drift.windows import DriftColumn


def numeric(values: NDArray[np.float64]) -> DriftColumn:
    return DriftColumn("numeric", values)


def in_blocks(columns: dict[str, DriftColumn], size: int, cells: NDArray[np.int64] | None = None) -> list[Block]:
    n = len(next(iter(columns.values())).values)
    return [
        Block(
            {name: DriftColumn(c.kind, c.values[i : i + size], c.vocabulary) for name, c in columns.items()},
            None if cells is None else cells[i : i + size],
        )
        for i in range(0, n, size)
    ]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 5))
def test_counts_do_not_depend_on_how_rows_come_in_blocks(seed: int, size: int, n_cells: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(200) < 0.1, np.nan, rng.standard_normal(200).round(1))
    columns = {"x": numeric(values), "zone": DriftColumn("categorical", rng.integers(-1, 3, 200), ("a", "b", "c"))}
    cells = rng.integers(0, n_cells, 200)
    bins = {name: column_bins(column, n_bins=5) for name, column in columns.items()}
    tables = count_blocks(in_blocks(columns, size, cells), bins, n_cells=n_cells)
    for name, table in tables.items():
        slots, n_slots = bins[name].assign(columns[name]), len(bins[name].labels)
        np.testing.assert_array_equal(table, histograms_by_unit(slots, n_slots, cells, n_cells))
        whole = count_blocks(in_blocks(columns, size), bins)[name]
        np.testing.assert_array_equal(whole[0], table.sum(axis=0))


def test_labels_are_counted_by_name_whatever_the_vocabulary_of_a_block() -> None:
    bins = {"zone": column_bins(DriftColumn("categorical", np.array([0, 0, 1]), ("a", "b")), n_bins=2)}
    blocks = [
        Block({"zone": DriftColumn("categorical", np.array([0, 1]), ("b", "new"))}),
        Block({"zone": DriftColumn("categorical", np.array([1, -1]), ("x", "a"))}),
    ]
    assert bins["zone"].labels[2] == UNSEEN_LABEL
    assert count_blocks(blocks, bins)["zone"][0].tolist() == [1, 1, 1, 1]


def test_a_short_stream_is_kept_whole_and_in_order() -> None:
    values = np.arange(1000.0)
    sample = RowSample()
    for block in in_blocks({"x": numeric(values)}, 64):
        sample.add(block)
    assert sample.whole
    np.testing.assert_array_equal(sample.columns()["x"].values, values)


@pytest.mark.parametrize("size", [1_000, 4_096, 100_000])
def test_a_long_stream_gives_the_same_rows_whatever_its_blocks(size: int) -> None:
    n = 30_000
    codes = np.arange(n) % 3
    columns = {"x": numeric(np.arange(float(n))), "zone": DriftColumn("categorical", codes, ("a", "b", "c"))}
    sample, at_once = RowSample(whole=4_000, limit=1_000), RowSample(whole=4_000, limit=1_000)
    for block in in_blocks(columns, size):
        sample.add(block)
    at_once.add(Block(columns))
    kept, wanted = sample.columns(), at_once.columns()
    assert (sample.n_rows, sample.whole) == (n, False)
    assert 500 <= sample.n_kept <= 1_000
    np.testing.assert_array_equal(kept["x"].values, wanted["x"].values)
    labels = [kept["zone"].vocabulary[code] for code in kept["zone"].values]
    assert labels == [("a", "b", "c")[int(row) % 3] for row in kept["x"].values]


def test_a_sample_favors_no_part_of_the_stream() -> None:
    # Shares of ten stretches and of a period of seven: multinomial, so within five standard deviations each.
    sample = RowSample(whole=1_000, limit=100_000)
    for start in range(0, 1_000_000, 100_000):
        sample.add(Block({"x": numeric(np.arange(start, start + 100_000.0))}))
    rows = sample.columns()["x"].values
    assert len(rows) == sample.n_kept
    for codes, k in ((rows // 100_000, 10), (rows % 7, 7)):
        shares = np.bincount(codes.astype(int), minlength=k) / len(rows)
        assert abs(shares - 1 / k).max() < 5 * np.sqrt(1 / k / len(rows))


def test_a_sample_is_bounded_in_values_too() -> None:
    n_columns = 4 * MAX_VALUES // WHOLE_ROWS
    column = numeric(np.zeros(WHOLE_ROWS // 3))
    sample = RowSample()
    for _ in range(2):
        sample.add(Block({f"x{i}": column for i in range(n_columns)}))
    assert sample.n_kept <= SAMPLE_ROWS
    assert sample.n_kept * n_columns <= MAX_VALUES
