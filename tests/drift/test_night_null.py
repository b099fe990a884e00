"""Nights as the unit: what they are compared with, and what a stretch of them may show."""

from __future__ import annotations

import numpy as np
import pytest

from drift.cells import Cells
from drift.night_null import Stretch, _apart, _variance_of_mean, night_nulls
from drift.null import BinnedColumn
from drift.seasons import night_kinds


def test_a_night_is_compared_with_the_others_of_its_kind() -> None:
    assert _apart(np.array([0, 0, 0])).tolist() == [[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]]
    assert _apart(np.array([0, 1, 0, 1])).tolist() == [[1, 0, -1, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, -1, 0, 1]]


def test_variance_of_a_mean_of_nights_that_follow_each_other() -> None:
    assert _variance_of_mean(4, 0.0) == 0.25
    assert _variance_of_mean(2, 0.5) == 0.75  # (1 + 1 + 2 * .5) / 4
    assert _variance_of_mean(1, 0.8) == 1.0


def _nights(rng: np.random.Generator, n: int, probs: np.ndarray) -> tuple[BinnedColumn, Cells]:
    """N nights of 200 clusters with one entry each, that fall into bins by `probs` (N, K)."""
    by_cell = np.concatenate([rng.multinomial(1, p, size=200) for p in probs]).astype(float)
    cells = Cells(np.repeat(np.arange(n), 200), np.tile(np.arange(200), n), np.arange(200 * n), 200)
    return BinnedColumn(by_cell, np.ones(200 * n)), cells


@pytest.mark.parametrize("n_live", [1, 7])
def test_without_shocks_the_null_is_the_chi_square_of_the_rows(n_live: int) -> None:
    # PSI of L nights of 200 rows against 40 nights of 200: (1 / 200 L + 1 / 8000) times a chi-square with 3 degrees.
    rng = np.random.default_rng(0)
    column, cells = _nights(rng, 40, np.full((40, 4), 0.25))
    (null,) = night_nulls(
        [column], cells, [Stretch(np.zeros(n_live, dtype=np.int64))], seasonality="none", live_clusters_per_night=200,
        n_replicates=4000, floor=1e-4, rng=rng,
    )  # fmt: skip
    unit = 1 / (200 * n_live) + 1 / 8000
    assert null.typical_psi[0] / unit == pytest.approx(2.366, rel=0.25)
    assert null.thresholds(0.01)[0] / unit == pytest.approx(11.34, rel=0.35)  # larger: 40 nights leave it uncertain


def test_a_weekly_rhythm_is_no_noise_where_weekdays_are_compared() -> None:
    rng = np.random.default_rng(1)
    days = np.arange(28)
    probs = np.where((days % 7 >= 5)[:, None], [0.1, 0.9], [0.5, 0.5])
    column, cells = _nights(rng, 28, probs)
    one = {"live_clusters_per_night": 200, "n_replicates": 1000, "floor": 1e-4}
    among_all, among_equals = (
        night_nulls([column], cells, [Stretch(night_kinds(np.array([28]), how))], seasonality=how, rng=rng, **one)[0]  # type: ignore[arg-type]
        for how in ("none", "weekday")
    )
    assert among_all.typical_psi[0] > 10 * among_equals.typical_psi[0]


def test_a_kind_of_night_that_is_there_once_is_refused() -> None:
    column, cells = _nights(np.random.default_rng(2), 15, np.full((15, 2), 0.5))  # days 0 to 14: three Thursdays
    friday = Stretch(night_kinds(np.array([1]), "weekday"))
    night_nulls([column], cells, [friday], seasonality="weekday", live_clusters_per_night=200, n_replicates=20,
                floor=1e-4, rng=np.random.default_rng(3))  # fmt: skip
    column, cells = (
        BinnedColumn(column.by_cell[:1600], np.ones(1600)),
        Cells(cells.nights[:1600], cells.clusters[:1600], cells.of_episode[:1600], 200),
    )  # eight days: one Friday
    with pytest.raises(ValueError, match="less than twice"):
        night_nulls([column], cells, [friday], seasonality="weekday", live_clusters_per_night=200, n_replicates=20,
                    floor=1e-4, rng=np.random.default_rng(3))  # fmt: skip
