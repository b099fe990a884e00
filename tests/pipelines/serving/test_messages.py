"""Requests are accepted if and only if the night would take them, and clocks never go back."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets.contract import contract_from_json
from datasets.observations import observation_problems
from pipelines.serving.clock import Clock
from pipelines.serving.log_lines import LogFormatError, StepLines
from pipelines.serving.messages import ActMessages, OutcomeMessages
from pipelines.serving.refusals import RefusedRequestError

VALUES: dict[str, Any] = {
    "name": "everything",
    "gamma": 0.9,
    "features": {
        "load": {"type": "numeric", "min": 0, "max": 1e6},
        "free": {"type": "numeric", "nullable": True},
        "zone": {"type": "categorical", "values": ["a"], "nullable": True},
        "busy": {"type": "boolean", "nullable": True},
        "trend": {"type": "vector", "length": 2, "nullable": True},
        "frame": {"type": "image", "shape": [1, 2, 1], "nullable": True},
    },
    "actions": {"names": ["down", "hold", "up"]},
}
CONTRACT = contract_from_json(VALUES, "test")
MESSAGES = ActMessages(CONTRACT, "server", 10)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.sampled_from([0.5, 1e300, 10**400, "", "a", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=1),
    max_leaves=4,
)
NAMES = [*VALUES["features"], "unheard_of"]


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(NAMES), JSON_VALUES))
@example({"load": 1, "frame": [[0, 255]], "trend": [1, 2.5], "zone": 3, "busy": False})
@example({"load": 1, "frame": [[[0], [255]]], "zone": 1.5})
@example({"load": 1, "zone": True, "free": 10**400})
def test_an_observation_is_accepted_where_ingest_accepts_it(observation: dict[str, Any]) -> None:
    body = json.dumps({"episode_id": "e", "observation": observation}).encode()

    problems = observation_problems(CONTRACT, observation)

    if problems:
        with pytest.raises(RefusedRequestError):
            MESSAGES.read(body)
    else:
        assert MESSAGES.read(body).decisions[0]["observation"] == observation


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_refused_with_a_cause_or_read(body: bytes) -> None:
    with suppress(RefusedRequestError):
        MESSAGES.read(body)


@pytest.mark.parametrize("combine", ["sum", "last", "max"])
def test_a_single_outcome_may_lie_outside_the_range_of_rewards(combine: str) -> None:
    outcomes = {"attribution_window": "1h", "combine": combine}
    contract = contract_from_json({**VALUES, "reward": {"min": -5, "max": 0}, "outcomes": outcomes}, "test")
    messages, now = OutcomeMessages(contract, "server", 10), datetime(2026, 3, 1, tzinfo=UTC)

    (refund,), _ = messages.read(b'{"decision_id": "d", "reward": 30}', now)

    assert refund.reward == 30
    for reward in ("NaN", "1e999"):
        with pytest.raises(RefusedRequestError) as refused:
            messages.read(f'{{"decision_id": "d", "reward": {reward}}}'.encode(), now)
        assert refused.value.problems[0].cause == "not_finite"


def test_times_never_go_back_where_the_system_does(caplog: pytest.LogCaptureFixture) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    system = iter(start + timedelta(seconds=s) for s in (0, 10, -3600, -3599, 5, 20))

    clock = Clock(lambda: next(system))
    times = [(clock.now() - start).total_seconds() for _ in range(6)]

    assert times == [0, 10, 10.000001, 10.000002, 10.000003, 20]
    assert caplog.text.count("went back") == 1


def test_lines_follow_the_contracts_columns_and_times() -> None:
    contract = contract_from_json(
        {
            **VALUES,
            "features": {"load": {"type": "numeric"}},
            "actions": {"bins": [0, 10, 50], "values": [4, 20]},
            "episodes": {"cluster": "service"},
            "privacy": {"hash": ["user.id"]},
            "time": {"format": "epoch_ms"},
            "columns": {"episode_id": "session", "observation.load": "metrics.load", "timestamp": "at"},
        },
        "test",
    )
    step = {
        "episode_id": "e",
        "step": 0,
        "behavior_prob": 1.0,
        "cluster": "web",
        "keys.user.id": "u",
        "decision_id": None,
    }

    line = StepLines(contract).line(step, {"load": 2.5}, datetime(2026, 3, 1, 0, 0, 0, 1500, UTC), "[10, 50]")

    assert json.loads(line) == {
        "session": "e",
        "step": 0,
        "behavior_prob": 1.0,
        "service": "web",
        "user": {"id": "u"},
        "metrics": {"load": 2.5},
        "action": 20.0,
        "at": datetime(2026, 3, 1, tzinfo=UTC).timestamp() * 1000 + 1.5,
    }
    assert math.isclose(json.loads(line)["at"], 1772323200001.5)


@pytest.mark.parametrize(
    "time", [{"format": "%Y-%m", "zone": "UTC"}, {"format": "%Y-%m-%d %H:%M:%S", "zone": "Europe/Berlin"}]
)
def test_a_time_format_that_loses_the_instant_is_refused(time: dict[str, str]) -> None:
    with pytest.raises(LogFormatError, match="does not tell when a decision was made"):
        StepLines(contract_from_json({**VALUES, "time": time}, "test"))
