"""Like hours with like: what is left out, what is refused, and what a daily rhythm then no longer does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.few_groups import Grouping
from drift.gaming import DeclaredOutcome, StepRate, reward_against_outcomes
from drift.hours import in_same_hours
from drift.records import DriftReport
from drift.suspicion import confined_shifts
from drift.windows import DriftWindow
from tests.drift.worlds import Change, window_of_nights

HOUR = DriftConfig(seasonality="hour")


def nights(seed: int, n: int, *, first: int = 0, hours: tuple[int, int] = (0, 24), shift: float = 0.0) -> DriftWindow:
    """Nights of 60 episodes whose numbers follow the hour by a whole standard deviation."""
    return window_of_nights(
        np.random.default_rng([seed, first]), n_nights=n, episodes_per_night=60, first_night=first, hours=hours,
        rhythm=1.0, change=Change(shift=shift),
    )  # fmt: skip


def hours_of(window: DriftWindow) -> Any:
    assert window.hours is not None
    return window.hours


def compared(config: DriftConfig, *, n_nights: int = 7, shift: float = 0.0, seed: int = 1) -> DriftReport:
    """Live nights from midnight to noon against whole days."""
    live = nights(seed, 1, first=n_nights, hours=(0, 12), shift=shift)
    return measure_drift(nights(seed, n_nights), live, config)


@pytest.mark.parametrize("n_nights", [7, 21])
def test_half_a_day_drifts_among_all_hours_and_not_among_its_own(n_nights: int) -> None:
    alike = compared(DriftConfig(), n_nights=n_nights)
    assert len(alike.drifted_columns) >= 2

    like_with_like = compared(HOUR, n_nights=n_nights)
    assert like_with_like.status == "stable"
    assert like_with_like.left_out == ""
    apart = [c.wasserstein or 0.0 for c in like_with_like.columns if c.name in ("x1", "x2")]
    assert max(apart) < min(float(c.wasserstein or 0) for c in alike.columns if c.name in ("x1", "x2"))


@pytest.mark.parametrize("n_nights", [7, 21])
def test_a_shift_is_still_found_hour_by_hour(n_nights: int) -> None:
    assert [c.name for c in compared(HOUR, n_nights=n_nights, shift=1.5).drifted_columns] == ["x0"]


def test_hours_that_the_reference_lacks_are_named_and_left_out_with_their_share() -> None:
    reference, live = nights(0, 7, hours=(0, 18)), nights(0, 1, first=7)
    late = hours_of(live) >= 18
    n = int(late.sum())
    report = measure_drift(reference, live, HOUR)

    assert report.status == "stable"
    assert report.left_out == (
        f"{n} of 60 live episodes ({n / 60:.0%}) began in the hours 18, 19, 20, 21, 22, 23 (of [time] zone, or else "
        "UTC), of which the reference holds too few episodes"
    )
    assert report.sentence.endswith(f"Left out: {report.left_out}.")
    judged = {column.name: column.live_rows for column in report.columns}
    assert judged["x0"] == int((~late)[live.episode_of_row].sum())


def test_too_little_left_is_refused_with_how_much_it_takes() -> None:
    report = measure_drift(nights(0, 7, hours=(0, 6)), nights(0, 1, first=7), HOUR)

    assert report.status == "not enough data"
    assert "live episodes (77%) began in the hours 06, 09, 10, 11, 12" in report.sentence
    assert "are left, and it takes 30" in report.sentence
    assert {column.status for column in report.columns} == {"not enough data"}


def test_an_hour_of_few_clusters_is_not_known_and_of_no_start_neither() -> None:
    reference = nights(0, 7, hours=(0, 12))
    hours = np.array(hours_of(reference))
    fewest = np.flatnonzero(hours == 3)[4:]
    hours[fewest] = 4  # hour 3 has four clusters left
    live = nights(0, 1, first=7, hours=(0, 12))
    unsaid = np.array(hours_of(live))
    unsaid[unsaid == 5] = -1
    same = in_same_hours([replace(reference, hours=hours)], replace(live, hours=unsaid), live, HOUR)

    assert set(np.unique(hours_of(live))) - set(hours_of(same.live).tolist()) == {3, 5}
    assert "the hour 03 (of [time] zone, or else UTC), of which" in same.left_out
    assert same.left_out.endswith("or at a time that the log does not say")


def test_windows_without_hours_are_refused_not_compared() -> None:
    live = nights(0, 1, first=7)
    without = replace(nights(0, 7), hours=None)
    report = measure_drift(without, live, HOUR)
    assert report.status == "not enough data"
    assert "0 are left" in report.sentence
    assert measure_drift(nights(0, 7), replace(live, hours=None), HOUR).status == "not enough data"


def test_an_hour_of_a_weekday_is_another_one_than_that_of_the_next() -> None:
    config = DriftConfig(seasonality="weekday and hour")
    sundays = nights(0, 28)  # night 0 is a Sunday
    sunday = nights(0, 1, first=28, hours=(0, 12))
    same = in_same_hours([sundays], sunday, sunday, config)
    counts = np.bincount(hours_of(sundays)[sundays.day_numbers % 7 == sunday.day_numbers[0] % 7], minlength=24)
    few = {f"Sun {hour:02d}" for hour in np.unique(hours_of(sunday)) if counts[hour] < 5}
    assert {name for name in (f"Sun {hour:02d}" for hour in range(24)) if name in same.left_out} == few
    assert measure_drift(sundays, sunday, config).status == "stable"


def test_slow_drift_is_compared_hour_by_hour_too() -> None:
    reference, recent = nights(0, 21), nights(0, 10, first=21, hours=(0, 12))
    live = recent.subset(recent.nights == recent.nights.max())
    assert measure_drift(reference, live, HOUR, recent=recent).slow == ()
    assert measure_drift(reference, live, DriftConfig(false_alarm_rate=0.01), recent=recent).status == "drifted"


def test_the_guard_looks_at_what_was_compared_alone() -> None:
    """Live episodes of an hour that the reference lacks are no sign of poison."""
    reference, live = nights(0, 7, hours=(0, 12)), nights(0, 1, first=7, hours=(0, 14), shift=1.5)
    report = measure_drift(reference, live, HOUR)
    assert [c.name for c in report.drifted_columns] == ["x0"]
    labels = np.where(hours_of(live) >= 12, "late", "early")
    grouping = Grouping("few sources", labels, (None,))
    found = confined_shifts(
        reference, live, report, HOUR, groups=[grouping], episodes=np.arange(60).astype(str),
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found == ()


def test_reward_and_outcome_that_follow_the_hour_are_not_suspicious() -> None:
    """In the morning the reward is high and success rare, every day: half a day's log shows that alone."""
    reference, live = nights(0, 7), nights(0, 1, first=7, hours=(0, 12))

    def sides(window: DriftWindow) -> tuple[StepRate, StepRate]:
        morning = (hours_of(window) < 12)[window.episode_of_row]
        draws = np.random.default_rng(window.n_rows).random((2, window.n_rows))
        known = np.ones(window.n_rows, dtype=bool)
        reward = StepRate(morning + draws[0], known)
        return reward, StepRate((draws[1] < np.where(morning, 0.5, 0.9)).astype(float), known)

    (reward, success), (live_reward, live_success) = sides(reference), sides(live)
    outcome = DeclaredOutcome("the success rate", True, success, live_success)
    rewards = (reward, live_reward)
    assert len(reward_against_outcomes(reference, live, rewards, [outcome], DriftConfig())) == 1
    assert reward_against_outcomes(reference, live, rewards, [outcome], HOUR) == ()
