"""Slow change, and since when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.windows import DriftColumn, DriftWindow
from tests.drift.worlds import Change, newest_night, window_of_nights


def windows(
    seed: int, *, n_since: int, change: Change, n_changed: int | None = None
) -> tuple[DriftWindow, DriftWindow]:
    """21 reference nights with shocks, and the nights since, of which the last `n_changed` changed."""
    rng = np.random.default_rng(seed)
    shape = {"episodes_per_night": 60, "night_sd": 0.1}
    reference = window_of_nights(rng, n_nights=21, **shape)  # type: ignore[arg-type]
    n_changed = n_since if n_changed is None else n_changed
    changed = window_of_nights(
        rng, n_nights=n_changed, first_night=21 + n_since - n_changed, change=change, **shape  # type: ignore[arg-type]
    )  # fmt: skip
    if n_changed == n_since:
        return reference, changed
    before = window_of_nights(rng, n_nights=n_since - n_changed, first_night=21, **shape)  # type: ignore[arg-type]
    return reference, _one_after_the_other(before, changed)


def _one_after_the_other(first: DriftWindow, second: DriftWindow) -> DriftWindow:
    columns = {
        name: replace(column, values=np.concatenate([column.values, second.columns[name].values]))
        for name, column in first.columns.items()
    }
    return DriftWindow(
        columns,
        np.concatenate([first.episode_of_row, second.episode_of_row + first.n_episodes]),
        np.concatenate([first.clusters, second.clusters + first.n_episodes]),
        np.concatenate([first.nights, second.nights]),
    )


def test_what_moves_slowly_is_found_though_no_night_stands_out() -> None:
    reference, recent = windows(0, n_since=14, change=Change(shift=0.35))
    report = measure_drift(reference, newest_night(recent), DriftConfig(), recent=recent)
    assert "x0" in {one.name for one in report.slow}
    assert not any(column.drifted for column in report.columns)
    assert report.status == "drifted"
    assert "x0 over 14 nights (PSI " in report.sentence
    slow = next(one for one in report.slow if one.name == "x0")
    assert slow.psi > slow.threshold >= 0.02
    alone = measure_drift(reference, newest_night(recent), DriftConfig(slow_nights=1), recent=recent)
    assert (alone.status, alone.slow) == ("stable", ())


def test_a_drifted_column_says_since_which_night() -> None:
    reference, recent = windows(1, n_since=9, change=Change(shift=1.5), n_changed=3)
    report = measure_drift(reference, newest_night(recent), DriftConfig(), recent=recent)
    x0 = report.columns[0]
    assert x0.drifted
    assert x0.since == "2026-03-28"  # night 27: nights 21 to 26 are as before
    assert "since 2026-03-28" in report.sentence
    assert report.nightly is not None
    assert report.nightly.nights[0] == "2026-03-22"
    assert report.nightly.n_episodes == (60,) * 9
    assert report.nightly.relative == (1.0,) * 9  # as many episodes in each
    beyond = np.array(report.nightly.psi[0]) > report.nightly.threshold[0]
    assert beyond.tolist() == [False] * 6 + [True] * 3


def test_nights_missing_from_the_calendar_are_left_out() -> None:
    reference, recent = windows(2, n_since=6, change=Change())
    moved = replace(recent, nights=np.where(recent.nights > recent.nights[120], recent.nights + 3, recent.nights))
    report = measure_drift(reference, newest_night(moved), DriftConfig(), recent=moved)
    assert report.nightly is not None
    assert report.nightly.nights == ("2026-03-22", "2026-03-23", "2026-03-24", "2026-03-28", "2026-03-29", "2026-03-30")


def test_recent_nights_must_end_with_the_live_ones() -> None:
    reference, recent = windows(3, n_since=3, change=Change())
    with pytest.raises(ValueError, match="must be the newest ones"):
        measure_drift(reference, reference, DriftConfig(), recent=recent)


def test_columns_may_have_a_reference_of_their_own() -> None:
    reference, recent = windows(4, n_since=3, change=Change(shift=2.0))
    own = replace(recent, columns={"x0": recent.columns["x0"]}, nights=recent.nights - 30)
    report = measure_drift([reference, own], newest_night(recent), DriftConfig(), recent=recent)
    assert [column.name for column in report.columns] == list(reference.columns)
    assert report.status == "stable"  # x0 is compared with nights that had its shift
    assert measure_drift(reference, newest_night(recent), DriftConfig(), recent=recent).columns[0].drifted


def test_weekdays_without_a_reference_are_not_enough_data() -> None:
    rng = np.random.default_rng(5)
    reference = window_of_nights(rng, n_nights=5, episodes_per_night=60)  # Sunday to Thursday
    live = window_of_nights(rng, n_nights=1, episodes_per_night=60, first_night=5)
    report = measure_drift(reference, live, DriftConfig(seasonality="weekday"))
    assert report.status == "not enough data"
    assert "the reference holds 0 Fridays, it takes 1" in report.sentence


def days(rng: np.random.Generator, weekdays: list[int], first: str, per_day: int = 30) -> DriftWindow:
    """One column on days of the calendar, given as days after `first`."""
    night = np.repeat(np.array(weekdays), per_day)
    n = len(night)
    columns = {"x": DriftColumn("numeric", rng.standard_normal(n))}
    return DriftWindow(columns, np.arange(n), np.arange(n), np.datetime64(first) + night)


@pytest.mark.parametrize(
    "reference_days",
    [
        list(range(5)),  # Monday to Friday: clusters are the unit
        [d for d in range(21) if d % 7 < 5],  # three weeks of working days: nights are
        [d for d in range(19) if d % 7 < 5 or d == 5],  # and one Saturday among them
    ],
)
def test_days_of_the_week_that_the_reference_lacks_end_a_stretch(reference_days: list[int]) -> None:
    rng = np.random.default_rng(6)
    reference = days(rng, reference_days, "2026-03-02")
    recent = days(rng, [27, 28, 29, 30, 31], "2026-03-02")  # Sunday to Thursday, after the reference
    report = measure_drift(reference, newest_night(recent), DriftConfig(seasonality="weekday"), recent=recent)
    assert report.status == "stable"
    assert report.nightly is not None
    assert report.nightly.psi[0][0] is None  # a Sunday has nothing to be compared with
    assert None not in report.nightly.psi[0][1:]


def test_few_clusters_on_days_like_the_live_ones_are_not_enough_data() -> None:
    rng = np.random.default_rng(7)
    reference = _one_after_the_other(days(rng, [0], "2026-03-02", per_day=2), days(rng, [1, 2, 3, 4, 5], "2026-03-02"))
    monday = days(rng, [7], "2026-03-02")
    report = measure_drift(reference, monday, DriftConfig(seasonality="weekday"))
    assert report.sentence.startswith("Not enough data: the reference holds 2 clusters on days like the live ones, it")


def test_users_who_live_on_for_nights_are_counted_once() -> None:
    # Twenty users with a level of their own in each of 7 nights are 20 clusters, not 140: few alarm although these say
    # little of all users.
    rng = np.random.default_rng(8)

    def users(n: int, n_nights: int, first: int, offset: int) -> DriftWindow:
        level = rng.standard_normal(n)
        user, night = np.tile(np.arange(n), n_nights), np.repeat(np.arange(n_nights), n)
        value = level[user] + 0.3 * rng.standard_normal(len(user))
        nights = np.datetime64("2026-03-01") + first + night
        return DriftWindow({"x": DriftColumn("numeric", value)}, np.arange(len(user)), user + offset, nights)

    alarms = 0
    for _ in range(40):
        reference, live = users(100, 12, 0, 0), users(20, 7, 12, 1000)
        alarms += measure_drift(reference, live, DriftConfig(live_nights=7)).status == "drifted"
    assert alarms <= 3  # nominal .75 %; counted by the night 10 of 40 alarmed


def test_small_nights_are_allowed_more_than_a_large_live_one() -> None:
    rng = np.random.default_rng(9)
    small, large = days(rng, [12, 13], "2026-03-02", per_day=40), days(rng, [14], "2026-03-02", per_day=400)
    reference = days(rng, list(range(12)), "2026-03-02", per_day=100)
    report = measure_drift(reference, large, DriftConfig(), recent=_one_after_the_other(small, large))
    assert report.nightly is not None
    once = (1 / 40 + 1 / 1200) / (1 / 400 + 1 / 1200)
    assert report.nightly.relative == pytest.approx((once, once, 1.0))
