from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from reports.confidence_sequence import confidence_sequence, nightly_bounds
from reports.estimators import Floats

DRAWS: dict[str, tuple[Callable[[np.random.Generator, int], Floats], float]] = {
    "fair coins": (lambda rng, n: rng.integers(0, 2, n).astype(float), 0.5),
    "rare losses": (lambda rng, n: -(rng.uniform(size=n) < 0.05).astype(float), -0.05),
    "skewed": (lambda rng, n: rng.beta(0.3, 2.0, n), 0.3 / 2.3),
}
RANGES = {"fair coins": (0.0, 1.0), "rare losses": (-1.0, 0.0), "skewed": (0.0, 1.0)}


@pytest.mark.parametrize("world", DRAWS)
def test_bounds_hold_at_all_times_together(world: str) -> None:
    draw, truth = DRAWS[world]
    rng = np.random.default_rng(0)
    missed = np.zeros(2)
    for _ in range(200):
        found = confidence_sequence(draw(rng, 400), *RANGES[world], 0.1, np.arange(10, 401, 10))
        missed += [found.lower[-1] > truth, found.upper[-1] < truth]  # running, so the last says whether ever
    assert missed.max() <= stats.binom.ppf(0.999, 200, 0.1), f"{missed} of 200 logs missed at some time, 10 % allowed"


def test_an_interval_for_one_time_is_wrong_at_some_time_far_more_often() -> None:
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(300):
        coins = rng.integers(0, 2, 600)
        sizes = np.arange(1, 601)
        lower = np.cumsum(coins) / sizes - stats.norm.ppf(0.9) * 0.5 / np.sqrt(sizes)  # 10 % at any one time
        missed += bool(np.any(lower[29:] > 0.5))
    assert missed > stats.binom.ppf(0.999, 300, 0.2), "looking 571 times should break a bound made for one look"


def test_the_first_bet_by_hand() -> None:
    # At alpha = .5 the first bet is sqrt(2 ln 2 / (1/4 * ln 2)) = sqrt(8), cut to .75 / m; a first value of 1 turns the
    # money into 1 + .75 / m * (1 - m) where m > .75 / sqrt(8), which reaches 1 / alpha = 2 for m <= 3 / 7.
    found = confidence_sequence(np.array([1.0]), 0.0, 1.0, 0.5)
    assert found.lower[0] == pytest.approx(3 / 7, abs=2e-6)
    assert found.lower[0] <= 3 / 7
    assert found.upper[0] == 1.0


def test_bounds_close_in_on_the_mean_and_adapt_to_a_small_variance() -> None:
    rng, looks = np.random.default_rng(1), np.arange(50, 5001, 50)
    loud = confidence_sequence(rng.integers(0, 2, 5000).astype(float), 0.0, 1.0, 0.05, looks)
    quiet = confidence_sequence(0.5 + 0.01 * rng.standard_normal(5000).clip(-3, 3), 0.0, 1.0, 0.05, looks)
    width = [found.upper[-1] - found.lower[-1] for found in (loud, quiet)]
    assert width[0] < 3 * np.sqrt(np.log(20) / (2 * 5000)) * 2
    assert width[1] < width[0] / 10
    assert np.all(np.diff(loud.lower) >= 0)
    assert np.all(np.diff(loud.upper) <= 0)


def test_bounds_that_were_read_stay_when_values_are_added() -> None:
    values = np.random.default_rng(2).beta(2, 5, 400)
    early, late = (confidence_sequence(values[:n], 0.0, 1.0, 0.05) for n in (200, 400))
    np.testing.assert_array_equal(early.lower, late.lower[:200])
    np.testing.assert_array_equal(early.upper, late.upper[:200])
    seldom = confidence_sequence(values, 0.0, 1.0, 0.05, np.array([50, 400]))
    assert np.all(seldom.lower <= late.lower[[49, 399]] + 1e-5)


def test_bounds_move_with_the_unit() -> None:
    values = np.random.default_rng(3).beta(2, 5, 300)
    plain, moved = confidence_sequence(values, 0, 1, 0.05), confidence_sequence(40 * values - 30, -30, 10, 0.05)
    np.testing.assert_allclose(moved.lower, 40 * plain.lower - 30, atol=1e-4)
    mirrored = confidence_sequence(-values, -1, 0, 0.05)
    np.testing.assert_allclose(mirrored.lower, -plain.upper, atol=1e-5)


def test_a_mean_that_moved_crosses_the_bounds() -> None:
    moved = np.concatenate([np.full(200, 0.8), np.full(4000, 0.1)])
    assert confidence_sequence(moved, 0, 1, 0.01, np.arange(100, 4201, 100)).moved
    assert not confidence_sequence(moved[:200], 0, 1, 0.01).moved


def test_nights_count_a_cluster_once_and_when_it_came() -> None:
    values = np.array([0.2, 0.4, 0.9, 0.6, 0.1])
    found = nightly_bounds(
        values,
        np.array(["a", "a", "b", "c", "a"]),
        np.array([1, 1, 1, 2, 3]),
        low=0,
        high=1,
        alpha=0.05,
        rng=np.random.default_rng(0),
    )
    assert [(n.night, n.n_clusters) for n in found] == [(1, 2), (2, 3), (3, 3)]
    assert [n.mean for n in found] == pytest.approx([0.6, 0.6, 0.6])  # a is .3 by its first night, b .9, c .6
    either = [confidence_sequence(np.array([*night, 0.6]), 0, 1, 0.05) for night in ((0.3, 0.9), (0.9, 0.3))]
    assert any((found[-1].lower, found[-1].upper) == pytest.approx((w.lower[-1], w.upper[-1])) for w in either)


def test_the_rhythm_of_a_day_is_no_evidence() -> None:
    """Mornings earn .9 and evenings .1, every day. By the clock a day refutes its own mean; at random none does."""
    day = np.repeat([0.9, 0.1], 500)
    values, nights = np.tile(day, 3), np.repeat([1, 2, 3], 1000)
    found = nightly_bounds(values, np.arange(3000), nights, low=0, high=1, alpha=0.01, rng=np.random.default_rng(1))
    assert all(night.lower < 0.5 < night.upper for night in found)
    assert confidence_sequence(values, 0, 1, 0.01, np.array([1000])).lower[0] > 0.5


def test_a_night_that_is_added_does_not_reorder_those_before() -> None:
    values, nights = np.random.default_rng(4).random(300), np.repeat([1, 2, 3], 100)
    clusters = np.random.default_rng(5).permutation(300)
    long, short = (
        nightly_bounds(values[:n], clusters[:n], nights[:n], low=0, high=1, alpha=0.05, rng=np.random.default_rng(2))
        for n in (300, 200)
    )
    assert long[:2] == short


@pytest.mark.parametrize(
    ("values", "low", "high", "says"),
    [
        (np.array([0.5, 1.5]), 0.0, 1.0, r"1 of 2 values lie outside \[0, 1\], first 1.5 at position 1"),
        (np.array([0.5, np.nan]), 0.0, 1.0, "1 of 2 values lie outside"),
        (np.array([0.5]), 0.0, np.inf, "set reward.min and reward.max"),
        (np.array([]), 0.0, 1.0, "no value"),
    ],
)
def test_what_cannot_be_bounded_is_refused(values: Floats, low: float, high: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        confidence_sequence(values, low, high, 0.05)
