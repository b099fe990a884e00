"""Conditions as Python: whatever DuckDB says of a row, in the same three truth values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.contract import contract_from_json
from datasets.observation_sql import evaluate_sql
from datasets.observations import observations_from_records
from datasets.row_conditions import NotANumberError, compile_condition

CONTRACT = contract_from_json(
    {
        "name": "rows",
        "gamma": 0.9,
        "features": {
            "Load": {"type": "numeric", "nullable": True},
            "limit": {"type": "numeric", "nullable": True},
            "zone": {"type": "categorical", "nullable": True},
            "busy": {"type": "boolean", "nullable": True},
            "trend": {"type": "vector", "length": 2, "nullable": True},
        },
        "actions": {"names": ["down", "hold", "up"], "safe": "hold"},
    },
    "test",
)
RECORDS = st.fixed_dictionaries(
    {
        "Load": st.sampled_from([None, -1.0, 0.0, 0.1, 0.3, 0.5, 2.0]),
        "limit": st.sampled_from([None, 0.1, 0.2, 0.5, 1.0]),
        "zone": st.sampled_from([None, "a", "b", "A"]),
        "busy": st.sampled_from([None, True, False]),
        "trend": st.sampled_from([None, [0.0, 0.1], [2.0, -1.0]]),
    }
)
UNDERSTOOD = (
    "observation.load > 0.3",
    "0.3 <= observation.Load",
    "observation.load + observation.limit <= 0.3",
    "observation.load * 2 - 0.1 <> observation.limit",
    "observation.load BETWEEN observation.limit AND 0.5",
    "observation.load IN (0.1, 2)",
    "observation.load NOT IN (0.1, 2)",
    "observation.zone = 'a' OR observation.busy",
    "observation.zone <> 'a' AND NOT observation.busy",
    "observation.busy = false",
    "observation.busy IS NULL OR observation.zone IS NOT NULL",
    "coalesce(observation.load, 0) <= 0.1",
    "coalesce(observation.load > 0.3, observation.busy, true)",
    "observation.trend[1] > 1 AND observation.trend IS NOT NULL",
    "(observation.load > 0.3 OR observation.busy) AND (observation.limit < 0.5 OR false)",
)
LEFT_TO_DUCKDB = (
    "sqrt(observation.load) > 0.3",
    "observation.load / 2 > 0.1",
    "CASE WHEN observation.busy THEN observation.load > 1 ELSE false END",
    "observation.zone LIKE 'a%'",
    "0.1 + 0.2 = 0.3",
    "observation.trend[3] > 1",
)


@settings(deadline=None, max_examples=40)
@given(st.lists(RECORDS, min_size=1, max_size=30))
def test_it_says_what_duckdb_says(records: list[dict[str, Any]]) -> None:
    observations = observations_from_records(CONTRACT, records)

    asked = evaluate_sql(CONTRACT, observations, UNDERSTOOD, "BOOLEAN")

    for expression, values in zip(UNDERSTOOD, asked, strict=True):
        condition = compile_condition(expression, CONTRACT)
        assert condition is not None, expression
        masked = np.ma.asarray(values, dtype=bool)
        wanted = [None if null else bool(v) for v, null in zip(masked.data, np.ma.getmaskarray(masked), strict=True)]
        assert [condition(record) for record in records] == wanted, expression


@pytest.mark.parametrize("expression", LEFT_TO_DUCKDB)
def test_what_is_not_understood_is_left_to_duckdb(expression: str) -> None:
    assert compile_condition(expression, CONTRACT) is None


def test_an_action_that_is_known_when_it_is_compiled_decides_then() -> None:
    expression = "action <> 'up' AND observation.load > 0.5"

    up, down = (compile_condition(expression, CONTRACT, action) for action in ("up", "down"))

    assert up is not None
    assert down is not None
    assert up({}) is False  # whatever the load
    assert (down({"Load": 0.6}), down({"Load": 0.5}), down({})) == (True, False, None)


def test_a_row_that_overflows_is_left_to_duckdb() -> None:
    condition = compile_condition("observation.load * observation.load > 1", CONTRACT)

    assert condition is not None
    with pytest.raises(NotANumberError):
        condition({"Load": 1e200})
