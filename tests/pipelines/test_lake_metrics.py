"""Metrics of a night's episodes, on logs small enough to count by hand."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from datasets.contract import Contract
from pipelines.metrics.lake import lake_metrics
from pipelines.metrics.values import Values
from tests.datasets.builders import NOON, lake_at, step_row, suite_says, take_in, tiny, write_rows

FIRST, SECOND = date(2024, 5, 1), date(2024, 5, 2)

RULES: dict[str, Any] = {
    "success": {"when": "next_observation.cpu <= 0.5"},
    "constraints": {
        "not_down": {"forbid": "action = 'down' AND observation.cpu > 0.8"},
        "cool": {"breached": "next_observation.cpu > 0.9", "limit": 0.2},
    },
}


def episode(name: str, cpus: list[float], actions: list[str], rewards: list[float], **changes: Any) -> list[Any]:
    """Steps with these measurements, a minute apart; the last terminates."""
    return [
        step_row(name, i, action=a, reward=r, observation={"cpu": c}, terminated=i == len(cpus) - 1, **changes)
        for i, (c, a, r) in enumerate(zip(cpus, actions, rewards, strict=True))
    ]


ROWS = [
    *episode("a", [0.4, 0.5, 0.6], ["hold", "up", "hold"], [-1.0, -2.0, -3.0], policy_version="0"),
    *episode("b", [0.9, 0.95, 0.3], ["down", "hold", "hold"], [-4.0, -4.0, -1.0], policy_version="7"),
]
"""Steps with an outcome: a0 -> .5, a1 -> .6, b0 -> .95, b1 -> .3. Successes (<= .5): a0 and b1, 2 of 4. Breaches of
`cool` (> .9): b0, 1 of 4. What is forbidden (down above .8): b0, 1 of all 6."""


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    suite_says(monkeypatch, True)


def measured(folder: Path, contract: Contract, rows: list[Any], *, over: date = FIRST) -> dict[date, Values]:
    lake = lake_at(folder, contract)
    take_in(lake, write_rows(folder / "steps.jsonl", rows))
    return lake_metrics(lake, [FIRST, SECOND], as_of=NOON, newest_over=over)


def numbers(values: Values, series: str) -> dict[tuple[str, ...], float]:
    return {tuple(v.labels.values()): v.value for v in values.values if v.series == series}


@pytest.mark.usefixtures("quiet")
def test_a_night_is_counted_by_hand(tmp_path: Path) -> None:
    night = measured(tmp_path, tiny(RULES), ROWS)[FIRST]

    assert night.of("offline_dqn_mean_episode_return") == pytest.approx((-6 - 9) / 2)
    assert numbers(night, "offline_dqn_version_episode_return") == {("0",): -6.0, ("7",): -9.0}
    assert numbers(night, "offline_dqn_episodes") == {("complete",): 2}
    assert numbers(night, "offline_dqn_night_decisions") == {("0", "unknown"): 3, ("7", "unknown"): 3}
    assert night.of("offline_dqn_action_success_ratio") == pytest.approx(2 / 4)
    assert numbers(night, "offline_dqn_version_success_ratio") == {("0",): 1 / 2, ("7",): 1 / 2}
    broken = numbers(night, "offline_dqn_constraint_violation_ratio")
    assert broken == pytest.approx({("not_down",): 1 / 6, ("cool",): 1 / 4})
    assert numbers(night, "offline_dqn_constraint_limit_ratio") == {("not_down",): 0.0, ("cool",): 0.2}
    # All six steps are judged by one of the two constraints, and b0 breaks both: one decision.
    assert night.of("offline_dqn_safety_violation_ratio") == pytest.approx(1 / 6)
    assert night.absent == {}


@pytest.mark.usefixtures("quiet")
def test_a_cap_is_a_constraint_that_allows_nothing(tmp_path: Path) -> None:
    rows = episode("a", [0.4, 0.5, 0.6], ["up", "up", "hold"], [-1.0, -2.0, -3.0])
    for taken, row in enumerate(rows):
        row["observation"]["taken_up"] = taken
    contract = tiny(actions={"caps": {"up": {"at_most": 1, "per": "1h"}}})

    night = measured(tmp_path, contract, rows)[FIRST]

    assert numbers(night, "offline_dqn_constraint_limit_ratio") == {("actions.caps.up",): 0.0}
    assert numbers(night, "offline_dqn_constraint_violation_ratio") == {("actions.caps.up",): pytest.approx(1 / 3)}


@pytest.mark.usefixtures("quiet")
def test_the_worst_episodes_are_traced_without_their_names(tmp_path: Path) -> None:
    night = measured(tmp_path, tiny(RULES), ROWS)[FIRST]

    traced = numbers(night, "offline_dqn_worst_episode_reward")
    assert traced[("1", "0", "down")] == -4.0  # of b, which earned less
    assert traced[("2", "2", "hold")] == -3.0
    assert len(traced) == 6
    assert "b" not in {text for labels in traced for text in labels}


@pytest.mark.usefixtures("quiet")
def test_what_the_contract_does_not_define_is_absent_with_the_reason(tmp_path: Path) -> None:
    night = measured(tmp_path, tiny(), ROWS)[FIRST]

    assert night.of("offline_dqn_action_success_ratio") is None
    assert night.absent == {
        "action_success_rate": "contract.toml has no [success], which says when a decision was one",
        "safety_violation_rate": "contract.toml has no [constraints]: nothing is forbidden",
    }


@pytest.mark.usefixtures("quiet")
def test_a_measurement_that_is_missing_is_no_success_and_counts_as_a_breach(tmp_path: Path) -> None:
    contract = tiny(RULES, features={"cpu": {"nullable": True}})
    rows = episode("a", [0.4, 0.5, 0.3], ["hold"] * 3, [-1.0] * 3)
    rows[1]["observation"].pop("cpu")

    night = measured(tmp_path, contract, rows)[FIRST]

    assert night.of("offline_dqn_action_success_ratio") == pytest.approx(1 / 2)  # a0 -> unknown, a1 -> .3
    assert numbers(night, "offline_dqn_constraint_violation_ratio")[("cool",)] == pytest.approx(1 / 2)


@pytest.mark.usefixtures("quiet")
def test_open_and_damaged_episodes_are_counted_and_not_measured(tmp_path: Path) -> None:
    damaged = episode("d", [0.1, 0.1, 0.1], ["hold"] * 3, [-10.0] * 3)[1:]  # its first step is missing

    night = measured(tmp_path, tiny(RULES), [*ROWS, *damaged])[FIRST]

    assert numbers(night, "offline_dqn_episodes") == {("complete",): 2, ("damaged",): 1}
    assert night.of("offline_dqn_mean_episode_return") == pytest.approx(-7.5)


@pytest.mark.usefixtures("quiet")
def test_a_night_that_goes_on_is_not_measured(tmp_path: Path) -> None:
    found = measured(tmp_path, tiny(RULES), ROWS, over=date(2024, 4, 30))

    assert found[FIRST].values == []
    assert set(found[FIRST].absent.values()) == {"the night is not over yet"}


@pytest.mark.usefixtures("quiet")
def test_a_night_without_episodes_has_no_zero(tmp_path: Path) -> None:
    night = measured(tmp_path, tiny(RULES), ROWS, over=SECOND)[SECOND]

    assert night.values == []
    assert set(night.absent) == {"mean_episode_return", "action_success_rate", "regret", "safety_violation_rate"}
    assert night.absent["regret"] == "no complete episode started in this night (none at all)"


@pytest.mark.usefixtures("quiet")
def test_a_condition_that_fails_on_a_row_is_named_and_spares_the_rest(tmp_path: Path) -> None:
    fails = {"success": {"when": "CAST(observation.zone AS INTEGER) = 1"}}

    night = measured(tmp_path, tiny({**RULES, **fails}), ROWS)[FIRST]

    assert night.absent["action_success_rate"].startswith("[success] fails on a row of the night: ")
    assert night.of("offline_dqn_safety_violation_ratio") == pytest.approx(1 / 6)
    assert night.of("offline_dqn_mean_episode_return") == pytest.approx(-7.5)
