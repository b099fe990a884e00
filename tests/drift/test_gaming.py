"""Reward that rises while an outcome falls: found where both are beyond chance, and not otherwise."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from drift.config import DriftConfig
from drift.gaming import DeclaredOutcome, StepRate, _difference, reward_against_outcomes
from drift.records import Suspicion
from drift.windows import DriftWindow
from tests.drift.worlds import window_of_nights

CONFIG = DriftConfig()


def side(
    window: DriftWindow, rng: np.random.Generator, *, reward: float = 0.0, success: float = 0.8, night_sd: float = 0.0
) -> tuple[StepRate, StepRate]:
    """Rewards and successes, of which an episode's steps share a part; a night's shock moves them in opposite ways."""
    level = rng.standard_normal(window.n_episodes)[window.episode_of_row]
    nights = np.unique(window.nights, return_inverse=True)[1]
    shock = night_sd * rng.standard_normal(nights.max() + 1)[nights][window.episode_of_row]
    rewards = reward + shock + 0.5 * level + rng.standard_normal(window.n_rows)
    succeeded = rng.random(window.n_rows) < success + 0.1 * np.tanh(level) - 0.1 * shock
    known = np.ones(window.n_rows, dtype=bool)
    return StepRate(rewards, known), StepRate(succeeded.astype(np.float64), known)


def looked_into(seed: int, *, n_nights: int = 4, night_sd: float = 0.0, **now: float) -> tuple[Suspicion, ...]:
    rng = np.random.default_rng([seed, 3])
    reference = window_of_nights(rng, n_nights=n_nights, episodes_per_night=100)
    live = window_of_nights(rng, n_nights=1, episodes_per_night=200, first_night=n_nights)
    (reward, success), (live_reward, live_success) = (
        side(reference, rng, night_sd=night_sd), side(live, rng, night_sd=night_sd, **now)
    )  # fmt: skip
    outcome = DeclaredOutcome("the success rate", True, success, live_success)
    return reward_against_outcomes(reference, live, (reward, live_reward), [outcome], CONFIG)


def test_a_reward_that_rises_while_success_falls_is_named_with_both_numbers() -> None:
    found = [looked_into(seed, reward=0.3, success=0.7) for seed in range(10)]

    assert [len(one) for one in found] == [1] * 10
    ((one,), *_) = found
    assert (one.kind, one.column, one.where) == ("reward against outcome", "reward", ("the success rate",))
    assert one.sentence.startswith("the mean reward of a step rose from ")
    assert re.search(
        r" while the success rate fell from (78|79|80|81).\d+% to (68|69|70|71).\d+% of the steps, ", one.sentence
    )


@pytest.mark.parametrize(
    "now",
    [{}, {"reward": 0.5}, {"success": 0.6}, {"reward": 0.5, "success": 0.9}, {"reward": -0.5, "success": 0.6}],
)
def test_one_alone_both_for_the_better_or_both_for_the_worse_are_not_suspicious(now: dict[str, float]) -> None:
    assert [looked_into(seed, **now) for seed in range(20)] == [()] * 20


def test_nights_that_share_shocks_stay_within_the_rate_once_nights_are_the_unit() -> None:
    """Each shock moves reward and success in opposite directions: the worst case for a rule that wants both."""
    by_clusters = sum(bool(looked_into(seed, night_sd=0.3)) for seed in range(40))
    by_nights = sum(bool(looked_into(seed, n_nights=20, night_sd=0.3)) for seed in range(40))

    assert by_nights <= 2  # binomial(40, .01) exceeds 2 once in 130
    assert by_clusters > by_nights  # optimistic before there are enough nights


def test_a_breach_that_becomes_more_frequent_is_a_fall_and_unknown_steps_count_nowhere() -> None:
    rng = np.random.default_rng(0)
    reference = window_of_nights(rng, n_nights=4, episodes_per_night=100)
    live = window_of_nights(rng, n_nights=1, episodes_per_night=200, first_night=4)
    (reward, kept), (live_reward, live_kept) = side(reference, rng), side(live, rng, reward=0.5, success=0.6)
    breach, more = (StepRate(1.0 - one.values, one.known) for one in (kept, live_kept))
    unknown = replace(more, known=np.zeros(live.n_rows, dtype=bool))

    def found(outcome: StepRate) -> tuple[Suspicion, ...]:
        declared = DeclaredOutcome("the breach rate of slo", False, breach, outcome)
        return reward_against_outcomes(reference, live, (reward, live_reward), [declared], CONFIG)

    assert "the breach rate of slo rose from " in found(more)[0].sentence
    assert found(unknown) == ()
    assert reward_against_outcomes(reference, live, (reward, live_reward), [], CONFIG) == ()


def test_the_difference_of_two_rates_by_hand() -> None:
    """Clusters (sum, steps): reference (2, 2), (0, 2), (1, 2): rate 1/2, deviations over the mean size 2: 1/2, -1/2, 0,
    so a spread of sqrt(.5 / 2) = 1/2 and a standard error of .5 / sqrt(3). Live (2, 2), (1, 2): rate 3/4, deviations
    1/4, -1/4, spread sqrt(2 / 16), standard error 1/4."""
    nights = np.full(3, np.datetime64("2026-03-01"))
    reference = DriftWindow({}, np.repeat(np.arange(3), 2), np.arange(3), nights)
    live = DriftWindow({}, np.repeat(np.arange(2), 2), np.arange(2), nights[:2])
    before = StepRate(np.array([1.0, 1, 0, 0, 1, 0]), np.ones(6, dtype=bool))
    now = StepRate(np.array([1.0, 1, 0, 1]), np.ones(4, dtype=bool))

    found = _difference(reference, live, before, now, CONFIG)

    assert found is not None
    assert (found.before, found.now, found.freedom) == (0.5, 0.75, 1)
    assert found.standard_error == pytest.approx(np.sqrt(0.25 / 3 + 1 / 16))
    weighted = replace(reference, weights=np.array([2.0, 2, 1, 1, 1, 1]))
    again = _difference(weighted, live, before, now, CONFIG)
    assert again is not None
    assert again.before == pytest.approx(5 / 8)
