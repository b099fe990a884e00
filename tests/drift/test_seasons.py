"""Parts of the week and of the day, in the zone that the contract names."""

from __future__ import annotations

import numpy as np
import pytest

from drift.seasons import hours_of, night_kinds, strata


def test_kinds_of_nights() -> None:
    days = np.array(["2026-03-01", "2026-03-02", "2026-03-08"], dtype="datetime64[D]").astype(np.int64)
    assert night_kinds(days, "weekday").tolist() == [6, 0, 6]  # a Sunday, a Monday, a Sunday
    assert night_kinds(days, "none").tolist() == [0, 0, 0]


def test_hours_are_those_of_the_zone_summer_time_and_half_hours_included() -> None:
    starts = np.array(["2026-01-01T23:59:59", "2026-07-01T23:15:00", "NaT", "2026-07-01T00:00:00"], "datetime64[us]")
    assert hours_of(starts, None).tolist() == [23, 23, -1, 0]
    assert hours_of(starts, "Europe/Berlin").tolist() == [0, 1, -1, 2]  # UTC + 1, and + 2 in summer
    assert hours_of(starts, "Asia/Kolkata").tolist() == [5, 4, -1, 5]  # UTC + 5:30
    assert hours_of(starts[:0], None).tolist() == []


def test_strata_tell_apart_what_seasonality_does() -> None:
    nights, hours = np.array([0, 1]), np.array([5, 23])  # a Thursday and a Friday
    assert strata(nights, hours, "none").tolist() == [0, 0]
    assert strata(nights, hours, "weekday").tolist() == [3 * 24, 4 * 24]
    assert strata(nights, hours, "hour").tolist() == [5, 23]
    assert strata(nights, hours, "weekday and hour").tolist() == [3 * 24 + 5, 4 * 24 + 23]
    with pytest.raises(ValueError, match="wants the hour of each episode's start"):
        strata(nights, None, "hour")
