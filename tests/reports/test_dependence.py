from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.dependence import design_effect


def p_value(terms: np.ndarray, units: np.ndarray, seed: int = 0) -> float:
    effect = design_effect(
        "night",
        units,
        "cluster",
        np.arange(len(terms)),
        terms,
        ignored=True,
        rng=np.random.default_rng(seed),
    )
    return effect.p_value


def test_design_effect_by_hand() -> None:
    # Terms 1, 1, -1, -1 in two nights of two: totals 2 and -2, so 2 (4 + 4) / 16 = 1 against 4/3 * 4 / 16 = 1/3.
    terms, rng = np.array([1.0, 1.0, -1.0, -1.0]), np.random.default_rng(0)
    effect = design_effect("night", np.array([0, 0, 1, 1]), "cluster", np.arange(4), terms, ignored=True, rng=rng)
    assert effect.value == pytest.approx(3.0)
    # Of the 6 ways to deal two of four, 2 are as far apart as this.
    assert effect.p_value == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("sizes", [(100, 100), (170, 30), (60, 60, 60), (150, 10, 10, 30)])
def test_few_independent_nights_are_called_dependent_as_often_as_promised(sizes: tuple[int, ...]) -> None:
    rng, units = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    n_alarms = sum(p_value(rng.lognormal(0, 1.5, len(units)), units, seed) <= 0.05 for seed in range(100))
    low, high = stats.binom.ppf([0.001, 0.999], 100, 0.05)
    assert low <= n_alarms <= high


def test_a_shock_of_two_unequal_nights_is_found() -> None:
    # A chi-square takes the nights for equal ones and sees this in fewer logs.
    rng, units = np.random.default_rng(1), np.repeat([0, 1], [170, 30])
    found = [p_value(rng.normal(size=200) + 1.0 * units, units, seed) for seed in range(20)]
    assert np.mean(np.array(found) <= 0.05) > 0.9


def test_clusters_that_cross_nights_are_judged_by_the_chi_square() -> None:
    rng = np.random.default_rng(2)
    nights, services = np.arange(400) % 8, np.arange(400) // 8 % 10
    terms = rng.normal(size=400)
    effect = design_effect("night", nights, "cluster", services, terms, ignored=True, rng=rng)
    assert effect.p_value == pytest.approx(float(stats.chi2.sf(effect.value * 7, 7)))


def test_nights_of_one_cluster_each_say_nothing_new() -> None:
    rng, nights = np.random.default_rng(3), np.arange(200) % 2
    effect = design_effect("night", nights, "cluster", nights, rng.normal(size=200), ignored=False, rng=rng)
    assert effect.value == pytest.approx(1.0)
    assert effect.p_value == 1.0
