from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.certified import certified_curve, largest_share

amounts = st.just(0.0) | st.floats(1e-9, 1e6)
"""Amounts of the reward; a share of numbers that float64 holds to a few bits only is no better than they are."""


def test_budget_over_worst_night_is_the_share() -> None:
    # 0.5 lost per episode x 100 episodes = 50 a night at full traffic; a budget of 5 pays for a tenth of it.
    assert largest_share(0.5, 100.0, 5.0) == pytest.approx(0.1)


def test_no_loss_gives_all_traffic_even_without_a_budget() -> None:
    assert largest_share(0.0, 100.0, 0.0) == 1.0


def test_any_loss_without_a_budget_gives_none() -> None:
    assert largest_share(1e-9, 100.0, 0.0) == 0.0


@given(amounts, amounts, amounts)
def test_share_never_risks_more_than_the_budget_and_more_loss_never_certifies_more(
    loss: float, night: float, budget: float
) -> None:
    share = largest_share(loss, night, budget)
    assert 0 <= share <= 1
    assert share * night * loss <= budget * (1 + 1e-9)
    assert largest_share(2 * loss + 1, night, budget) <= share


def test_curve_meets_the_budget_at_the_certified_share() -> None:
    curve = certified_curve(0.5, 7.0, 100.0, 25.0, largest_share(0.5, 100.0, 25.0))
    at = curve.shares.index(curve.certified_share)
    assert curve.harms[at] == pytest.approx(curve.budget)
    assert curve.harms[-1] == pytest.approx(50.0)
    assert curve.blind_harms[-1] == pytest.approx(700.0)
    assert list(curve.shares) == sorted(curve.shares)


def test_unbounded_rewards_draw_no_blind_line() -> None:
    assert certified_curve(0.5, None, 100.0, 25.0, 0.5).blind_harms == ()


@pytest.mark.parametrize("loss", [-0.1, math.nan, math.inf])
def test_loss_that_is_no_loss_is_refused(loss: float) -> None:
    with pytest.raises(ValueError, match=r"loss = .*finite and at least 0"):
        largest_share(loss, 1.0, 1.0)
