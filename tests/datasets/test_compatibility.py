"""Which changes of the contract a lake survives, and that opening it after one really works."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from datasets.compatibility import IncompatibleContractError, lake_incompatibilities, policy_incompatibilities
from datasets.contract import contract_from_json
from datasets.lake import open_lake
from tests.datasets.builders import CONTRACT, ask, counts_of, episode, lake_at, step_row, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")

MEMORY = {"features": {"memory": {"type": "numeric", "nullable": True}}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        MEMORY,
        {"features": {"cpu": {"min": -1.0, "max": None}}},
        {"features": {"cpu": {"nullable": True, "exogenous": True}}},
        {"features": {"zone": {"values": ["b", "c", "a"]}}},
        {"actions": {"names": ["down", "hold", "up", "away"]}},
        {"reward": {"min": None, "max": 1.0}},
        {"gamma": 0.5, "columns": {"reward": "r"}, "time": {"format": "epoch_s"}, "episodes": {"timeout": "2h"}},
        {"behavior": {"propensity": "estimated"}},
    ],
)
def test_compatible_changes(changes: dict[str, Any]) -> None:
    assert lake_incompatibilities(tiny(), tiny(changes)) == []


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"features": {"memory": {"type": "numeric"}}}, "features.memory is new and history has no value for it"),
        ({"features": {"zone": None}}, "features.zone is gone (it was categorical); keep it"),
        ({"features": {"busy": {"type": "numeric"}}}, "features.busy: was boolean and is numeric"),
        ({"features": {"cpu": {"unit": "percent"}}}, "features.cpu: unit was '' and is 'percent'"),
        ({"features": {"load": {"length": 3}}}, "features.load: length was 2 and is 3"),
        (
            {"features": {"cpu": {"max": 0.5}}},
            "features.cpu: range max was 1.0 and is 0.5: rows already stored may lie",
        ),
        ({"features": {"zone": {"values": ["a"]}}}, "features.zone: lost the labels b"),
        ({"features": {"zone": {"nullable": False}}}, "features.zone was nullable and is not any more"),
        ({"actions": {"names": ["down", "hold"]}}, "actions.names lost 'up', which logged rows may hold"),
        ({"actions": {"names": ["hold", "down", "up"]}}, "actions.names was down, hold, up and is hold, down, up"),
        ({"actions": {"names": ["away", "down", "hold", "up"]}}, "add new actions at the end"),
        ({"reward": {"min": -5.0}}, "reward min was -10.0 and is -5.0: rows already stored may lie below it"),
        ({"episodes": {"cluster": "service"}}, "episodes.cluster was None and is 'service'; splits go by cluster"),
        ({"episodes": {"kind": "one_step"}}, "episodes.kind was 'sequence' and is 'one_step'"),
        ({"name": "other"}, "name was 'tiny' and is 'other'; splits are salted with it"),
    ],
)
def test_incompatible_changes(changes: dict[str, Any], difference: str) -> None:
    problems = lake_incompatibilities(tiny(), tiny(changes))

    assert len(problems) == 1
    assert difference in problems[0]


def test_probabilities_cannot_be_demanded_of_history() -> None:
    estimated = tiny(behavior={"propensity": "estimated"})
    assert "history may lack probabilities" in lake_incompatibilities(estimated, tiny())[0]


def test_policy_outlives_added_features_and_other_ranges_but_no_lost_ones() -> None:
    assert policy_incompatibilities(tiny(), tiny(MEMORY, reward={"min": -1.0})) == []
    assert policy_incompatibilities(tiny(MEMORY), tiny()) == ["features.memory is gone"]
    assert policy_incompatibilities(tiny(), tiny(actions={"names": ["down", "hold"]})) == ["action 'up' is gone"]


def test_added_feature_is_null_in_history_and_filled_from_then_on(tmp_path: Path) -> None:
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", episode("old")))

    lake = lake_at(tmp_path, tiny(MEMORY))
    report = take_in(lake, write_rows(tmp_path / "b.jsonl", episode("new", observation={"memory": 7.5})))

    assert counts_of(report) == {"in": 3, "lake": 3}
    answer = ask(lake, "SELECT episode_id, observation.memory, observation.cpu FROM {steps} ORDER BY ALL")
    assert answer == [("new", 7.5, 0.5)] * 3 + [("old", None, 0.5)] * 3


def test_rows_repeated_after_a_feature_was_added_are_duplicates(tmp_path: Path) -> None:
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", episode("old")))

    report = take_in(
        lake_at(tmp_path, tiny(MEMORY)), write_rows(tmp_path / "b.jsonl", [step_row("n"), *episode("old")])
    )

    assert counts_of(report) == {"in": 4, "lake": 1, "duplicates": 3}


def test_feature_added_in_front_and_twice(tmp_path: Path) -> None:
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", episode("a")))
    first = {**CONTRACT, "features": {"memory": MEMORY["features"]["memory"], **CONTRACT["features"]}}
    take_in(
        lake_at(tmp_path, contract_from_json(first, "test")),
        write_rows(tmp_path / "b.jsonl", episode("b", observation={"memory": 1.0})),
    )
    second = {**first, "features": {**first["features"], "disk": {"type": "numeric", "nullable": True}}}
    lake = lake_at(tmp_path, contract_from_json(second, "test"))
    take_in(lake, write_rows(tmp_path / "c.jsonl", episode("c", observation={"memory": 2.0, "disk": 3.0})))

    answer = ask(
        lake,
        "SELECT DISTINCT episode_id, observation.cpu, observation.memory, observation.disk FROM {steps} ORDER BY ALL",
    )
    assert answer == [("a", 0.5, None, None), ("b", 0.5, 1.0, None), ("c", 0.5, 2.0, 3.0)]


def test_features_in_another_order_stay_themselves(tmp_path: Path) -> None:
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", episode("a")))
    swapped = {**CONTRACT, "features": dict(reversed(CONTRACT["features"].items()))}
    lake = lake_at(tmp_path, contract_from_json(swapped, "test"))
    take_in(lake, write_rows(tmp_path / "b.jsonl", episode("b")))

    answer = ask(lake, "SELECT DISTINCT observation.cpu, observation.zone, observation.busy FROM {steps}")
    assert answer == [(0.5, "a", True)]


def test_added_action_and_wider_range_let_new_rows_in(tmp_path: Path) -> None:
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", episode("a")))
    wider = tiny(actions={"names": ["down", "hold", "up", "away"]}, features={"cpu": {"max": 2.0}})
    lake = lake_at(tmp_path, wider)

    rows = episode("b", action="away", observation={"cpu": 1.5})
    assert counts_of(take_in(lake, write_rows(tmp_path / "b.jsonl", rows))) == {"in": 3, "lake": 3}


def test_incompatible_change_is_refused_with_every_difference_and_the_lake_is_as_it_was(tmp_path: Path) -> None:
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", episode("a")))
    before = _bytes_below(tmp_path / "lake")

    with pytest.raises(IncompatibleContractError) as caught:
        open_lake(tmp_path / "lake", tiny(features={"zone": None, "load": {"length": 3}}))

    assert "The contract no longer fits the lake" in str(caught.value)
    assert "features.zone is gone" in str(caught.value)
    assert "features.load: length was 2 and is 3" in str(caught.value)
    assert "Undo these changes, or start a new workspace" in str(caught.value)
    assert _bytes_below(tmp_path / "lake") == before


def _bytes_below(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "_lock")
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
