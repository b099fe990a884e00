"""Episodes: when they have ended, and what makes them untrustworthy as a whole."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from datasets.contract import Contract
from datasets.duck import duck
from datasets.episodes import episodes_sql, transitions_sql
from datasets.freezing import freeze_snapshot
from datasets.lake import Lake
from datasets.snapshot import open_snapshot
from datasets.snapshot_config import SnapshotConfig
from tests.datasets.builders import NOON, episode, lake_at, step_row, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")


def tables_of(lake: Lake) -> tuple[str, str, str]:
    return lake.scan("steps"), lake.scan("outcomes"), lake.scan("quarantine")


def episodes_of(lake: Lake, as_of: datetime = NOON) -> dict[str, dict[str, Any]]:
    """The episodes view by id."""
    sql = episodes_sql(*tables_of(lake), lake.contract, as_of)
    with duck() as connection:
        rows = connection.sql(sql).to_arrow_table().to_pylist()
    return {row["episode_id"]: row for row in rows}


def transitions_of(lake: Lake, as_of: datetime = NOON) -> list[dict[str, Any]]:
    """The transitions view in order."""
    episodes = f"({episodes_sql(*tables_of(lake), lake.contract, as_of)})"
    sql = transitions_sql(lake.scan("steps"), lake.scan("outcomes"), episodes, lake.contract)
    with duck() as connection:
        return connection.sql(f"{sql} ORDER BY episode_id, position").to_arrow_table().to_pylist()  # type: ignore[no-any-return]  # Arrow's


def lake_of(folder: Path, *rows: dict[str, Any] | str, contract: Contract | None = None) -> Lake:
    lake = lake_at(folder, contract)
    take_in(lake, write_rows(folder / "a.jsonl", rows))
    return lake


def test_an_episode_is_summed_up(tmp_path: Path) -> None:
    rows = [step_row("e", i, reward=-i, policy_version=f"v{i}") for i in range(3)]
    found = episodes_of(lake_of(tmp_path, *rows))["e"]

    assert (found["n_steps"], found["return"], found["policy_version"], found["cluster"]) == (3, -3.0, "v0", "e")
    assert found["start"] == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert found["end"] == datetime(2024, 5, 1, 10, 2, tzinfo=UTC)
    assert (found["terminated"], found["complete"], found["damage"]) == (True, True, None)


def test_the_policy_version_is_that_of_the_first_step_even_if_it_is_not_logged(tmp_path: Path) -> None:
    rows = [step_row("e", 0), step_row("e", 1, policy_version="v1"), step_row("e", 2)]

    assert episodes_of(lake_of(tmp_path, *rows))["e"]["policy_version"] is None


def test_an_open_episode_is_complete_once_it_was_idle_for_the_timeout(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, *episode("e", 2))
    end = datetime(2024, 5, 1, 10, 1, tzinfo=UTC)

    assert episodes_of(lake, end + timedelta(minutes=59, seconds=59))["e"]["complete"] is False
    assert episodes_of(lake, end + timedelta(hours=1))["e"]["complete"] is True


@pytest.mark.parametrize(("on_timeout", "flags"), [("truncated", (False, True)), ("terminated", (True, False))])
def test_an_idle_end_is_what_the_contract_says(tmp_path: Path, on_timeout: str, flags: tuple[bool, bool]) -> None:
    lake = lake_of(tmp_path, *episode("e", 2), contract=tiny(episodes={"on_timeout": on_timeout}))
    first, last = transitions_of(lake)

    assert (first["ends_terminated"], first["ends_truncated"]) == (False, False)
    assert (last["ends_terminated"], last["ends_truncated"]) == flags
    assert last["next_observation"] is None


def test_logged_ends_are_not_touched_by_the_timeout_rule(tmp_path: Path) -> None:
    lake = lake_of(
        tmp_path, *episode("e"), step_row("f", truncated=True), contract=tiny(episodes={"on_timeout": "terminated"})
    )
    ends = {row["episode_id"]: (row["ends_terminated"], row["ends_truncated"]) for row in transitions_of(lake)}

    assert ends == {"e": (True, False), "f": (False, True)}


@pytest.mark.parametrize(
    ("rows", "damage"),
    [
        ([step_row("e", 0), step_row("e", 2)], "1 steps are missing"),
        ([step_row("e", 1), step_row("e", 2)], "1 steps are missing"),
        (
            [step_row("e", 0), step_row("e", 1, reward=99), step_row("e", 2)],
            "1 of its rows are in quarantine; 1 s",
        ),
        ([*episode("e"), step_row("e", 2, reward=-9)], "1 of its rows are in quarantine"),
        ([*episode("e"), step_row("e", 3)], "it goes on after its end"),
        ([step_row("e", 0, truncated=True), step_row("e", 1)], "it goes on after its end"),
        ([step_row("e", 0), step_row("e", 1, step=None)], "some of its steps have no number"),
        (
            [step_row("e", 0, decision_id="a"), step_row("e", 0, decision_id="b"), step_row("e", 1)],
            "1 step numbers are repeated",
        ),
    ],
)
def test_damaged_episodes_name_their_damage_and_have_no_transitions(
    tmp_path: Path, rows: list[dict[str, Any]], damage: str
) -> None:
    lake = lake_of(tmp_path, *rows, *episode("whole"))

    assert episodes_of(lake)["e"]["damage"].startswith(damage)
    assert episodes_of(lake)["whole"]["damage"] is None
    assert {row["episode_id"] for row in transitions_of(lake)} == {"whole"}


def test_an_episode_of_two_clusters_is_damaged(tmp_path: Path) -> None:
    contract = tiny(episodes={"cluster": "service"})
    lake = lake_of(tmp_path, step_row("e", 0, service="a"), step_row("e", 1, service="b"), contract=contract)

    assert episodes_of(lake)["e"]["damage"] == "it belongs to more than one cluster"


def test_logs_that_number_from_one_are_whole(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, *[step_row("e", i) | {"terminated": i == 3} for i in (1, 2, 3)])

    assert episodes_of(lake)["e"]["damage"] is None


def test_steps_without_numbers_are_ordered_by_time(tmp_path: Path) -> None:
    rows = [step_row("e", i, step=None, observation={"cpu": i / 10}) for i in (2, 0, 1)]
    lake = lake_of(tmp_path, *rows)

    assert episodes_of(lake)["e"]["damage"] is None
    assert [row["observation"]["cpu"] for row in transitions_of(lake)] == [0.0, 0.1, 0.2]


def test_next_observation_is_the_next_steps_or_the_final_one(tmp_path: Path) -> None:
    rows = [step_row("e", i, observation={"cpu": i / 10}) for i in range(2)]
    rows.append(step_row("e", 2, terminated=False, truncated=True, final_observation={"cpu": 0.9}))
    found = transitions_of(lake_of(tmp_path, *rows))

    assert [row["position"] for row in found] == [0, 1, 2]
    assert [row["next_observation"]["cpu"] for row in found] == [0.1, 0.5, 0.9]


def test_one_step_rows_are_whole_episodes_at_once(tmp_path: Path) -> None:
    rows = [step_row(episode_id=None, timestamp=None, step=None, terminated=None)] * 2
    found = episodes_of(lake_of(tmp_path, *rows, contract=tiny(episodes={"kind": "one_step"})))

    assert [(row["complete"], row["terminated"], row["damage"]) for row in found.values()] == [(True, True, None)] * 2


def test_logs_that_count_from_one_are_not_damaged_by_one_stray_row(tmp_path: Path) -> None:
    rows = [step_row(f"e{n}", i, terminated=i == 3) for n in range(5) for i in (1, 2, 3)]
    found = episodes_of(lake_of(tmp_path, *rows, step_row("stray", 0)))

    assert {name for name, row in found.items() if row["damage"]} == set()


def test_an_episode_that_lacks_its_first_steps_is_damaged(tmp_path: Path) -> None:
    found = episodes_of(lake_of(tmp_path, *episode("a"), *episode("b"), step_row("late", 2)))

    assert found["late"]["damage"] == "2 steps are missing"


def test_two_beginnings_that_are_equally_frequent_leave_the_lower_one_right(tmp_path: Path) -> None:
    found = episodes_of(lake_of(tmp_path, *episode("a"), step_row("b", 1), step_row("b", 2)))

    assert (found["a"]["damage"], found["b"]["damage"]) == (None, "1 steps are missing")


def test_steps_whose_order_cannot_be_told_damage_their_episode(tmp_path: Path) -> None:
    rows = [step_row("e", 0, step=None, decision_id=name) for name in "ab"]

    assert episodes_of(lake_of(tmp_path, *rows))["e"]["damage"] == (
        "1 steps have neither a number nor a time of their own"
    )


# --- over time


def timed(*times: str, **changes: Any) -> list[dict[str, Any]]:
    """Episode e with a step at each time of the first of May, or at a full instant; no end flag."""
    full = [time if "T" in time else f"2024-05-01T{time}Z" for time in times]
    return [step_row("e", i, timestamp=time, terminated=False, **changes) for i, time in enumerate(full)]


JUMPS = "its clock jumps: the times of its steps contradict their order"


@pytest.mark.parametrize(
    ("times", "tolerance", "damage"),
    [
        pytest.param(("10:00:00", "10:01:00", "10:02:00"), "1m", None, id="in order"),
        pytest.param(("10:00:00", "10:00:00", "10:00:00"), "1m", None, id="all at once"),
        pytest.param(("10:01:00", "10:00:30", "10:02:00"), "1m", None, id="within the tolerance"),
        pytest.param(("10:01:00", "10:00:30", "10:02:00"), "20s", JUMPS, id="beyond another tolerance"),
        pytest.param(("10:00:00", "10:01:00", "09:30:00"), "1m", JUMPS, id="set back"),
        pytest.param(("10:00:00", "12:00:00", "10:02:00"), "1m", JUMPS, id="ahead for one step"),
        pytest.param(("2038-01-19T00:00:00Z", "10:01:00", "10:02:00"), "1m", JUMPS, id="wrong at the start"),
        # A pause, however long: the episode goes on, as it does where more of it comes in later.
        pytest.param(("10:00:00", "10:01:00", "13:02:00"), "1m", None, id="a pause"),
    ],
)
def test_times_that_contradict_the_order_of_steps_damage_the_episode(
    tmp_path: Path, times: tuple[str, ...], tolerance: str, damage: str | None
) -> None:
    lake = lake_of(tmp_path, *timed(*times), contract=tiny(episodes={"clock_tolerance": tolerance}))

    assert episodes_of(lake)["e"]["damage"] == damage


def test_an_episode_that_turns_out_longer_is_open_again_and_frozen_snapshots_stay(tmp_path: Path) -> None:
    rows = timed("10:00:00", "10:01:00", "12:00:00", "12:01:00")
    others = [row for n in range(20) for row in episode(f"other{n}")]
    lake = lake_of(tmp_path, *rows[:2], *others)

    def seen(hour: int) -> tuple[Any, ...]:
        found = episodes_of(lake, datetime(2024, 5, 1, hour, 30, tzinfo=UTC))["e"]
        return found["complete"], found["n_steps"], found["log_date"]

    at_first = datetime(2024, 5, 1, 11, 30, tzinfo=UTC)
    before, summary = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=at_first)
    assert seen(11) == (True, 2, date(2024, 5, 1))
    take_in(lake, write_rows(tmp_path / "b.jsonl", rows[2:]))

    assert seen(12) == (False, 4, date(2024, 5, 1))
    assert seen(13) == (True, 4, date(2024, 5, 1))
    replay, unchanged = open_snapshot(before)
    assert unchanged == summary
    assert dict(zip(replay.episode_ids, (replay.offsets[1:] - replay.offsets[:-1]).tolist(), strict=True))["e"] == 2
    # Seen from then, the longer lake gives the same snapshot: what had not happened yet is left out.
    again, _ = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=at_first)
    later, _ = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=NOON)
    assert again == before
    assert later != before


def test_an_episode_across_midnight_belongs_to_the_night_it_began_in(tmp_path: Path) -> None:
    rows = timed("23:58:00", "23:59:00", "2024-05-02T00:00:00Z", "2024-05-02T00:01:00Z")
    lake = lake_at(tmp_path)
    take_in(lake, write_rows(tmp_path / "b.jsonl", rows[2:]))  # the second night's file first
    take_in(lake, write_rows(tmp_path / "a.jsonl", rows[:2]))
    found = episodes_of(lake)["e"]

    assert (found["n_steps"], found["log_date"], found["damage"]) == (4, date(2024, 5, 1), None)
    assert [row["step"] for row in transitions_of(lake)] == [0, 1, 2, 3]
    assert {row["episode_log_date"] for row in transitions_of(lake)} == {date(2024, 5, 1)}


ARRIVALS = [*episode("a"), *timed("23:59:00", "2024-05-02T00:01:00Z", "2024-05-02T00:02:00Z"), *episode("b", 2)]


@given(st.permutations(range(len(ARRIVALS))), st.lists(st.integers(0, 2), min_size=len(ARRIVALS), max_size=9))
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
def test_the_same_rows_make_the_same_episodes_in_whatever_order_and_files_they_come(
    order: list[int], files: list[int]
) -> None:
    with TemporaryDirectory() as folder:
        lake = lake_at(Path(folder))
        for number in range(3):
            rows = [ARRIVALS[i] for i in order if files[i] == number]
            if rows:
                take_in(lake, write_rows(Path(folder) / f"{number}.jsonl", rows))
        found = episodes_of(lake)

        assert {name: (e["n_steps"], e["complete"], e["damage"], e["log_date"].day) for name, e in found.items()} == {
            "a": (3, True, None, 1),
            "b": (2, True, None, 1),
            "e": (3, True, None, 1),
        }
        assert [(row["episode_id"], row["step"]) for row in transitions_of(lake)] == sorted(
            (row["episode_id"], row["step"]) for row in ARRIVALS
        )
