"""Data and settings that nothing good can come of, each with the message that says so."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from datasets.contract import Contract
from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from datasets.settings import SettingsError, build_settings
from offline_dqn import devices
from offline_dqn.architecture import Architecture, ImageShape
from offline_dqn.devices import DeviceError, available_bytes, needed_bytes, resolve_device
from offline_dqn.learner import fit
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import TrainedQ
from offline_dqn.training_data import TrainingDataError
from tests.offline_dqn.worlds import make_replay

QUICK = TrainConfig(n_updates=20, batch_size=8, hidden=(8,), log_every=10, penalty_weights=(1.0,))


def log(contract: dict[str, Any] | None = None, lengths: tuple[int, ...] = (2, 2), **changes: Any) -> Replay:
    described: dict[str, Any] = {
        "name": "tiny",
        "gamma": 0.9,
        "features": {"x": {"type": "numeric"}},
        "actions": {"names": ["a", "b", "c"]},
    }
    replay = make_replay(
        Contract.model_validate(described | (contract or {})),
        Observations({"x": np.arange(4.0)}, {}),
        np.array([0, 1, 2, 1]),
        np.array([1.0, 0.0, 0.5, 1.0]),
        np.array(lengths),
    )
    return replace(replay, **changes)


def trained_on(replay: Replay, config: TrainConfig = QUICK) -> TrainedQ:
    encoder = fit_encoder(replay.contract, replay.observations)
    return fit(InMemorySource(replay, config, encoder=encoder), config)


def every_q_is_finite(trained: TrainedQ) -> bool:
    return all(np.isfinite(values).all() for n in trained.networks for values in n.weights.values())


@pytest.mark.parametrize(
    ("replay", "warning"),
    [
        (log(actions=np.zeros(4, dtype=np.int64)), "every logged action is 'a': the log says nothing about the others"),
        (log(actions=np.array([0, 1, 0, 1])), "the log never takes 'c' in 4 steps: what follows is not known"),
        (log(lengths=(4,)), "all 4 steps are of a single episode: what it met by chance is all there is to learn"),
        (log(rewards=np.zeros(4)), "every reward is 0: no action is better than another"),
        (log(rewards=np.full(4, -1.0)), "every reward is -1: only how long episodes last tells actions apart"),
        (
            log({"episodes": {"kind": "one_step"}}, (1, 1, 1, 1), rewards=np.full(4, 2.0)),
            "every reward is 2: no action is better than another",
        ),
    ],
)
def test_data_that_teach_little_are_trained_on_with_a_warning(
    replay: Replay, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert every_q_is_finite(trained_on(replay))
    assert [record.message for record in caplog.records if record.message.startswith(warning)]


def test_good_data_give_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    never_offered = np.tile([True, True, False], (4, 1))
    with caplog.at_level(logging.WARNING):
        trained_on(log())
        trained_on(log(actions=np.array([0, 1, 0, 1]), available=never_offered))
    assert caplog.records == []


ENDLESS = {"terminated": np.zeros(4, dtype=bool), "truncated": np.array([False, True, False, True])}


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        (
            log(available=np.zeros((4, 3), bool)),
            r"the logged action was not available in 4 steps, first 'a' in episode 'e0' step 0; correct available_act"
            r"(.|\n)*no action is available at 2 next observations, first that behind in episode 'e0' step 0",
        ),
        (log({"gamma": 1.0}, **ENDLESS, next_row=np.array([1, 0, 3, 2])), "gamma = 1 and no episode terminates: the"),
        (log(**ENDLESS, next_row=np.full(4, -1)), "none of the 4 steps of 2 episodes can be learned from"),
        (log(rewards=np.array([0.0, np.nan, 1.0, np.inf])), "reward is not finite in 2 of 4 steps, first in episode"),
    ],
)
def test_data_that_nothing_can_be_learned_from_are_refused(replay: Replay, message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        trained_on(replay)


def test_all_faults_are_named_at_once() -> None:
    replay = log({"gamma": 1.0}, **ENDLESS, next_row=np.array([1, 0, 3, 2]), rewards=np.full(4, np.nan))
    with pytest.raises(TrainingDataError, match=r"cannot be trained on:\n  reward is not finite(.|\n)*\n  gamma = 1"):
        trained_on(replay)


@pytest.mark.parametrize("value", [np.nan, -1e300])
def test_missing_and_wild_observations_reach_no_network(value: float) -> None:
    """NaN is a missing value; what is far out is cut. (The validation on the way in has its own say on both.)"""
    replay = log(observations=Observations({"x": np.array([0.0, value, 1.0, 2.0])}, {}))
    if np.isnan(value):
        assert "x is missing" in fit_encoder(replay.contract, replay.observations).names
    with np.errstate(over="ignore"):
        assert every_q_is_finite(trained_on(replay))


def test_infinite_observation_names_its_column_and_step() -> None:
    replay = log(observations=Observations({"x": np.array([0.0, np.inf, 1.0, 2.0])}, {}))
    message = r"not finite in 1 columns \(x\), first in episode 'e0' step 1; a value of the log is infinite"
    with np.errstate(invalid="ignore"), pytest.raises(TrainingDataError, match=message):
        trained_on(replay)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": [0]}, r"hidden"),
        ({"cvar_share": 0.5}, "cvar_share = 0.5 needs n_quantiles > 1: one value has no lowest share"),
        ({"clone": False}, "bcq_thresholds need clone = true"),
        ({"penalty_weights": [], "bcq_thresholds": [], "clone": False}, "names no learner"),
        ({"penalty_weights": [1, 1]}, "names a value twice: 1, 1"),
        ({"candidates_at": []}, "candidates_at is empty"),
        ({"learning_rat": 1.0}, r"learning_rat.*learning_rate"),
        ({"precision": "fp16"}, "precision"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"reward_scale": float("inf")}, "reward_scale"),
        ({"penalty_weights": [float("nan")]}, "penalty_weights"),
    ],
)
def test_settings_that_cannot_be_name_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        build_settings(TrainConfig, values, "offline_dqn.toml")
    assert "offline_dqn.toml" in str(error.value)


def test_unknown_or_absent_device_names_those_that_are_there() -> None:
    with pytest.raises(DeviceError, match=r"train.device = 'gpu' cannot be used here(.|\n)*have: cpu"):
        trained_on(log(), QUICK.model_copy(update={"device": "gpu"}))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=r'train.device = \'cuda\' cannot be used here.*"auto" takes a GPU'):
            trained_on(log(), QUICK.model_copy(update={"device": "cuda"}))
    assert resolve_device("cpu").type == "cpu"


def test_bf16_without_instructions_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_bf16", lambda _: False)
    with pytest.raises(DeviceError, match="this cpu has no instructions for it: it would be slower than fp32"):
        trained_on(log(), QUICK.model_copy(update={"precision": "bf16"}))
    trained_on(log(), QUICK.model_copy(update={"precision": "auto"}))


def test_networks_too_large_for_memory_are_refused_before_they_are_made() -> None:
    huge = QUICK.model_copy(update={"hidden": (300_000, 300_000), "n_members": 2})
    with pytest.raises(DeviceError) as error:
        trained_on(log(), huge)
    text = str(error.value)
    assert "5 networks of 90,001,800,003 parameters need about" in text
    assert "of the cpu's memory are available" in text
    assert "train.hidden (300000, 300000)" in text


def test_a_large_batch_is_too_large_as_well() -> None:
    with pytest.raises(DeviceError, match=r"train.batch_size \(1000000000\)"):
        trained_on(log(), QUICK.model_copy(update={"batch_size": 1_000_000_000, "hidden": (1_000,)}))


def test_need_is_about_what_training_takes_and_small_networks_always_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = Architecture(n_inputs=100, n_actions=4, hidden=(500, 500), n_members=3)
    n_parameters = 3 * (100 * 500 + 500 + 500 * 500 + 500 + 500 * 4 + 4)
    parameters, batch = needed_bytes(architecture, TrainConfig(batch_size=10, candidates_at=(1.0,)), n_steps=1)
    assert parameters == 4 * n_parameters * (5 + 1 + 2 * (4 + 1))
    assert batch == 4 * 3 * 10 * 3 * (500 + 500 + 4)
    picture = architecture.model_copy(update={"image": ImageShape(height=8, width=8, channels=1), "n_quantiles": 5})
    assert needed_bytes(picture, TrainConfig(batch_size=10), n_steps=1)[1] > batch
    monkeypatch.setattr(devices, "available_bytes", lambda _: 0)
    trained_on(log())


def test_available_memory_is_known_on_linux() -> None:
    found = available_bytes(torch.device("cpu"))
    assert found is None or 0 <= found < 2**50
