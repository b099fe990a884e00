"""The promise of the whole rule, in worlds that did not change, and its power in one that did."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from drift.cells import Cells
from drift.cluster_null import cluster_null
from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.null import PsiNull, binned_column, joined, psi_null
from tests.drift.worlds import window_of_nights

RATE = 0.05  # a hundred alarms less to wait for than at 1 %


def n_alarms(seed: int, n_worlds: int, *, reference_nights: int, night_sd: float = 0.0, shift: float = 0.0) -> int:
    """Worlds in which any column drifted, with `min_psi` out of the way."""
    rng = np.random.default_rng(seed)
    config = DriftConfig(false_alarm_rate=RATE, min_psi=0.0, n_replicates=400)
    alarms = 0
    for _ in range(n_worlds):
        reference = window_of_nights(rng, n_nights=reference_nights, episodes_per_night=40, night_sd=night_sd)
        live = window_of_nights(
            rng, n_nights=1, episodes_per_night=40, first_night=reference_nights, night_sd=night_sd, shift=shift
        )
        alarms += measure_drift(reference, live, config).status == "drifted"
    return alarms


def test_false_alarms_of_unchanged_nights_stay_at_the_promised_rate() -> None:
    # Seven columns, episodes whose steps correlate by .7: within the 99.9 % binomial range of the promise.
    n_worlds = 300
    alarms = n_alarms(11, n_worlds, reference_nights=6)
    low, high = stats.binom.ppf([0.0005, 0.9995], n_worlds, RATE)
    assert low <= alarms <= high


def test_nights_as_the_unit_hold_the_rate_under_night_shocks() -> None:
    # Each night shifts every column by .3 standard deviations; clusters as the unit alarm in most such nights.
    n_worlds = 100
    alarms = n_alarms(12, n_worlds, reference_nights=21, night_sd=0.3)
    assert alarms <= stats.binom.ppf(0.9995, n_worlds, RATE)
    assert n_alarms(12, 40, reference_nights=6, night_sd=0.3) >= 20


def test_a_shift_of_three_tenths_is_seen() -> None:
    rng = np.random.default_rng(13)
    seen = 0
    for _ in range(20):
        reference = window_of_nights(rng, n_nights=6, episodes_per_night=300, correlation=0.3)
        live = window_of_nights(rng, n_nights=1, episodes_per_night=300, first_night=6, correlation=0.3, shift=0.3)
        seen += "x0" in {column.name for column in measure_drift(reference, live, DriftConfig()).drifted_columns}
    assert seen >= 18


def test_large_pools_give_the_null_of_small_ones() -> None:
    # Independent rows: PSI is (1 / n + 1 / m) times a chi-square with bins - 1 degrees of freedom, on every path: the
    # pool resampled whole, bundled, and drawn from with the deviation scaled down.
    rng = np.random.default_rng(14)
    for n, m in ((2000, 900), (40_000, 30_000), (40_000, 2000)):
        cells = Cells(np.zeros(n, dtype=np.int64), np.arange(n), np.arange(n), n)
        column = binned_column(rng.permutation(np.arange(n) % 10), 10, np.arange(n), cells)
        null = cluster_null([column], cells, n_live_clusters=m, n_live_nights=1, n_replicates=2000, floor=1e-4, rng=rng)
        wanted = (1 / n + 1 / m) * stats.chi2(9).ppf(0.99)
        assert null.thresholds(0.01)[0] == pytest.approx(wanted, rel=0.1), (n, m)


def test_threshold_and_p_value_agree() -> None:
    rng = np.random.default_rng(15)
    null = psi_null("cluster", 50, rng.chisquare([1, 9], size=(999, 2)))
    bounds = null.thresholds(0.01)
    assert (null.p_values(bounds * 1.0001) <= 0.01).all()
    assert (null.p_values(bounds * 0.9999) > 0.01).all()
    assert null.p_values(np.array([1e9, 1e9])) == pytest.approx(1 / 1000)


def test_p_values_step_down_by_hand() -> None:
    # Four worlds with scores of two columns, center 0 and scale 1, so the score of PSI 8 is 2 and that of 1 is 1.
    scores = np.array([[3.0, 0.0], [0.0, 1.5], [0.5, 0.5], [-1.0, 2.5]])
    null = PsiNull("night", 20, np.zeros(2), np.ones(2), scores)
    # The first is the furthest: 3, 1.5, .5 and 2.5 are the largest scores, two of which reach 2. The second is then
    # judged alone: 1.5 and 2.5 reach 1.
    assert null.p_values(np.array([8.0, 1.0])) == pytest.approx([3 / 5, 3 / 5])
    # Now the second is furthest, 2.5 and 3 reach it; of the first's own scores only 3 reaches 1, but it cannot be
    # clearer than what is further out.
    assert null.p_values(np.array([1.0, 8.0])) == pytest.approx([3 / 5, 3 / 5])
    assert null.p_values(np.array([1.0, 27.5])) == pytest.approx([2 / 5, 1 / 5])


def test_nulls_side_by_side_share_the_rate() -> None:
    rng = np.random.default_rng(18)
    one, other = (psi_null("cluster", 50, rng.chisquare(9, size=(999, 1))) for _ in range(2))
    both = joined([one, other])
    assert (both.thresholds(0.02) >= [one.thresholds(0.02)[0], other.thresholds(0.02)[0]]).all()
    assert both.of_columns(np.array([1, 0])).thresholds(0.02) == pytest.approx(both.thresholds(0.02)[::-1])


def test_a_column_that_never_moved_alarms_at_any_move() -> None:
    null = psi_null("cluster", 50, np.column_stack([np.zeros(999), np.random.default_rng(16).chisquare(9, 999)]))
    assert null.p_values(np.array([0.0, 1.0])).tolist() == [1.0, 1.0]
    assert null.p_values(np.array([1e-6, 1.0]))[0] == pytest.approx(1 / 1000)


def test_too_few_replicates_for_a_rate_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot resolve"):
        psi_null("night", 20, np.random.default_rng(17).random((50, 1))).thresholds(0.001)
