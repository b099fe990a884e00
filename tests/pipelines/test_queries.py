"""docs/queries.md: every question on the page is asked of a simulated lake, and its answer is looked at."""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from datasets.duck import duck
from datasets.retention import RetentionConfig
from datasets.settings import build_settings
from pipelines import stages
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run, write_small_workspace

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
ASKED = PAGE.read_text(encoding="utf-8").partition("## What makes a query fast")[0]
QUESTIONS = re.findall(r"^```sql\n(.*?)^```", ASKED, re.DOTALL | re.MULTILINE)

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Three nights of 30 episodes, of which the last holds two bad rows."""
    workspace = write_small_workspace(tmp_path_factory.mktemp("queries") / "workspace")
    for _ in range(3):
        log = stages.simulate(workspace, n_episodes=30).path
    lines = log.read_text().splitlines()
    lines[0], lines[6] = re.sub(r'"reward": ?[-\d.]+', '"reward": 99', lines[0]), "no row at all"
    log.write_text("\n".join(lines) + "\n")
    stages.ingest(workspace)
    return workspace


@pytest.fixture(scope="module")
def answers(simulated: Workspace) -> list[Rows]:
    """The answer to the questions about the lake, in the order of the page."""
    found = [simulated.query(sql) for sql in QUESTIONS[:10]]
    return [[dict(zip(answer.columns, row, strict=True)) for row in answer.rows] for answer in found]


def steps_of(workspace: Workspace) -> Rows:
    """The rows of the lake, read past every view."""
    files = str(workspace.root / "lake" / "steps" / "*" / "b-*.parquet")
    with duck() as connection:
        sql = f"SELECT * FROM read_parquet('{files}', hive_partitioning = true)"
        return [dict(row) for row in connection.sql(sql).to_arrow_table().to_pylist()]


def test_the_page_has_ten_questions_and_each_is_answered(answers: list[Rows]) -> None:
    assert (len(answers), len(QUESTIONS)) == (10, 13)
    assert all(answers)


def test_returns_by_policy(answers: list[Rows], simulated: Workspace) -> None:
    (row,) = answers[0]
    returns = defaultdict[str, float](float)
    sizes = defaultdict[str, int](int)
    for step in steps_of(simulated):
        returns[step["episode_id"]] += step["reward"]
        sizes[step["episode_id"]] += 1
    whole = [returns[name] for name, n in sizes.items() if n == 6]

    assert row["n_episodes"] == len(whole) == 89
    assert row["mean_return"] == pytest.approx(sum(whole) / len(whole))
    assert 0 < row["plus_or_minus"] < 10


def test_action_shares_by_hour(answers: list[Rows]) -> None:
    by_hour = defaultdict[int, float](float)
    for row in answers[1]:
        by_hour[row["hour"]] += row["share"]

    assert set(by_hour) == set(range(24))
    assert all(share == pytest.approx(1) for share in by_hour.values())
    assert {row["action"] for row in answers[1]} == {"scale_down", "hold", "scale_up"}


def test_worst_episodes_and_one_of_them_step_by_step(answers: list[Rows]) -> None:
    returns = [row["return"] for row in answers[2]]
    steps = answers[9]

    assert returns == sorted(returns)
    assert len(returns) == 10
    assert [step["position"] for step in steps] == list(range(answers[2][0]["n_steps"]))
    assert sum(step["reward"] for step in steps) == pytest.approx(returns[0])
    assert [step["next_observation"] for step in steps[:-1]] == [step["observation"] for step in steps[1:]]


def test_propensities(answers: list[Rows]) -> None:
    (row,) = answers[3]

    assert row["known_share"] == 1
    assert 0 < row["smallest"] < row["largest"] <= 1
    assert row["mean_inverse"] == pytest.approx(row["n_actions"], rel=0.5)


def test_quarantine_by_reason(answers: list[Rows]) -> None:
    assert sorted(row["n_rows"] for row in answers[4]) == [1, 1]
    assert {row["example"] == "no row at all" for row in answers[4]} == {True, False}
    assert all(" line " in row["first_seen"] for row in answers[4])


def test_rows_by_night_and_source(answers: list[Rows]) -> None:
    nights = [row["log_date"] for row in answers[5]]

    assert nights == [nights[0] + timedelta(days=n) for n in range(3)]
    assert isinstance(nights[0], date)
    assert sum(row["n_rows"] for row in answers[5]) == 3 * 30 * 6 - 2
    assert len({row["source"] for row in answers[5]}) == 3


def test_lengths_and_endings(answers: list[Rows]) -> None:
    endings = {row["ending"]: row["n_episodes"] for row in answers[6]}

    assert sum(endings.values()) == 90
    assert any(ending.startswith("damaged: ") for ending in endings)
    assert answers[6][0]["longest"] == 6


def test_rewards_by_action(answers: list[Rows]) -> None:
    assert len(answers[7]) == 3
    assert all(-10 <= row["q05"] <= row["median"] <= row["q95"] <= 0 for row in answers[7])


def test_every_account_adds_up(answers: list[Rows]) -> None:
    assert [row["unexplained"] for row in answers[8]] == [0] * len(answers[8])
    assert sum(row["n_in"] for row in answers[8]) == 540
    assert sum(row["n_quarantined"] for row in answers[8]) == 2


@pytest.mark.parametrize("sql", QUESTIONS[:10])
def test_the_command_line_prints_them(simulated: Workspace, run: Run, sql: str) -> None:
    answer = run(simulated, "query", sql, "--format", "csv")

    assert answer.code == 0
    assert len(answer.out.splitlines()) > 1


def test_what_the_page_says_of_retention_is_a_configuration() -> None:
    (shown,) = re.findall(r"\[retention\]\n((?:\w+ = .*\n)+)", PAGE.read_text(encoding="utf-8"))
    values = {name: int(number) for name, number in re.findall(r"(\w+) = (\d+)", shown)}
    assert set(values) == {"steps_days", "quarantine_days", "snapshot_days"}
    assert build_settings(RetentionConfig, values, "the page").versions_hours == 24
