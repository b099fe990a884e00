"""Counting capped actions: exact windows, clocks that go back, and batches that share what is left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.caps import Cap
from offline_dqn.caps import CapCounter, Turn, decide_in_turn, microseconds

HOUR_US = 3_600_000_000


def hourly(at_most: int, **changes: str) -> CapCounter:
    return CapCounter({"up": Cap.model_validate({"at_most": at_most, "per": "1h", **changes})})


def taken(counter: CapCounter, turn: Turn) -> float:
    return counter.taken(turn)["taken_up"]


def test_an_action_exactly_one_window_old_is_outside_and_a_microsecond_younger_is_inside() -> None:
    counter = hourly(3)
    counter.count("up", Turn(1000))

    assert taken(counter, Turn(1000)) == 1.0
    assert taken(counter, Turn(1000 + HOUR_US - 1)) == 1.0
    assert taken(counter, Turn(1000 + HOUR_US)) == 0.0


def test_a_clock_that_goes_back_frees_nothing_and_forgets_nothing() -> None:
    counter = hourly(3)
    counter.count("up", Turn(5 * HOUR_US))
    counter.count("up", Turn(1 * HOUR_US))  # counts as made at the newest instant

    assert taken(counter, Turn(1 * HOUR_US)) == 2.0
    assert taken(counter, Turn(6 * HOUR_US - 1)) == 2.0
    assert taken(counter, Turn(6 * HOUR_US)) == 0.0


def test_shares_are_counted_apart() -> None:
    counter = hourly(3, by="episode")
    counter.count("up", Turn(1, "e1"))

    assert [taken(counter, Turn(2, episode)) for episode in ("e1", "e2")] == [1.0, 0.0]


def test_actions_without_a_cap_are_not_counted() -> None:
    counter = hourly(3)

    assert not counter.count("down", Turn(1))
    assert taken(counter, Turn(1)) == 0.0


def test_count_tells_when_the_cap_is_reached() -> None:
    counter = hourly(2)

    assert [counter.count("up", Turn(n)) for n in range(3)] == [False, True, False]


def test_a_batch_of_64_with_3_left_takes_3() -> None:
    counter, asked = hourly(5), []
    for n in range(2):
        counter.count("up", Turn(n))

    def choose(places: list[int], counters: list[dict[str, float]]) -> list[str]:
        asked.append(len(places))
        return ["up" if row["taken_up"] < 5 else "hold" for row in counters]

    chosen = decide_in_turn(counter, [Turn(10)] * 64, choose, str)

    assert chosen == ["up"] * 3 + ["hold"] * 61
    assert asked == [64, 61]


def test_a_batch_that_reaches_no_cap_is_chosen_once() -> None:
    asked = []

    def choose(places: list[int], counters: list[dict[str, float]]) -> list[str]:
        asked.append(places)
        return ["up" for _ in counters]

    decide_in_turn(hourly(65), [Turn(10)] * 64, choose, str)

    assert asked == [list(range(64))]


def test_a_batch_of_two_instants_sees_at_the_second_what_has_expired_by_then() -> None:
    counter = hourly(1)
    counter.count("up", Turn(0))

    def choose(_: list[int], counters: list[dict[str, float]]) -> list[str]:
        return ["up" if row["taken_up"] < 1 else "hold" for row in counters]

    turns = [Turn(HOUR_US - 1), Turn(HOUR_US), Turn(HOUR_US)]

    assert decide_in_turn(counter, turns, choose, str) == ["hold", "up", "hold"]


BATCHES = st.lists(
    st.lists(st.tuples(st.integers(-30, 90), st.sampled_from("ab")), min_size=1, max_size=12), min_size=1, max_size=12
)


@given(batches=BATCHES, at_most=st.integers(1, 4), by=st.sampled_from(["all", "episode"]), seed=st.integers(0, 9))
def test_no_window_ever_holds_more_than_the_cap(
    batches: Sequence[Sequence[tuple[int, str]]], at_most: int, by: str, seed: int
) -> None:
    """Whatever is chosen where it is permitted, on clocks that jump by -30 to 90 minutes between decisions."""
    counter, rng, clock, newest = hourly(at_most, by=by), np.random.default_rng(seed), 10**15, 0
    taken_at: dict[str, list[int]] = {}
    for batch in batches:
        turns = []
        for minutes, episode in batch:
            clock += minutes * 60_000_000
            turns.append(Turn(clock, episode))
        keen = rng.random(len(turns)) < 0.8

        def choose(places: list[int], counters: list[dict[str, float]]) -> list[str]:
            return ["up" if keen[p] and row["taken_up"] < at_most else "hold" for p, row in zip(places, counters)]  # noqa: B023, B905  # used at once

        for turn, action in zip(turns, decide_in_turn(counter, turns, choose, str), strict=True):
            newest = max(newest, turn.at_us)
            if action == "up":
                taken_at.setdefault(turn.episode if by == "episode" else "", []).append(newest)
    for instants in taken_at.values():
        for last in instants:
            within = sum(last - HOUR_US < instant <= last for instant in instants)
            assert within <= at_most


def test_the_probability_of_a_decision_is_true_given_its_counter() -> None:
    """Over many batches of two with one left, each choosing `up` with 1/2 where permitted: of those second decisions
    that saw one left, half took it. Were the second chosen anew only when it took the last one, none would have."""
    rng, saw, took = np.random.default_rng(1), 0, 0
    for _ in range(4000):

        def choose(_: list[int], counters: list[dict[str, float]]) -> list[tuple[float, str]]:
            return [
                (row["taken_up"], "up" if row["taken_up"] < 1 and rng.random() < 0.5 else "hold") for row in counters
            ]

        _, (seen, action) = decide_in_turn(hourly(1), [Turn(1), Turn(1)], choose, lambda choice: choice[1])
        saw += seen == 0.0
        took += seen == 0.0 and action == "up"

    assert saw == pytest.approx(2000, abs=150)  # the first left it half of the time
    assert took / saw == pytest.approx(0.5, abs=0.05)


def test_instants_are_exact_and_know_their_zone() -> None:
    berlin = timezone(timedelta(hours=2))

    assert microseconds(datetime(2026, 7, 1, 2, 0, 0, 1, tzinfo=berlin)) == microseconds(
        datetime(2026, 7, 1, 0, 0, 0, 1, tzinfo=UTC)
    )
    with pytest.raises(ValueError, match="has no zone"):
        microseconds(datetime(2026, 7, 1))  # that is what is refused
