"""The sequential comparison: by hand, by its invariances, and by how often it errs over all looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.canary_comparison import Arms, compare, without_rhythm


def arms(candidate: list[int], share: float | list[float] = 0.5, units: list[int] | None = None) -> Arms:
    n = len(candidate)
    return Arms(
        candidate=np.array(candidate, dtype=bool),
        share=np.broadcast_to(np.array(share, dtype=float), (n,)).copy(),
        units=np.arange(n) if units is None else np.array(units),
        hours=np.zeros(n, dtype=np.int64),
    )


def test_two_episodes_a_side_by_hand() -> None:
    # Candidate 1 and 3: mean 2, influences -1/2 and 1/2; champion 0 and 2 the same around 1.
    found = compare(arms([1, 0, 1, 0]), np.array([1.0, 0, 3, 2]), np.ones(4), alpha=0.05, tuned_at=10.0)
    assert found is not None
    assert (found.candidate.value, found.champion.value, found.difference.value) == (2.0, 1.0, 1.0)
    # Variance 4 x 1/4, times n / (n - 1) = 2; information 4 x 1/4 = 1.
    log = -2 * math.log(0.05)
    mixed = 10.0 / (log + math.log(log) + 1)
    factor = math.sqrt(2 * (1 + mixed) * math.log1p(math.sqrt((1 + mixed) / mixed) / 0.1))
    assert found.difference.upper - 1.0 == pytest.approx(factor * math.sqrt(2.0))
    assert 1.0 - found.difference.lower == pytest.approx(factor * math.sqrt(2.0))


def test_a_rising_share_in_a_changing_world_makes_no_difference_where_there_is_none() -> None:
    # Everyone earns 0 while one in ten is the candidate's, and 10 when it is half: plain means differ by 2.85.
    candidate = [1] + [0] * 9 + [1, 0] * 5
    share = [0.1] * 10 + [0.5] * 10
    values = np.repeat([0.0, 10.0], 10)
    found = compare(arms(candidate, share), values, np.ones(20), alpha=0.05, tuned_at=10.0)
    assert found is not None
    assert found.difference.value == pytest.approx(0.0)
    assert values[np.array(candidate) == 1].mean() - values[np.array(candidate) == 0].mean() > 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_units_and_the_scale_of_rewards_do_not_matter(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    candidate = (rng.random(40) < 0.5).astype(int).tolist()
    candidate[:4] = [0, 1, 0, 1]
    values = rng.normal(size=40)
    one = compare(arms(candidate), values, np.ones(40), alpha=0.05, tuned_at=50.0)
    other = compare(arms(candidate), scale * values + shift, np.ones(40), alpha=0.05, tuned_at=50.0)
    swapped = compare(arms([1 - c for c in candidate]), values, np.ones(40), alpha=0.05, tuned_at=50.0)
    assert one is not None
    assert other is not None
    assert swapped is not None
    assert other.difference.lower == pytest.approx(scale * one.difference.lower)
    assert swapped.difference.lower == pytest.approx(-one.difference.upper)


def test_a_rate_without_a_single_hit_is_not_known_to_be_zero() -> None:
    half = [0, 1] * 100
    found = compare(arms(half), np.zeros(200), np.full(200, 3.0), alpha=0.05, tuned_at=250.0, is_rate=True)
    assert found is not None
    assert found.candidate.value == 0.0
    # Not below the exact bound for one look, 1 - .05^(1/100), about 3 in 100.
    assert found.candidate.upper > 1 - 0.05 ** (1 / 100)


def test_what_the_candidate_has_not_shown_is_taken_from_the_champion() -> None:
    """Fifty episodes of the candidate without a loss that one in a hundred of the champion's shows prove nothing."""
    candidate = [0] * 950 + [1] * 50
    values = np.where(np.arange(1000) % 95 == 0, -50.0, 0.0)
    values[950:] = 0.0
    found = compare(arms(candidate, 0.05), values, np.ones(1000), alpha=0.05, tuned_at=250.0)
    assert found is not None
    assert found.difference.lower < -1.0 < 0.5 < found.difference.value


def test_nothing_is_said_of_one_side_alone() -> None:
    assert compare(arms([1, 1, 0]), np.ones(3), np.ones(3), alpha=0.05, tuned_at=10.0) is None
    assert compare(arms([1, 1, 0, 0]), np.zeros(4), np.zeros(4), alpha=0.05, tuned_at=10.0) is None


def test_clusters_are_the_unit() -> None:
    rng = np.random.default_rng(0)
    candidate = rng.random(600) < 0.5
    candidate = np.repeat(candidate[::6], 6)  # a cluster is on one side, and its episodes are copies of one another
    values = np.repeat(rng.normal(size=100), 6)
    whole = compare(
        arms(candidate.astype(int).tolist(), units=(np.arange(600) // 6).tolist()),
        values,
        np.ones(600),
        alpha=0.05,
        tuned_at=50.0,
    )
    once = compare(arms(candidate[::6].astype(int).tolist()), values[::6], np.ones(100), alpha=0.05, tuned_at=50.0)
    assert whole is not None
    assert once is not None
    assert whole.difference.lower == pytest.approx(once.difference.lower)


def test_the_rhythm_of_the_day_is_taken_off_by_what_was_known_before() -> None:
    days = 4
    hours = np.repeat(np.arange(24 * days), 10)
    values = np.where(hours % 24 < 12, 5.0, -5.0)
    every = Arms(np.arange(len(hours)) % 2 == 0, np.full(len(hours), 0.5), np.arange(len(hours)), hours)
    rest = without_rhythm(every, values, np.ones(len(hours)))
    assert np.all(rest[hours >= 24] == 0.0)
    assert rest[0] == values[0]  # nothing was known yet
    again = without_rhythm(every, np.where(hours < 48, values, 99.0), np.ones(len(hours)))
    assert np.all(again[hours < 48] == rest[hours < 48])


@pytest.mark.parametrize("shape", ["normal", "skewed", "trend"])
def test_bounds_hold_over_all_looks(shape: str) -> None:
    """200 canaries of 4,000 episodes, read 40 times, at 5 % a side: in 99 % of such runs at most 18 errors."""
    rng, errors = np.random.default_rng(7), [0, 0]
    for _ in range(200):
        share = np.repeat([0.05, 0.2, 0.5, 0.5], 1000)
        candidate = rng.random(4000) < share
        values = rng.normal(size=4000) if shape != "skewed" else -rng.lognormal(0, 1, 4000)
        if shape == "trend":
            values = values + np.linspace(0, 3, 4000)
        crossed = [False, False]
        for n in range(100, 4001, 100):
            a = Arms(candidate[:n], share[:n], np.arange(n), np.arange(n) // 160)
            if a.n_units(True) < 50:
                continue
            found = compare(a, values[:n], np.ones(n), alpha=0.05, tuned_at=250.0)
            assert found is not None
            crossed = [crossed[0] or found.difference.lower > 0, crossed[1] or found.difference.upper < 0]
        errors = [e + c for e, c in zip(errors, crossed, strict=True)]
    assert max(errors) <= 18
