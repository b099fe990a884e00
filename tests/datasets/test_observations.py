"""Observations from records: strict, and the same labels and numbers as the lake would hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.observations import ObservationError, Observations, observations_from_records
from tests.datasets.builders import step_row, tiny, write_rows
from tests.datasets.test_canonical import judged

GOOD: dict[str, Any] = {"cpu": 0.5, "zone": "a", "busy": True, "load": [0.0, 1.0]}


def test_records_become_arrays() -> None:
    found = observations_from_records(tiny(), [GOOD, {"cpu": 1, "zone": "c", "busy": None}, {"cpu": 0, "busy": False}])

    assert len(found) == 3
    assert found.columns["cpu"].tolist() == [0.5, 1, 0]
    assert found.labels("zone").tolist() == ["a", "c", None]
    np.testing.assert_array_equal(found.columns["busy"], [1, np.nan, 0])
    np.testing.assert_array_equal(found.columns["load"], [[0, 1], [np.nan] * 2, [np.nan] * 2])
    assert {name: values.dtype.name for name, values in found.columns.items()} == {
        "cpu": "float64",
        "zone": "int32",
        "busy": "float64",
        "load": "float64",
    }


def test_no_records_are_no_rows() -> None:
    found = observations_from_records(tiny(), [])

    assert len(found) == 0
    assert found.columns["load"].shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cpu": None}, "cpu is missing"),
        ({"cpu": "0.5"}, "cpu wants a number, found '0.5'"),
        ({"cpu": True}, "cpu wants a number, found True"),
        ({"cpu": math.nan}, "cpu is nan, which is not finite"),
        ({"cpu": math.inf}, "cpu is inf, which is not finite"),
        ({"cpu": 10**400}, "cpu is too large for a number"),
        ({"cpu": 1.5}, "cpu is 1.5, outside [0.0, 1.0]"),
        ({"zone": ["a"]}, "zone wants a label, found"),
        ({"zone": ""}, "zone is empty"),
        ({"busy": 1}, "busy wants true or false, found 1"),
        ({"load": [1.0]}, "load wants a list of 2 numbers, found [1.0]"),
        ({"load": [1.0, None]}, "load wants a number, found None"),
        ({"load": [1.0, 10**400]}, "load is too large for a number"),
        ({"memory": 1}, "'memory' is no feature of the contract 'tiny'"),
    ],
)
def test_each_way_to_be_wrong_is_named_with_its_row(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ObservationError) as caught:
        observations_from_records(tiny(), [GOOD, {**GOOD, **changes}])
    assert str(caught.value).startswith("1 values do not fit the contract:\n  row 2: ")
    assert problem in str(caught.value)


def test_all_problems_are_counted_and_ten_shown() -> None:
    with pytest.raises(ObservationError, match="14 values do not fit") as caught:
        observations_from_records(tiny(), [{}] * 14)
    assert len(str(caught.value).splitlines()) == 12
    assert str(caught.value).endswith("and 4 more")


@pytest.mark.parametrize("label", ["a", "ä'\"", 3, -7, True, False, 0.5, 2.0])
def test_a_label_is_the_same_in_the_lake_and_for_the_policy(tmp_path: Path, label: object) -> None:
    (row,) = judged(tiny(), write_rows(tmp_path / "a.jsonl", [step_row(observation={"zone": label})]))
    found = observations_from_records(tiny(), [{**GOOD, "zone": label}])

    assert found.labels("zone").tolist() == [row["observation"]["zone"]]


@given(st.lists(st.sampled_from(["a", "b", "never seen", None]), min_size=1), st.data())
def test_taking_rows_keeps_their_labels(labels: list[str | None], data: st.DataObject) -> None:
    found = observations_from_records(tiny(), [{**GOOD, "zone": label} for label in labels])
    rows = np.array(data.draw(st.lists(st.integers(0, len(labels) - 1))), dtype=np.int64)
    taken: Observations = found.take(rows)

    assert len(taken) == len(rows)
    assert taken.labels("zone").tolist() == [labels[row] for row in rows]
