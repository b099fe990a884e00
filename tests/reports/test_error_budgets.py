"""Error budgets by hand, and what holds for every one."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.error_budgets import NightEvents, Objective, error_budget

TODAY = date(2026, 1, 31)
ANSWERED = Objective(name="a", share=0.999, window_nights=30, burn_nights=1, burn_limit=3, fewest_bad=3)
IN_TIME = Objective(name="n", share=0.9, window_nights=30, burn_nights=7, burn_limit=3, fewest_bad=1, nightly=True)


def ago(nights: int, n_events: float, n_bad: float) -> NightEvents:
    return NightEvents(TODAY - timedelta(days=nights), n_events, n_bad)


def test_what_is_left_and_how_fast_it_burns_by_hand() -> None:
    # 20,000 events at 99.9 % may have 20 bad ones; 4 + 2 are 30 % of these. Tonight 2 of 4,000 are half of what may be.
    budget = error_budget(ANSWERED, [ago(0, 4000, 2), ago(3, 16000, 4)], TODAY)

    assert budget is not None
    assert (budget.n_nights, budget.n_events, budget.n_bad) == (2, 20000, 6)
    assert budget.n_allowed == pytest.approx(20)
    assert budget.left == pytest.approx(0.7)
    assert budget.burn_rate == pytest.approx(0.5)
    assert budget.nights_left == pytest.approx(0.7 * 30 / 0.5)
    assert not budget.spent
    assert not budget.burning


def test_exactly_all_of_it_is_spent_and_one_less_is_not() -> None:
    last = error_budget(ANSWERED, [ago(5, 10000, 10)], TODAY)
    assert last is not None
    assert (last.left, last.spent, last.nights_left) == (0.0, True, None)

    one_less = error_budget(ANSWERED, [ago(5, 10000, 9)], TODAY)
    assert one_less is not None
    assert not one_less.spent


def test_a_burn_rate_of_three_pages_nobody_and_more_does() -> None:
    at_three = error_budget(ANSWERED, [ago(0, 10000, 30), ago(1, 10**6, 0)], TODAY)
    above = error_budget(ANSWERED, [ago(0, 10000, 31), ago(1, 10**6, 0)], TODAY)

    assert at_three is not None
    assert above is not None
    assert (at_three.burn_rate, at_three.burning) == (3.0, False)
    assert (above.burn_rate, above.burning) == (3.1, True)


def test_a_bad_event_or_two_of_a_few_say_nothing() -> None:
    # 2 of 100 at 99.9 % are 20 times what may be; they are two all the same.
    few = error_budget(ANSWERED, [ago(0, 100, 2)], TODAY)
    assert few is not None
    assert (few.left, few.burn_rate, few.spent, few.burning) == (-19.0, 20.0, False, False)

    three = error_budget(ANSWERED, [ago(0, 100, 3)], TODAY)
    assert three is not None
    assert (three.spent, three.burning) == (True, True)


def test_the_window_ends_today_and_its_first_night_counts() -> None:
    events = [ago(-1, 1000, 9), ago(29, 1000, 1), ago(30, 1000, 9)]
    budget = error_budget(ANSWERED, events, TODAY)

    assert budget is not None
    assert (budget.n_events, budget.n_bad) == (1000, 1)


def test_without_events_there_is_no_budget_and_an_old_night_tells_no_rate() -> None:
    assert error_budget(ANSWERED, [ago(40, 1000, 9), ago(1, 0, 0)], TODAY) is None
    old = error_budget(ANSWERED, [ago(3, 1000, 9)], TODAY)
    assert old is not None
    assert (old.burn_rate, old.burning, old.spent) == (None, False, True)


def test_nights_have_the_budget_of_the_whole_window_from_the_start() -> None:
    # Of 30 nights 3 may be late at 90 %: the first of two nights is no catastrophe. One of 7 burns 1/7 / 0.1.
    young = error_budget(IN_TIME, [ago(0, 1, 0), ago(1, 1, 1)], TODAY)
    assert young is not None
    assert young.left == pytest.approx(2 / 3)
    assert young.burn_rate == pytest.approx(10 / 7)

    worse = error_budget(IN_TIME, [ago(k, 1, 1) for k in range(3)], TODAY)
    assert worse is not None
    assert (worse.left, worse.spent, worse.burning) == (0.0, True, True)


counts = st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=1, max_size=30)


@given(counts, st.floats(0.5, 0.9999))
def test_bad_events_at_the_allowed_share_leave_nothing_and_burn_at_one(
    nights: list[tuple[int, float]], share: float
) -> None:
    objective = replace(ANSWERED, share=share, burn_nights=30)
    events = [ago(k, n, n * (1 - share)) for k, (n, _) in enumerate(nights)]
    budget = error_budget(objective, events, TODAY)

    assert budget is not None
    assert budget.left == pytest.approx(0, abs=1e-6)
    assert budget.burn_rate == pytest.approx(1)


@given(counts)
def test_one_more_bad_event_never_leaves_more(nights: list[tuple[int, float]]) -> None:
    events = [ago(k, n, int(n * bad)) for k, (n, bad) in enumerate(nights)]
    worse = [replace(events[0], n_bad=events[0].n_bad + 1), *events[1:]]
    before, after = (error_budget(ANSWERED, e, TODAY) for e in (events, worse))

    assert before is not None
    assert after is not None
    assert after.left <= before.left
    assert after.spent >= before.spent
    assert after.burning >= before.burning
