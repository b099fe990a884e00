from __future__ import annotations

import numpy as np
import pytest

from drift.config import DriftConfig
from drift.divergence import population_stability_index
from drift.nights import _chi_square_quantile, psi_by_night
from drift.windows import DriftColumn, DriftWindow

CONFIG = DriftConfig()


def window(values: np.ndarray, nights: np.ndarray, labels: np.ndarray | None = None) -> DriftWindow:
    """One row per episode: a number, and a label of "a" and "b"."""
    n = len(values)
    codes = np.zeros(n, dtype=np.int64) if labels is None else labels
    columns = {"x": DriftColumn("numeric", values), "zone": DriftColumn("categorical", codes, ("a", "b"))}
    return DriftWindow(columns, np.arange(n), np.arange(n), np.datetime64("2024-05-01") + nights)


def test_psi_of_a_night_by_hand() -> None:
    # Reference: a and b half each. Night 1 the same: PSI 0. Night 2: 60 of 100 are a: .1 ln 1.5.
    reference = window(np.zeros(1_000), np.zeros(1_000, dtype=int), np.arange(1_000) % 2)
    labels = np.concatenate([np.arange(100) % 2, (np.arange(100) >= 60).astype(np.int64)])
    found = psi_by_night(reference, window(np.zeros(200), np.repeat([0, 1], 100), labels), CONFIG)
    zone = found.columns.index("zone")
    assert found.psi[zone] == pytest.approx([0.0, 0.1 * np.log(1.5)], abs=2e-3)  # the floor of two empty slots
    assert found.psi[zone, 1] == population_stability_index(
        [0.5, 0.5, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0], floor=CONFIG.floor
    )
    assert found.n_episodes.tolist() == [100, 100]
    assert [str(night) for night in found.nights] == ["2024-05-01", "2024-05-02"]


def test_only_the_night_that_moved_is_beyond_what_chance_allows() -> None:
    rng = np.random.default_rng(0)
    nights = np.repeat(np.arange(6), 150)
    values = rng.normal(size=900)
    values[nights == 4] += 1.0
    found = psi_by_night(window(rng.normal(size=3_000), np.zeros(3_000, dtype=int)), window(values, nights), CONFIG)
    beyond = found.psi[0] > found.allowed[0]
    assert beyond.tolist() == [False, False, False, False, True, False]


def test_chance_exceeds_what_it_is_allowed_in_about_one_night_of_a_hundred() -> None:
    rng = np.random.default_rng(1)
    nights = np.repeat(np.arange(600), 100)
    found = psi_by_night(
        window(rng.normal(size=50_000), np.zeros(50_000, dtype=int)), window(rng.normal(size=60_000), nights), CONFIG
    )
    share = float((found.psi[0] > found.allowed[0]).mean())
    assert 0.002 < share < 0.025  # 600 nights at 1 %: standard deviation .4 %


@pytest.mark.parametrize(("freedom", "exact"), [(1, 6.635), (4, 13.277), (9, 21.666), (30, 50.892)])
def test_quantile_is_that_of_chi_square(freedom: int, exact: float) -> None:
    assert _chi_square_quantile(freedom) == pytest.approx(exact, rel=0.02)


def test_windows_without_rows_are_refused() -> None:
    full, empty = window(np.zeros(9), np.zeros(9, dtype=int)), window(np.zeros(0), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="found 9 and 0 rows"):
        psi_by_night(full, empty, CONFIG)
