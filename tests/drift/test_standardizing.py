"""A reference column as if it had been logged in the seasons of the live entries."""

from __future__ import annotations

import numpy as np
import pytest

from drift.null import BinnedColumn
from drift.standardizing import by_stratum, standardized_shares, without_hours

COLUMN = BinnedColumn(np.array([[8.0, 2.0], [3.0, 7.0], [1.0, 9.0]]), np.full(3, 10.0))


def mixture(**hours: float) -> np.ndarray:
    found = np.zeros(168)
    for name, share in hours.items():
        found[int(name[1:])] = share
    return found


def test_reference_has_the_seasons_of_the_live_entries() -> None:
    sums = by_stratum(COLUMN, np.array([0, 1, 1]))
    assert standardized_shares(sums, mixture(h0=1.0)).tolist() == [0.8, 0.2]
    assert standardized_shares(sums, mixture(h0=0.5, h1=0.5)) == pytest.approx([0.5, 0.5])
    assert standardized_shares(sums, mixture(h0=0.5, h2=0.5)) == pytest.approx([0.8, 0.2])  # none of hour 2
    with pytest.raises(ValueError, match="no entry in any season"):
        standardized_shares(sums, mixture(h2=1.0))


def test_cells_without_their_hours_keep_what_they_differ_by_from_their_own_hour() -> None:
    # Hour 0: 0.8 in the first bin; hour 1: 0.2. Standardized to 3 : 1 both are at .75 * .8 + .25 * .2 = .65.
    cells = BinnedColumn(np.array([[8.0, 2.0], [8.0, 2.0], [3.0, 7.0], [1.0, 9.0]]), np.full(4, 10.0))
    found = without_hours(cells, np.array([0, 0, 1, 1]), mixture(h0=0.75, h1=0.25))
    assert found.weighted
    # Of 40 entries 30 are to be of hour 0: its cells weigh 1.5, those of hour 1 weigh .5.
    assert found.by_cell.sum(axis=1) == pytest.approx([15.0, 15.0, 5.0, 5.0])
    assert found.by_cell[:2, 0] == pytest.approx([9.75, 9.75])  # .65 * 15: they show what their hour shows
    # .1 of 10 entries above and below, times sqrt(2 / (2 - 1)) and the weight of .5.
    assert found.by_cell[2:, 0] == pytest.approx([3.25 + 0.5 * 2**0.5, 3.25 - 0.5 * 2**0.5])
    assert found.shares == pytest.approx([0.65, 0.35])


def test_hours_that_the_live_entries_lack_weigh_nothing() -> None:
    found = without_hours(COLUMN, np.array([0, 1, 1]), mixture(h1=1.0))
    assert not found.by_cell[0].any()
    assert found.shares == pytest.approx([0.2, 0.8])
