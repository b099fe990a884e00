"""The shield: no policy takes what is forbidden, and what it does instead."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.contract import contract_from_json
from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import TRAIN, Replay
from offline_dqn.policy import Rule, RulePolicy
from offline_dqn.shield import Shielded, shielded_probs
from offline_dqn.training_data import encode_steps

VALUES = {
    "name": "small",
    "gamma": 0.9,
    "features": {"load": {"type": "numeric"}},
    "actions": {"names": ["down", "hold", "up"], "safe": "hold"},
}
SHIELDED = contract_from_json(
    {**VALUES, "constraints": {"x": {"forbid": "action <> 'up' AND observation.load > 0.5"}}}, "test"
)
ALWAYS_DOWN = RulePolicy(contract_from_json(VALUES, "test"), (), otherwise="down", exploration=0.3)


def loads(*values: float) -> Observations:
    return Observations({"load": np.array(values)}, {})


@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_what_is_forbidden_has_probability_zero_under_exploration_too(values: list[float]) -> None:
    probs = Shielded(ALWAYS_DOWN, SHIELDED).action_probs(loads(*values), np.ones((len(values), 3), dtype=bool))

    forbidden = np.array(values) > 0.5
    assert not probs[forbidden, :2].any()
    assert np.allclose(probs.sum(axis=1), 1)
    assert np.allclose(probs[~forbidden], [0.8, 0.1, 0.1])


def test_a_policy_without_the_forbidden_action_renormalizes_its_exploration() -> None:
    contract = contract_from_json(
        {**VALUES, "constraints": {"x": {"forbid": "action = 'down' AND observation.load > 0.5"}}}, "test"
    )

    probs = Shielded(ALWAYS_DOWN, contract).action_probs(loads(0.9), np.ones((1, 3), dtype=bool))

    assert np.allclose(probs, [[0.0, 0.5, 0.5]])  # its choice is gone; every remaining action is equally likely


def test_the_safe_action_acts_where_a_release_knows_nothing_that_is_permitted() -> None:
    newer = {**VALUES, "actions": {"names": ["down", "hold", "up", "page"], "safe": "page"}}
    contract = contract_from_json({**newer, "constraints": {"x": {"forbid": "observation.load > 0.5"}}}, "test")
    rules = (Rule("observation.load > 0.9", "up"),)
    older = RulePolicy(contract_from_json(VALUES, "test"), rules, otherwise="down", actions=contract.actions.names)

    probs = Shielded(older, contract).action_probs(loads(0.6, 0.4), np.ones((2, 4), dtype=bool))

    assert np.array_equal(probs, [[0, 0, 0, 1], [1, 0, 0, 0]])


def test_without_constraints_the_policy_is_asked_as_it_is() -> None:
    available = np.array([[True, True, False]])

    asked = shielded_probs(ALWAYS_DOWN, ALWAYS_DOWN.contract, loads(0.9), available)

    assert np.array_equal(asked, ALWAYS_DOWN.action_probs(loads(0.9), available))


def test_targets_maximize_over_what_is_permitted() -> None:
    contract = contract_from_json(
        {**VALUES, "constraints": {"x": {"forbid": "action = 'up' AND observation.load > 0.5"}}}, "test"
    )
    replay = Replay(
        contract=contract,
        digest="",
        observations=loads(0.9, 0.8, 0.1, 0.9),
        available=np.ones((4, 3), dtype=bool),
        actions=np.array([0, 2, 0]),  # the second step's action is forbidden by now
        rewards=np.zeros(3),
        terminated=np.zeros(3, dtype=bool),
        truncated=np.array([False, False, True]),
        next_row=np.array([1, 2, 3]),
        behavior_prob=np.full(3, 0.5),
        offsets=np.array([0, 3]),
        episode_ids=np.array(["e"]),
        clusters=np.array([0]),
        nights=np.array(["2026-01-05"], dtype="datetime64[D]"),
        policy_versions=np.array([""]),
        split=np.array([TRAIN], dtype=np.int8),
    )

    data = encode_steps(replay, fit_encoder(contract, replay.observations), 1.0)

    assert data.available[:, 2].tolist() == [False, True, True, False]
    assert bool(data.available[:, :2].all())
