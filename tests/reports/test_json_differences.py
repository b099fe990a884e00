"""Where two JSON values differ, by path."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.json_differences import ABSENT, json_differences

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=2), inside, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, [("a.b[1]", 2, 3)]),
        ({"a": 1}, {"b": 1}, [("a", 1, ABSENT), ("b", ABSENT, 1)]),
        ([1], [1, 2], [("[1]", ABSENT, 2)]),
        (  # checks are matched by name, wherever they stand
            {"checks": [{"name": "x", "value": 1}, {"name": "y", "value": 2}]},
            {"checks": [{"name": "y", "value": 5}, {"name": "x", "value": 1}]},
            [("checks[y].value", 2, 5)],
        ),
        (1, 1.0, []),
        (True, 1, [("", True, 1)]),
        (None, 0, [("", None, 0)]),
        ({}, [], [("", {}, [])]),
    ],
)
def test_differences_are_named_by_path(before: Any, after: Any, expected: list[tuple[str, Any, Any]]) -> None:
    assert [(d.path, d.before, d.after) for d in json_differences(before, after)] == expected


@given(VALUES)
def test_nothing_differs_from_itself(value: Any) -> None:
    assert list(json_differences(value, value)) == []


@given(VALUES, VALUES)
def test_differences_are_the_same_number_either_way(one: Any, other: Any) -> None:
    assert len(list(json_differences(one, other))) == len(list(json_differences(other, one)))


def test_a_long_value_is_shown_short() -> None:
    (difference,) = json_differences({"a": "x" * 200}, {"a": ""})
    assert str(difference) == f"a: {'x' * 80}... -> "
