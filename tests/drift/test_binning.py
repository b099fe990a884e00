from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.binning import (
    MISSING_LABEL,
    UNSEEN_LABEL,
    NumericBins,
    category_bins,
    histogram,
    histograms_by_unit,
    numeric_bins,
)
from drift.divergence import population_stability_index


def test_quantile_bins_hold_equal_shares() -> None:
    values = np.random.default_rng(0).standard_normal(10_000)
    bins = numeric_bins(values, n_bins=10)
    counts = histogram(bins.assign(values), len(bins.labels))
    np.testing.assert_allclose(counts, [1000] * 10 + [0], atol=1)


def test_a_point_mass_has_a_bin_of_its_own() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([np.zeros(5000), rng.exponential(size=5000)])
    bins = numeric_bins(values, n_bins=10)
    counts = histogram(bins.assign(values), len(bins.labels))
    assert counts[bins.labels.index("0")] == 5000
    assert bins.labels[0] == "< 0"
    assert bins.labels[2].startswith("(0, ")
    np.testing.assert_allclose(counts[2:-1], 1000, atol=1)


def test_a_constant_column_keeps_room_on_both_sides() -> None:
    bins = numeric_bins(np.full(50, 5.0), n_bins=10)
    assert bins.labels == ("< 5", "5", "> 5", MISSING_LABEL)
    assert bins.assign(np.array([4.9, 5.0, 5.1, np.nan])).tolist() == [0, 1, 2, 3]


def test_few_distinct_values_become_point_masses_and_new_ones_fall_between() -> None:
    bins = numeric_bins(np.repeat([1.0, 2.0, 3.0], 20), n_bins=10)
    assert bins.labels == ("< 1", "1", "(1, 2)", "2", "(2, 3)", "3", "> 3", MISSING_LABEL)
    assert bins.labels[bins.assign(np.array([2.5]))[0]] == "(2, 3)"


def test_fewer_rows_than_bins_make_no_point_masses() -> None:
    bins = numeric_bins(np.array([1.0, 2.0, 3.0, 4.0]), n_bins=10)
    assert np.isfinite(bins.edges).all()
    assert len(bins.edges) == 3
    assert not any(label in bins.labels for label in "1234")


def test_a_value_constant_within_one_group_is_no_point_mass() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([np.full(50, 0.3), rng.random(50)])
    groups = np.concatenate([np.zeros(50), np.arange(1, 51)]).astype(int)
    assert "0.3" in numeric_bins(values, n_bins=4).labels
    assert "0.3" not in numeric_bins(values, n_bins=4, groups=groups).labels


def test_weights_move_the_edges() -> None:
    values = np.arange(1000.0)
    weights = np.where(values < 100, 9.0, 1.0)  # half of the mass below 100
    bins = numeric_bins(values, n_bins=2, weights=weights)
    assert bins.edges == pytest.approx([100.0], abs=1)


def test_all_missing_leaves_one_bin_for_any_value() -> None:
    bins = numeric_bins(np.full(5, np.nan), n_bins=10)
    assert bins.labels == ("any value", MISSING_LABEL)
    assert bins.assign(np.array([np.nan, 3.0])).tolist() == [1, 0]


def test_infinite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="1 values are infinite"):
        numeric_bins(np.array([0.0, np.inf]), n_bins=10)


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_every_value_has_exactly_one_bin(values: list[float]) -> None:
    array = np.array(values)
    bins = numeric_bins(array, n_bins=5)
    slots = bins.assign(array)
    assert len(bins.labels) == len(bins.edges) + 2
    assert (np.diff(bins.edges) > 0).all()
    assert ((slots == len(bins.labels) - 1) == np.isnan(array)).all()
    padded = np.concatenate([[-np.inf], bins.edges, [np.inf]])
    seen = ~np.isnan(array)
    assert (padded[slots[seen]] <= array[seen]).all()
    assert (array[seen] < padded[slots[seen] + 1]).all()


@given(st.integers(1, 120), st.integers(0, 2**32 - 1))
def test_slots_agree_with_a_binary_search_at_edges_and_between(n_edges: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = np.unique(rng.standard_normal(n_edges).round(1))
    values = np.concatenate([rng.choice(edges, 50), rng.standard_normal(50), [-1e300, 1e300]])
    slots = NumericBins(edges, tuple("." * (len(edges) + 2))).assign(values)
    np.testing.assert_array_equal(slots, np.searchsorted(edges, values, side="right"))


def test_half_a_standard_deviation_is_a_psi_of_about_a_quarter() -> None:
    rng = np.random.default_rng(4)
    reference, live = rng.standard_normal(200_000), rng.standard_normal(200_000) + 0.5
    assert 0.23 <= _psi(reference, live) <= 0.25


def test_one_outlier_changes_psi_by_at_most_a_percent() -> None:
    rng = np.random.default_rng(5)
    reference, live = rng.standard_normal(10_000), rng.standard_normal(10_000) + 0.5
    spoiled = live.copy()
    spoiled[0] = 500.0
    assert _psi(reference, spoiled) == pytest.approx(_psi(reference, live), rel=0.01)


def test_categories_are_matched_by_label_and_new_ones_are_unseen() -> None:
    bins = category_bins(np.array([0, 0, 1, -1]), ("a", "b", "never"))
    assert bins.labels == ("a", "b", UNSEEN_LABEL, MISSING_LABEL)
    slots = bins.assign(np.array([0, 1, 2, -1]), ("b", "new", "a"))
    assert [bins.labels[slot] for slot in slots] == ["b", UNSEEN_LABEL, "a", MISSING_LABEL]


def test_rare_labels_share_the_slot_of_unseen_ones() -> None:
    codes = np.concatenate([np.zeros(5000, dtype=int), [1]])
    assert category_bins(codes, ("common", "rare")).kept == ("common",)
    many = category_bins(np.repeat(np.arange(100), np.arange(100, 200)), tuple(map(str, range(100))))
    assert many.kept == tuple(map(str, range(70, 100)))


def test_histograms_by_unit_add_up_to_the_weighted_histogram() -> None:
    rng = np.random.default_rng(6)
    slots, units, weights = rng.integers(0, 4, 200), rng.integers(0, 9, 200), rng.random(200)
    by_unit = histograms_by_unit(slots, 4, units, 9, weights)
    np.testing.assert_allclose(by_unit.sum(axis=0), histogram(slots, 4, weights))
    assert by_unit[3, 2] == pytest.approx(weights[(units == 3) & (slots == 2)].sum())


def _psi(reference: np.ndarray, live: np.ndarray) -> float:
    bins = numeric_bins(reference, n_bins=10)
    n = len(bins.labels)
    shares = [histogram(bins.assign(side), n) / len(side) for side in (reference, live)]
    return population_stability_index(*shares, floor=1e-4)
