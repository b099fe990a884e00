"""Timestamps that cannot be true."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datasets.clocks import ClockError, NightTimes, latest_believable, newest_plausible
from datasets.ingest import newest_timestamp
from tests.datasets.builders import ask, counts_of, episode, lake_at, reasons_of, step_row, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")

FIRST = datetime(2024, 5, 1, tzinfo=UTC)


def night(day: int, n_rows: int) -> NightTimes:
    start = FIRST + timedelta(days=day)
    return NightTimes(n_rows, start, start + timedelta(hours=23))


@pytest.mark.parametrize(
    ("nights", "newest"),
    [
        ([], None),
        ([night(0, 1)], 0),
        ([night(0, 1000), night(1, 1000), night(5000, 1)], 1),
        ([night(5000, 1), night(9000, 1), night(0, 1000), night(1, 1000), night(2, 1000)], 2),
        ([night(0, 1000), night(1, 1000), night(7, 1)], 7),  # a quiet week, or rows behind midnight
        ([night(0, 1000), night(1, 1000), night(5000, 10)], 5000),  # too many for a stray clock
        ([night(0, 3), night(5000, 1)], 5000),  # too little to know what is usual
    ],
)
def test_a_stray_row_is_not_the_newest(nights: list[NightTimes], newest: int | None) -> None:
    assert newest_plausible(nights) == (None if newest is None else night(newest, 1).newest)


def test_one_row_from_2099_does_not_time_out_every_episode(tmp_path: Path) -> None:
    days = [[step_row(f"e{day}-{n}", 0, timestamp=f"2024-05-0{day}T10:00:00Z") for n in range(101)] for day in (1, 2)]
    lake = lake_at(tmp_path)
    stray = step_row("stray", 0, timestamp="2099-01-01T00:00:00Z")
    report = take_in(lake, write_rows(tmp_path / "a.jsonl", [*days[0], *days[1], stray]), as_of="newest")

    assert report.batch is not None
    assert report.batch.as_of == newest_timestamp(lake) == datetime(2024, 5, 2, 10, tzinfo=UTC)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_from_the_future_go_to_quarantine_and_mark_their_episode(tmp_path: Path, suffix: str) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=23)).isoformat()
    far = (datetime.now(UTC) + timedelta(hours=25)).isoformat()
    lake = lake_at(tmp_path, tiny(features=dict.fromkeys(("zone", "busy", "load"))))
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        lines = [f"e,{i},{time},0.5,hold,-1,0.5" for i, time in enumerate((soon, far))]
        path.write_text("\n".join(["episode_id,step,timestamp,cpu,action,reward,behavior_prob", *lines, ""]))
    else:
        write_rows(path, [step_row("e", 0, timestamp=soon), step_row("e", 1, timestamp=far)])
    report = take_in(lake, path, as_of="now")

    assert counts_of(report) == {"in": 2, "lake": 1, "quarantined": 1}
    (reason,) = reasons_of(lake)
    assert reason.endswith(", which lies in the future")
    assert ask(lake, "SELECT episode_id, kind FROM {quarantine}") == [("e", "steps")]


def test_where_now_is_given_or_is_the_newest_time_no_row_lies_in_the_future(tmp_path: Path) -> None:
    far = episode("e", timestamp="2099-01-01T00:00:00Z")
    given, newest = lake_at(tmp_path / "given"), lake_at(tmp_path / "newest")

    assert counts_of(take_in(given, write_rows(tmp_path / "a.jsonl", far))) == {"in": 3, "lake": 3}
    assert counts_of(take_in(newest, tmp_path / "a.jsonl", as_of="newest")) == {"in": 3, "lake": 3}


def test_a_day_ahead_is_believed() -> None:
    assert latest_believable(FIRST) == FIRST + timedelta(days=1)


def test_a_clock_that_is_earlier_than_the_log_itself_judges_no_row(tmp_path: Path) -> None:
    lake, path = lake_at(tmp_path / "lake"), write_rows(tmp_path / "log.jsonl", episode("e"))
    ahead = (datetime.now(UTC) + timedelta(days=366)).timestamp()  # as it looks to a clock that was set back by a year
    os.utime(path, (ahead, ahead))

    with pytest.raises(ClockError, match="the clock was set back") as refused:
        take_in(lake, path, as_of="now")

    assert str(path) in str(refused.value)
    assert "Set the clock (`timedatectl`), or `touch` the file" in str(refused.value)
    assert ask(lake, "SELECT count(*) FROM {steps}") == ask(lake, "SELECT count(*) FROM {quarantine}") == [(0,)]
    os.utime(path)
    assert counts_of(take_in(lake, path, as_of="now")) == {"in": 3, "lake": 3}


def test_files_from_a_clock_ahead_are_read_where_no_clock_judges(tmp_path: Path) -> None:
    lake, path = lake_at(tmp_path / "lake"), write_rows(tmp_path / "log.jsonl", episode("e"))
    os.utime(path, (4e9, 4e9))

    assert counts_of(take_in(lake, path, as_of="newest")) == {"in": 3, "lake": 3}
