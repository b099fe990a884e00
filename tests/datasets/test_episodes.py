"""Episodes: when they have ended, and what makes them untrustworthy as a whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datasets.contract import Contract
from datasets.duck import duck
from datasets.episodes import episodes_sql, transitions_sql
from datasets.lake import Lake
from tests.datasets.builders import NOON, episode, lake_at, step_row, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")


def episodes_of(lake: Lake, as_of: datetime = NOON) -> dict[str, dict[str, Any]]:
    """The episodes view by id."""
    sql = episodes_sql(lake.scan("steps"), lake.scan("quarantine"), lake.contract, as_of)
    with duck() as connection:
        rows = connection.sql(sql).to_arrow_table().to_pylist()
    return {row["episode_id"]: row for row in rows}


def transitions_of(lake: Lake, as_of: datetime = NOON) -> list[dict[str, Any]]:
    """The transitions view in order."""
    episodes = f"({episodes_sql(lake.scan('steps'), lake.scan('quarantine'), lake.contract, as_of)})"
    sql = transitions_sql(lake.scan("steps"), episodes, lake.contract)
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

    assert episodes_of(lake)["e"]["damage"] == "it belongs to 2 clusters"


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
