from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datasets.contract import Contract
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.rule_policy import RulePolicy
from offline_dqn.simple_policies import constant_policies, tree_policy
from tests.offline_dqn.worlds import make_replay

CONTRACT = Contract.model_validate(
    {
        "name": "scaler",
        "gamma": 0.9,
        "features": {
            "cpu": {"type": "numeric", "nullable": True},
            "zone": {"type": "categorical", "values": ["eu", "o'brien"]},
            "night": {"type": "boolean"},
        },
        "actions": {"names": ["hold", "up", "down"]},
    }
)


def logged(n: int = 600) -> Replay:
    rng = np.random.default_rng(0)
    cpu, zone, night = rng.random(n), rng.integers(2, size=n), rng.integers(2, size=n).astype(np.float64)
    actions = np.where(cpu > 0.7, 1, np.where((zone == 1) & (night == 0), 2, 0))
    cpu[::50] = np.nan
    observations = Observations(
        {"cpu": cpu, "zone": zone.astype(np.int32), "night": night}, {"zone": ("eu", "o'brien")}
    )
    return make_replay(CONTRACT, observations, actions, np.zeros(n), np.ones(n))


def test_every_action_has_its_constant_policy() -> None:
    policies = constant_policies(CONTRACT, 0.0)
    assert list(policies) == ["always hold", "always up", "always down"]
    replay = logged(4)
    available = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0]], dtype=bool)
    probs = policies["always up"].action_probs(replay.observations, available)
    np.testing.assert_allclose(probs, [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0], [0, 1, 0]])


def test_tree_is_rules_that_act_as_the_log_did() -> None:
    replay = logged()
    policy = tree_policy(replay, 0.0)
    assert len(policy.rules) <= 7
    assert any("cpu" in rule.when for rule in policy.rules)
    probs = policy.action_probs(replay.observations, replay.available)
    agreement = probs[np.arange(replay.n_steps), replay.actions].mean()
    assert agreement > 0.96  # but for the missing values


def test_branches_that_agree_ask_no_question() -> None:
    replay = logged()
    always = make_replay(CONTRACT, replay.observations, np.ones(600), np.zeros(600), np.ones(600))
    policy = tree_policy(always, 0.05)
    assert policy.rules == ()
    assert policy.otherwise == "up"


def agreement(features: dict[str, Any], observations: Observations, actions: np.ndarray) -> tuple[RulePolicy, float]:
    contract = Contract.model_validate(
        {"name": "x", "gamma": 0.9, "features": features, "actions": {"names": ["a", "b"]}}
    )
    n = len(actions)
    replay = make_replay(contract, observations, actions, np.zeros(n), np.ones(n))
    policy = tree_policy(replay, 0.0)
    probs = policy.action_probs(replay.observations, replay.available)
    return policy, float(probs[np.arange(n), replay.actions].mean())


@pytest.mark.parametrize("label", ["a{}", "{x}{}", "x{", "o'brien", "n\x00ul", "a' OR 'b' = 'b"])
def test_labels_of_any_text_are_asked_for(label: str) -> None:
    zone = np.arange(400, dtype=np.int32) % 2
    _, agrees = agreement(
        {"zone": {"type": "categorical"}}, Observations({"zone": zone}, {"zone": ("eu", label)}), zone
    )
    assert agrees == 1.0


@pytest.mark.parametrize(
    ("low", "high"), [(1_700_000_000.0, 1_700_000_001.0), (-1e39, 1e308), (0.1, 0.1 + 2**-54), (-1e-300, 1e-300)]
)
def test_thresholds_lie_between_neighbours_of_any_size(low: float, high: float) -> None:
    above = np.arange(400) % 2
    observations = Observations({"v": np.where(above, high, low)}, {})
    _, agrees = agreement({"v": {"type": "numeric"}}, observations, above)
    assert agrees == 1.0


def test_one_enormous_value_leaves_the_others_apart() -> None:
    values = np.arange(400.0)
    values[-1] = 1e300
    policy, agrees = agreement({"v": {"type": "numeric"}}, Observations({"v": values}, {}), (values > 99).astype(int))
    assert [rule.when for rule in policy.rules] == ['observation."v" > 99.5']
    assert agrees == 1.0


def test_missing_numbers_can_be_what_decides() -> None:
    values = np.where(np.arange(400) % 2, np.nan, 1.0)
    features = {"v": {"type": "numeric", "nullable": True}}
    policy, agrees = agreement(features, Observations({"v": values}, {}), (np.arange(400) % 2))
    assert [rule.when for rule in policy.rules] == ['observation."v" IS NOT NULL']
    assert agrees == 1.0


def test_images_are_not_asked_about() -> None:
    image = {"type": "image", "shape": [2, 2, 1]}
    frames, actions = np.zeros((400, 5), dtype=np.uint8), (np.arange(400) % 4 > 0).astype(int)
    policy, _ = agreement({"f": image}, Observations({"f": frames}, {}), actions)
    assert (policy.rules, policy.otherwise) == ((), "b")
    pair = np.stack([np.zeros(400), actions], axis=1).astype(np.float64)
    features = {"f": image, "pair": {"type": "vector", "length": 2}}
    policy, agrees = agreement(features, Observations({"f": frames, "pair": pair}, {}), actions)
    assert [rule.when for rule in policy.rules] == ['observation."pair"[2] > 0.5']
    assert agrees == 1.0
