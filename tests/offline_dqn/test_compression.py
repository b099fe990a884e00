from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from offline_dqn.choice import BehaviorModel, Choice
from offline_dqn.compression import DistillConfig, distill, quantize
from offline_dqn.compression_loss import measure_loss
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.int8_weights import Int8Weights
from offline_dqn.policy import QPolicy
from tests.offline_dqn.test_policy import CONTRACT, everything, some_observations, some_policy
from tests.offline_dqn.worlds import make_replay

QUICK = DistillConfig(hidden=(16,), n_updates=800, batch_size=128)
ROWS = some_observations(1_200)
TRAIN, TEST = np.arange(800), np.arange(800, 1_200)


def agreement(one: QPolicy, other: QPolicy) -> float:
    rows = ROWS.take(TEST)
    probs = [policy.action_probs(rows, everything(400)).argmax(axis=1) for policy in (one, other)]
    return float((probs[0] == probs[1]).mean())


def test_a_student_acts_like_its_teachers() -> None:
    ensemble = some_policy(n_members=3, dueling=True)
    student = distill(ensemble, ROWS, everything(800), QUICK)
    assert student.architecture.hidden == (16,)
    assert (student.architecture.n_members, student.architecture.dueling) == (1, False)
    assert agreement(student, ensemble) > 0.95
    wanted, found = ensemble.q_values(ROWS.take(TEST)), student.q_values(ROWS.take(TEST))
    assert wanted is not None
    assert found is not None
    assert np.abs(found - wanted).mean() < 0.1 * wanted.std()


def test_a_student_keeps_quantiles_and_support() -> None:
    policy = replace(some_policy(threshold=0.8, n_quantiles=4), choice=Choice(cvar_share=0.5, support_threshold=0.8))
    done: list[int] = []
    student = distill(policy, ROWS, everything(800), QUICK, on_update=done.append)
    assert student.choice == policy.choice
    assert student.architecture.n_quantiles == 4
    assert student.behavior is not None
    assert student.behavior.architecture.hidden == (16,)
    assert agreement(student, policy) > 0.85
    assert done == list(range(1, 1_601))


def test_a_behavior_model_with_quantiles_becomes_small_too() -> None:
    policy = some_policy(threshold=0.8, n_quantiles=4)
    wide = policy.architecture
    policy = replace(policy, behavior=BehaviorModel(wide, policy.weights))
    student = distill(policy, ROWS, everything(800), replace_updates(20))
    assert student.behavior is not None
    assert student.behavior.architecture.n_quantiles == 4


def test_layers_without_units_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        DistillConfig(hidden=(16, 0))


def test_a_student_of_a_clone_learns_its_probabilities() -> None:
    clone = replace(some_policy(0.0), kind="logits", choice=Choice(rule="softmax"), reward_scale=1.0)
    student = distill(clone, ROWS, everything(800), QUICK)
    rows = ROWS.take(TEST)
    difference = student.action_probs(rows, everything(400)) - clone.action_probs(rows, everything(400))
    assert np.abs(difference).mean() < 0.01


def test_the_same_seed_teaches_the_same_student() -> None:
    first, second = (distill(some_policy(), ROWS, everything(800), replace_updates(50)) for _ in range(2))
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(weight, second.weights[name])


def replace_updates(n_updates: int) -> DistillConfig:
    return QUICK.model_copy(update={"n_updates": n_updates})


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 4, 3, 3, 3)])
def test_codes_are_the_nearest(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[0, ..., 0] = 0.0
    found = Int8Weights.of({"layer.weight": weight, "layer.bias": weight[:, :1]})
    scales = found.scales["layer.weight"]
    assert found.codes["layer.weight"].dtype == np.int8
    assert (np.abs(found["layer.weight"] - weight) <= scales / 2 * (1 + 1e-5)).all()
    np.testing.assert_array_equal(found["layer.bias"], weight[:, :1])
    assert sorted(found) == ["layer.bias", "layer.weight"]
    again = Int8Weights.of(found)
    np.testing.assert_array_equal(again.codes["layer.weight"], found.codes["layer.weight"])


def test_int8_keeps_nearly_every_action() -> None:
    policy = some_policy(threshold=0.5, n_members=2)
    small = quantize(policy)
    assert agreement(small, policy) > 0.97
    assert small.behavior is not None
    assert isinstance(small.behavior.weights, Int8Weights)


def test_the_loss_of_the_same_policy_is_nothing() -> None:
    rng = np.random.default_rng(0)
    replay = make_replay(CONTRACT, ROWS, rng.integers(0, 3, 1_200), rng.normal(size=1_200), np.full(120, 10))
    policy, config = some_policy(), FqeConfig(n_random_features=20)
    same = measure_loss(policy, policy, replay, encoder=policy.encoder, config=config, seed=0)
    other = measure_loss(policy, some_policy(seed=4), replay, encoder=policy.encoder, config=config, seed=0)
    assert (same.agreement, same.value_loss, same.standard_error) == (1.0, 0.0, 0.0)
    assert (same.n_steps, same.n_episodes) == (1_200, 120)
    assert other.agreement < 1.0
    assert abs(other.value_loss) < 4 * other.standard_error  # rewards are noise: no policy earns more
    assert other.value_loss == pytest.approx(other.value_before - other.value_after)
