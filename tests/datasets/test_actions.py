"""Numeric actions cut into bins: from the contract over the lake to the snapshot, the drift window and the suite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.compatibility import IncompatibleContractError, lake_incompatibilities, policy_incompatibilities
from datasets.contract import Contract, contract_from_json
from datasets.freezing import freeze_snapshot
from datasets.settings import SettingsError
from datasets.snapshot import open_snapshot
from datasets.snapshot_config import SnapshotConfig
from datasets.validation import ValidateConfig, validate_steps
from drift.windows import window_from_replay
from tests.datasets.builders import (
    NOON,
    ask,
    counts_of,
    episode,
    lake_at,
    reasons_of,
    step_row,
    take_in,
    tiny,
    write_rows,
)

LABELS = ("[0, 10)", "[10, 50)", "[50, 100]")


def binned(bins: list[float] | None = None, **changes: Any) -> Contract:
    return tiny(actions={"names": None, "safe": None, "bins": bins or [0, 10, 50, 100], **changes})


# --- the contract


def test_labels_follow_from_the_edges_and_the_last_bin_is_closed() -> None:
    actions = binned().actions

    assert actions.names == LABELS
    assert [actions.name_of(v) for v in (0, 9.99, 10, 50, 100)] == [LABELS[0], LABELS[0], LABELS[1], *LABELS[2:] * 2]
    assert [actions.name_of(v) for v in (-0.1, 100.1, math.inf, math.nan)] == [None] * 4
    assert binned([-0.5, 0, 1e300]).actions.names == ("[-0.5, 0)", "[0, 1e+300]")


def test_a_bin_acts_with_its_middle_or_the_declared_number() -> None:
    assert [binned().actions.value_of(name) for name in LABELS] == [5.0, 30.0, 75.0]
    assert [binned(values=[1, 12, 60]).actions.value_of(name) for name in LABELS] == [1.0, 12.0, 60.0]
    assert tiny().actions.value_of("hold") is None
    with pytest.raises(ValueError, match=r"'30' is none of the actions \[0, 10\), \[10, 50\), \[50, 100\]"):
        binned().actions.value_of("30")


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=8, unique=True), st.data())
def test_every_number_within_the_edges_lies_in_the_bin_of_its_label(edges: list[float], data: st.DataObject) -> None:
    edges = sorted({edge + 0.0 for edge in edges})
    if len(edges) < 3:
        return
    actions = binned(edges).actions
    value = data.draw(st.floats(edges[0], edges[-1]) | st.sampled_from(edges))
    name = actions.name_of(value)
    assert name is not None
    low, high = (float(text) for text in name[1:-1].split(", "))
    assert low <= value < high or (name.endswith("]") and value == high)


def test_safe_is_a_label_or_a_number_in_its_bin() -> None:
    assert binned(safe=7).actions.safe == "[0, 10)"
    assert binned(safe="[50, 100]").actions.safe == "[50, 100]"


def test_the_contract_survives_json() -> None:
    contract = binned(safe=7, values=[1, 12, 60])

    again = contract_from_json(json.loads(json.dumps(contract.to_json())), "again")

    assert again == contract
    assert again.digest == contract.digest != binned().digest


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"bins": [0, 1]}, "actions.bins: wants at least three ascending edges, which make two actions (found [0, 1])"),
        ({"bins": [0, 2, 1]}, "actions.bins: wants at least three ascending edges"),
        ({"bins": ["0", 1, 2]}, "actions.bins.0: Input should be a valid number (found '0')"),
        ({"bins": [0, 1, math.inf]}, "actions.bins.2: Input should be a finite number"),
        ({"bins": [0, 1, 2], "names": ["a", "b"]}, "actions: wants names or bins, not both"),
        ({"bins": [0, 1, 2], "safe": 7}, "actions: safe = '7' is none of the actions [0, 1), [1, 2]"),
        ({"bins": [0, 1, 2], "values": [0.5]}, "actions: values has 1 numbers for 2 bins"),
        ({"bins": [0, 1, 2], "values": [1, 1]}, "actions: each of values lies in its bin, in the order of the bins"),
        ({"names": ["a", "b"], "values": [0, 1]}, "actions: values are the numbers that act for bins"),
        ({"safe": "a"}, "actions.names: missing."),
    ],
)
def test_refusal_names_the_key_and_the_cause(actions: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        tiny(actions={"names": None, "safe": None, **actions})
    assert message in str(caught.value)


# --- compatibility


def test_bins_never_change_but_the_numbers_that_act_for_them_may() -> None:
    assert lake_incompatibilities(binned(), binned(values=[1, 12, 60], safe=7)) == []
    assert policy_incompatibilities(binned(), binned(values=[1, 12, 60])) == []
    wider = lake_incompatibilities(binned(), binned([0, 10, 50, 200]))
    assert wider == [
        "actions.bins was [0, 10), [10, 50), [50, 100] and is [0, 10), [10, 50), [50, 200]; rows already stored lie in "
        "the old ones, and their probabilities too: start a new workspace"
    ]
    (named,) = policy_incompatibilities(tiny(), binned())
    assert named == "actions.bins was none and is [0, 10), [10, 50), [50, 100]"


@pytest.mark.usefixtures("quick_suite")
def test_a_lake_refuses_other_bins(tmp_path: Path) -> None:
    take_in(lake_at(tmp_path, binned()), write_rows(tmp_path / "a.jsonl", episode("e", action=12)))

    with pytest.raises(IncompatibleContractError, match=r"actions\.bins was \[0, 10\).* and is \[0, 10\), \[10, 100\]"):
        lake_at(tmp_path, binned([0, 10, 100]))


# --- from the log to the snapshot


@pytest.mark.usefixtures("quick_suite")
def test_numbers_keep_their_value_in_the_lake_and_become_bins_in_the_snapshot(tmp_path: Path) -> None:
    probs = {"behavior_prob": None, "behavior_probs": [0.25, 0.25, 0.5]}
    rows = [
        step_row("a", 0, action=10, available_actions=["[10, 50)", "[50, 100]"]),
        step_row("a", 1, action=9.999, **probs),
        step_row("a", 2, action=100, **probs),
    ]
    lake = lake_at(tmp_path, binned())
    report = take_in(lake, write_rows(tmp_path / "a.jsonl", rows))

    assert counts_of(report) == {"in": 3, "lake": 3}
    assert ask(lake, "SELECT action, action_value, behavior_prob FROM {steps} ORDER BY step") == [
        ("[10, 50)", 10.0, 0.5),
        ("[0, 10)", 9.999, 0.25),
        ("[50, 100]", 100.0, 0.5),
    ]
    path, _ = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=NOON)
    replay, _ = open_snapshot(path)
    assert replay.actions.tolist() == [1, 0, 2]
    assert replay.available.tolist() == [[False, True, True], [True] * 3, [True] * 3]
    assert replay.contract.actions.names == LABELS
    drift = window_from_replay(replay).columns["action"]
    assert [drift.vocabulary[code] for code in drift.values] == ["[10, 50)", "[0, 10)", "[50, 100]"]


@pytest.mark.usefixtures("quick_suite")
def test_what_lies_in_no_bin_is_in_quarantine_with_the_reason(tmp_path: Path) -> None:
    rows = [
        step_row("a", action=-1),
        step_row("b", action=100.5),
        step_row("c", action="[0, 10)"),
        step_row("d", action=None),
        step_row("e", action=True),
        step_row("f", action=60, available_actions=["[0, 10)"]),
        step_row("g", action=60, behavior_probs=[0.5, 0.5]),
        step_row("h", action=60, behavior_probs=[0.5, 0.5, 0.0]),
        step_row("i", action=60, available_actions=["60"]),
    ]
    lake = lake_at(tmp_path, binned())
    take_in(lake, write_rows(tmp_path / "a.jsonl", rows))

    found = reasons_of(lake)
    assert found[:7] == [
        "action is -1.0, outside the contract's bins from 0.0 to 100.0",
        "action is 100.5, outside the contract's bins from 0.0 to 100.0",
        'action is "[0, 10)", not a number',
        "action is missing",
        "action is true, not a number",
        'action [50, 100] is not among the available actions ["[0, 10)"]',
        "behavior_probs has 2 entries for 3 actions",
    ]
    assert "behavior_probs [0.5,0.5,0.0] give the logged action no chance" in found[7]
    assert 'available_actions ["60"] names an action that is not in the contract' in found[8]


@pytest.mark.usefixtures("quick_suite")
def test_csv_and_parquet_logs_have_the_same_rules(tmp_path: Path) -> None:
    contract = binned([0, 1, 2])
    text = "episode_id,step,timestamp,cpu,action,reward,terminated,behavior_prob\n"
    text += "".join(f"{n},0,2024-05-01T10:00:00Z,0.5,{n},-1,true,0.5\n" for n in ("1e0", "nan", "x", "3"))
    (tmp_path / "a.csv").write_text(text)
    typed = {
        "episode_id": ["p", "q"],
        "step": [0, 0],
        "timestamp": ["2024-05-01T10:00:00Z"] * 2,
        "cpu": [0.5, 0.5],
        "action": [2.0, math.nan],
        "reward": [-1.0, -1.0],
        "terminated": [True, True],
        "behavior_prob": [0.5, 0.5],
    }
    pq.write_table(pa.table(typed), tmp_path / "b.parquet")
    lake = lake_at(tmp_path, contract)

    take_in(lake, tmp_path / "a.csv", tmp_path / "b.parquet")

    stored = ask(lake, "SELECT episode_id, action, action_value FROM {steps} ORDER BY 1")
    assert stored == [("1e0", "[1, 2]", 1.0), ("p", "[1, 2]", 2.0)]
    assert reasons_of(lake) == [
        'action is "nan", not finite',
        'action is "x", not a number',
        "action is 3.0, outside the contract's bins from 0.0 to 2.0",
        "action is NaN, not finite",
    ]


@pytest.mark.usefixtures("quick_suite")
def test_the_same_number_again_is_a_duplicate_and_another_one_of_the_bin_a_conflict(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, binned())
    rows = [step_row("a", action=12), step_row("a", action=12), step_row("a", action=13)]
    report = take_in(lake, write_rows(tmp_path / "a.jsonl", rows))

    assert counts_of(report) == {"in": 3, "lake": 1, "duplicates": 1, "quarantined": 1}


def test_the_suite_sees_numbers_outside_the_bins(tmp_path: Path) -> None:
    row = step_row("a", action="[0, 10)", action_value=11.0)
    table = pa.Table.from_pylist([row | {"action_value": value} for value in (3.0, 120.0)])
    pq.write_table(table, tmp_path / "a.parquet")

    result = validate_steps([tmp_path / "a.parquet"], binned(), summary=None, config=ValidateConfig())

    (failure,) = [record for record in result.failures if record.column == "action_value"]
    assert failure.says == "lies in [0, 100]"
    assert failure.examples == (120.0,)


def test_labels_stand_in_the_order_of_the_numbers() -> None:
    values = np.linspace(0, 100, 50)
    places = [LABELS.index(binned().actions.name_of(value) or "") for value in values]
    assert places == sorted(places)
