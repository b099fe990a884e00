"""Conditions of the contract on the steps of a log: three-valued logic, cut-off steps, and rows on which they fail."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from datasets import step_rules
from datasets.constraints import Constraint, Rules
from datasets.contract import Contract, contract_from_json
from datasets.observations import Observations, observations_from_records
from datasets.replay import GATE, Replay
from datasets.step_rules import ConstraintError, forbidden_actions, judge_steps, permitted_actions

VALUES: dict[str, Any] = {
    "name": "small",
    "gamma": 0.9,
    "features": {
        "replicas": {"type": "numeric", "nullable": True},
        "p95_ms": {"type": "numeric", "nullable": True},
        "zone": {"type": "categorical", "nullable": True},
        "load": {"type": "vector", "length": 2, "nullable": True},
    },
    "actions": {"names": ["down", "hold", "up"], "safe": "hold"},
}
KEEP_TWO = {"keep_two": {"forbid": "action = 'down' AND observation.replicas <= 2"}}
SLO = {"slo": {"breached": "next_observation.p95_ms > 500", "limit": 0.1}}


def contract(**tables: Any) -> Contract:
    return contract_from_json({**VALUES, **tables}, "test")


def rows(described: Contract, *replicas: float | None, **columns: list[Any]) -> Observations:
    records = [{"replicas": r, **{k: v[i] for k, v in columns.items()}} for i, r in enumerate(replicas)]
    return observations_from_records(described, records)


def replay_of(described: Contract, observations: Observations, next_row: list[int], actions: list[int]) -> Replay:
    n = len(actions)
    return Replay(
        contract=described,
        digest="",
        observations=observations,
        available=np.ones((len(observations), 3), dtype=bool),
        actions=np.array(actions),
        rewards=np.zeros(n),
        terminated=np.zeros(n, dtype=bool),
        truncated=np.arange(n) == n - 1,
        next_row=np.array(next_row),
        behavior_prob=np.full(n, 0.5),
        offsets=np.array([0, n]),
        episode_ids=np.array(["e"]),
        clusters=np.array([0]),
        nights=np.array(["2026-01-05"], dtype="datetime64[D]"),
        policy_versions=np.array([""]),
        split=np.array([GATE], dtype=np.int8),
    )


def test_a_forbidden_action_is_not_permitted_and_null_forbids_nothing() -> None:
    described = contract(constraints=KEEP_TWO)
    available = np.ones((3, 3), dtype=bool)

    permitted = permitted_actions(described, rows(described, 2.0, 3.0, None), available)

    assert permitted.tolist() == [[False, True, True], [True, True, True], [True, True, True]]
    assert available.all()  # what the log was free to do is left as it is


def test_the_safe_action_remains_where_everything_is_forbidden_or_unavailable() -> None:
    described = contract(constraints={"stop": {"forbid": "observation.replicas > 9"}} | KEEP_TWO)
    available = np.array([[True, True, True], [True, False, False], [False, False, True]])

    permitted = permitted_actions(described, rows(described, 10.0, 1.0, 1.0), available)

    assert permitted.tolist() == [[False, True, False], [False, True, False], [False, False, True]]


def test_blocks_of_rows_say_what_one_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    described = contract(constraints=KEEP_TWO)
    observations = rows(described, *np.arange(7.0) % 4)
    whole = forbidden_actions(described, observations)["keep_two"]
    monkeypatch.setattr(step_rules, "_BLOCK", 3)

    assert np.array_equal(forbidden_actions(described, observations)["keep_two"], whole)
    assert whole[:, 0].tolist() == [True, True, True, False, True, True, True]
    assert not whole[:, 1:].any()


def test_a_condition_is_judged_on_the_next_observation_and_unknown_where_there_is_none() -> None:
    described = contract(constraints=SLO)
    observations = rows(described, 1, 1, 1, 1, p95_ms=[900.0, 100.0, None, 700.0])

    found = judge_steps(
        described,
        described.breaches,
        observations=observations,
        actions=np.array([0, 1, 2]),
        next_row=np.array([1, 3, -1]),  # the second is cut with a final observation, the third without
        place=str,
    )["slo"]

    assert found.true.tolist() == [False, True, False]
    assert found.known.tolist() == [True, True, False]
    assert not found.unanswered.any()  # the third could not have been answered


def test_a_missing_measurement_is_unanswered_and_the_end_of_an_episode_is_not() -> None:
    described = contract(constraints=SLO)
    conditions = {"next": "next_observation.p95_ms > 500", "now": "observation.p95_ms > 500"}

    found = judge_steps(
        described,
        conditions,
        observations=rows(described, 1, 1, 1, p95_ms=[900.0, None, None]),
        actions=np.array([0, 1, 2]),
        next_row=np.array([1, 2, -1]),
        place=str,
    )

    # The last step has no next observation, but an observation that lacks its latency.
    assert found["next"].unanswered.tolist() == [True, True, False]
    assert found["now"].unanswered.tolist() == [False, True, True]
    assert found["next"].charged(as_true=True).true.tolist() == [True, True, False]
    assert found["next"].charged(as_true=True).known.tolist() == [True, True, False]
    assert found["now"].charged(as_true=False).true.tolist() == [True, False, False]
    assert found["now"].charged(as_true=False).known.all()


def test_a_missing_next_observation_can_be_asked_about() -> None:
    described = contract(success={"when": "next_observation IS NULL OR action = 'up'"})

    found = judge_steps(
        described,
        {"success": "next_observation IS NULL OR action = 'up'"},
        observations=rows(described, 1, 2, 3),
        actions=np.array([0, 2, 0]),
        next_row=np.array([1, 2, -1]),
        place=str,
    )["success"]

    assert found.true.tolist() == [False, True, True]
    assert found.known.all()


def test_a_condition_that_fails_names_itself_and_the_step() -> None:
    described = contract(constraints={"odd": {"breached": "CAST(observation.zone AS INTEGER) > 1", "limit": 0.1}})
    observations = rows(described, 1, 2, zone=["3", "east"])

    with pytest.raises(ConstraintError, match=r"odd, `CAST.*fails in step 1, .*'east'.*TRY_CAST") as failed:
        judge_steps(
            described,
            described.breaches,
            observations=observations,
            actions=np.array([0, 1]),
            next_row=np.array([1, -1]),
            place=lambda step: f"step {step}",
        )
    # What it says where no row may go: neither the row, nor whose step it is, nor DuckDB's text, which quotes both.
    told = pickle.loads(pickle.dumps(failed.value)).without_row
    assert told == (
        "odd, `CAST(observation.zone AS INTEGER) > 1`, fails in a step (ConversionException). Write it in the contract "
        "so that it holds for every row, for instance with TRY_CAST."
    )


def test_a_shield_that_fails_names_itself_and_the_row() -> None:
    described = contract(constraints={"odd": {"forbid": "CAST(observation.zone AS INTEGER) > 1"}})

    with pytest.raises(ConstraintError, match=r"odd, .*fails in row 1 of 2, .*'west'") as failed:
        permitted_actions(described, rows(described, 1, 2, zone=["3", "west"]), np.ones((2, 3), dtype=bool))
    assert "fails in row 1 of 2 (ConversionException)" in failed.value.without_row
    assert "west" not in failed.value.without_row


def test_vectors_may_be_asked_about() -> None:
    described = contract(constraints={"hot": {"forbid": "observation.load[2] > 1"}})
    observations = rows(described, 1, 2, 3, load=[[0.0, 2.0], [2.0, 0.0], None])

    assert forbidden_actions(described, observations)["hot"][:, 0].tolist() == [True, False, False]


def test_parts_of_a_replay_know_what_the_whole_permits() -> None:
    described = contract(constraints=KEEP_TWO)
    replay = replay_of(described, rows(described, 1, 5, 2), [1, 2], [0, 1])

    assert replay.permitted[:, 0].tolist() == [False, True, False]
    assert np.array_equal(replay.shielded().subset(np.array([True])).permitted, replay.permitted)
    assert replay.available.all()


def test_rules_of_today_replace_those_that_a_snapshot_was_frozen_with() -> None:
    replay = replay_of(contract(constraints=SLO), rows(contract(), 1, 5), [1], [0])
    today = replay.under(contract(constraints=KEEP_TWO).rules)

    assert not today.permitted[0, 0]
    assert today.contract.breaches == {}
    assert today.contract.digest != replay.contract.digest
    with pytest.raises(ConstraintError, match=r"'memory' is no feature.*Freeze a new snapshot"):
        replay.under(Rules(safe="hold", constraints={"x": Constraint(forbid="observation.memory > 1")}))
