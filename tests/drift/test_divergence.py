from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from drift.divergence import (
    js_divergence,
    kl_divergence,
    population_stability_index,
    psi_of_rows,
    wasserstein_distance,
)

REFERENCE = np.array([16, 18, 16, 14, 12, 12]) / 88
LIVE = np.array([16, 16, 16, 16, 16, 8]) / 88


@st.composite
def two_distributions(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n_bins = draw(st.integers(1, 12))
    counts = st.lists(st.integers(0, 1000), min_size=n_bins, max_size=n_bins).filter(any)
    reference, live = np.array(draw(counts), dtype=float), np.array(draw(counts), dtype=float)
    return reference / reference.sum(), live / live.sum()


def test_golden_two_bins() -> None:
    # (.6 - .5) ln(.6 / .5) + (.4 - .5) ln(.4 / .5) = .1 (ln 1.2 - ln .8) = .1 ln 1.5
    psi = population_stability_index((0.5, 0.5), (0.6, 0.4), floor=1e-4)
    assert psi == pytest.approx(0.1 * math.log(1.5), abs=1e-15)


def test_golden_six_bins() -> None:
    # Sums over the six bins of p ln(p / q), counts of 88 each.
    assert kl_divergence(LIVE, REFERENCE, floor=1e-4) == pytest.approx(0.0189096770, abs=5e-11)
    assert kl_divergence(REFERENCE, LIVE, floor=1e-4) == pytest.approx(0.0183087046, abs=5e-11)
    assert population_stability_index(REFERENCE, LIVE, floor=1e-4) == pytest.approx(0.0372183816, abs=1e-10)


def test_kl_is_of_live_from_reference() -> None:
    # Only the live window fills the second bin: KL(live || reference) is infinite, the reverse is ln 2.
    assert kl_divergence((1.0, 0.0), (0.5, 0.5), floor=0.0) == math.inf
    assert kl_divergence((0.5, 0.5), (1.0, 0.0), floor=0.0) == pytest.approx(math.log(2))


def test_js_of_disjoint_distributions_is_ln_2() -> None:
    assert js_divergence((1.0, 0.0), (0.0, 1.0)) == pytest.approx(math.log(2))


@given(two_distributions())
def test_psi_is_symmetric_zero_on_itself_and_the_sum_of_both_kl(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    reference, live = pair
    psi = population_stability_index(reference, live, floor=1e-3)
    assert psi == pytest.approx(population_stability_index(live, reference, floor=1e-3), abs=1e-12)
    assert population_stability_index(live, live, floor=1e-3) == 0.0
    both = kl_divergence(reference, live, floor=1e-3) + kl_divergence(live, reference, floor=1e-3)
    assert psi == pytest.approx(both, abs=1e-12)


@given(two_distributions(), st.sampled_from([0.0, 1e-4, 0.05]))
def test_kl_is_never_negative_and_js_stays_below_ln_2(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]], floor: float
) -> None:
    reference, live = pair
    assert kl_divergence(reference, live, floor=floor) >= 0.0
    assert 0.0 <= js_divergence(reference, live) <= math.log(2) + 1e-12


def test_rows_agree_with_one_at_a_time() -> None:
    rng = np.random.default_rng(3)
    reference, live = rng.dirichlet(np.ones(5), size=7), rng.dirichlet(np.ones(5), size=7)
    wanted = [population_stability_index(r, v, floor=1e-3) for r, v in zip(reference, live, strict=True)]
    np.testing.assert_allclose(psi_of_rows(reference, live, floor=1e-3), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("reference", "live", "floor", "message"),
    [
        ((0.5, 0.5), (1.0,), 1e-4, "same bins"),
        ((0.5, 0.6), (0.5, 0.5), 1e-4, "reference_probs wants shares"),
        ((0.5, 0.5), (math.nan, 0.5), 1e-4, "live_probs wants shares"),
        ((0.5, 0.5), (0.5, 0.5), 0.6, "floor = 0.6 is outside"),
    ],
)
def test_shares_that_are_none_are_refused(
    reference: tuple[float, ...], live: tuple[float, ...], floor: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        population_stability_index(reference, live, floor=floor)


def test_wasserstein_of_a_shift_is_the_shift() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    assert wasserstein_distance(values, values + 0.25) == pytest.approx(0.25)


def test_wasserstein_agrees_with_scipy_weighted_and_not() -> None:
    rng = np.random.default_rng(1)
    reference, live, weights = rng.standard_normal(300), rng.exponential(size=170).round(1), rng.random(300)
    assert wasserstein_distance(reference, live) == pytest.approx(stats.wasserstein_distance(reference, live))
    wanted = stats.wasserstein_distance(reference, live, u_weights=weights)
    assert wasserstein_distance(reference, live, reference_weights=weights) == pytest.approx(wanted)


def test_wasserstein_of_the_wildest_values_is_a_number() -> None:
    # Half of the mass has the way from the smallest to the largest float before it: as far as half of that is a float.
    largest = np.finfo(np.float64).max
    assert wasserstein_distance(np.array([-largest, -largest]), np.array([-largest, largest])) == pytest.approx(largest)
    assert wasserstein_distance(np.array([-largest, largest]), np.array([-largest, largest])) == 0.0
    assert wasserstein_distance(np.array([-largest]), np.array([largest])) == largest


def test_wasserstein_refuses_what_it_cannot_order() -> None:
    with pytest.raises(ValueError, match="both sides, found 0 and 2"):
        wasserstein_distance(np.empty(0), np.zeros(2))
    with pytest.raises(ValueError, match="finite"):
        wasserstein_distance(np.array([np.nan]), np.zeros(2))
