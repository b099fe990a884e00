from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.contract import Contract
from datasets.encoding import Encoder, fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.learner import TrainedQ, TrainingDivergedError, feasible_maximum, fit
from offline_dqn.train_config import TrainConfig
from offline_dqn.training_data import (
    TrainingDataError,
    prepare_training_data,
    returns_to_go,
    reward_scale,
    usable_steps,
)
from tests.offline_dqn.worlds import TabularWorld, make_replay, states_of

QUICK = TrainConfig(n_updates=60, batch_size=32, hidden=(16, 16), log_every=20, checkpoint_every=20)


def uniform_replay(gamma: float = 0.9, n_episodes: int = 60) -> tuple[TabularWorld, Replay, Encoder]:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=gamma, end_prob=0.05, seed=3)
    replay = world.roll(np.full((6, 3), 1 / 3), n_episodes, horizon=30, seed=0)
    return world, replay, fit_encoder(replay.contract, replay.observations)


def same_bits(one: TrainedQ, other: TrainedQ) -> bool:
    return all(one.weights[name].tobytes() == other.weights[name].tobytes() for name in one.weights)


def test_greedy_policy_is_optimal_where_the_log_covers_everything() -> None:
    world, replay, encoder = uniform_replay(n_episodes=300)
    config = TrainConfig(
        n_updates=2_000,
        batch_size=128,
        hidden=(64,),
        penalty_weight=0.0,
        learning_rate=2e-3,
        target_sync_every=50,
        log_every=1_000,
    )
    trained = fit(replay, config, encoder=encoder)
    optimal = world.optimal_values()
    states = Observations({"state": np.arange(6, dtype=np.int32)}, replay.observations.vocabularies)
    q_values = trained.to_policy().q_values(states)
    chosen = optimal[np.arange(6), q_values.argmax(axis=1)]
    np.testing.assert_allclose(chosen, optimal.max(axis=1), atol=0.02)
    assert np.abs(q_values - optimal).mean() < 0.1 * optimal.mean()


def test_penalty_keeps_to_the_logged_action() -> None:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=0.9, end_prob=0.05, seed=3)
    mostly = np.full((6, 3), 0.02)
    mostly[:, 1] = 0.96
    replay = world.roll(mostly, 100, horizon=30, seed=0)
    encoder = fit_encoder(replay.contract, replay.observations)
    config = TrainConfig(n_updates=800, hidden=(32,), penalty_weight=20.0, learning_rate=2e-3, log_every=400)
    policy = fit(replay, config, encoder=encoder).to_policy()
    states = Observations({"state": np.arange(6, dtype=np.int32)}, replay.observations.vocabularies)
    assert (policy.q_values(states).argmax(axis=1) == 1).all()


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    _, replay, encoder = uniform_replay()
    first = fit(replay, QUICK, encoder=encoder)
    assert same_bits(first, fit(replay, QUICK, encoder=encoder))
    assert not same_bits(first, fit(replay, QUICK.model_copy(update={"seed": 1}), encoder=encoder))


@pytest.mark.parametrize("dueling", [False, True])
def test_interrupted_training_ends_in_the_same_bits(tmp_path: Path, dueling: bool) -> None:
    _, replay, encoder = uniform_replay()
    config = QUICK.model_copy(update={"dueling": dueling, "target_sync_every": 15})
    undisturbed = fit(replay, config, encoder=encoder)

    def stop(step: int, _: dict[str, float]) -> None:
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(replay, config, encoder=encoder, checkpoint_dir=tmp_path, on_metrics=stop)
    seen: list[int] = []
    resumed = fit(
        replay, config, encoder=encoder, checkpoint_dir=tmp_path, on_metrics=lambda step, _: seen.append(step)
    )
    assert seen == [40, 60]  # the last checkpoint was at 20
    assert same_bits(undisturbed, resumed)
    assert [m["step"] for m in resumed.history] == [20, 40, 60]
    again = fit(replay, config, encoder=encoder, checkpoint_dir=tmp_path, on_metrics=lambda *_: pytest.fail("trained"))
    assert same_bits(undisturbed, again)


KILLED = textwrap.dedent(
    """
    import sys, torch
    from pathlib import Path
    from offline_dqn.learner import fit
    from tests.offline_dqn.test_learner import KILL_CONFIG, uniform_replay
    torch.set_num_threads(1)
    _, replay, encoder = uniform_replay()
    print("started", flush=True)
    fit(replay, KILL_CONFIG, encoder=encoder, checkpoint_dir=Path(sys.argv[1]),
        on_metrics=lambda step, _: print(step, flush=True))
    """
)
KILL_CONFIG = TrainConfig(
    n_updates=600, batch_size=16, hidden=(16,), log_every=10, checkpoint_every=7, target_sync_every=13
)


def test_training_killed_anywhere_ends_in_the_same_bits(tmp_path: Path) -> None:
    _, replay, encoder = uniform_replay()
    undisturbed = fit(replay, KILL_CONFIG, encoder=encoder)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "20":
                break
        time.sleep(float(np.random.default_rng().uniform(0.0, 0.03)))  # anywhere: another moment at every run
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    steps: list[int] = []
    resumed = fit(
        replay, KILL_CONFIG, encoder=encoder, checkpoint_dir=tmp_path, on_metrics=lambda step, _: steps.append(step)
    )
    assert steps[0] > 10  # it went on, and did not start anew
    assert same_bits(undisturbed, resumed)


def test_checkpoint_of_other_settings_or_data_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, replay, encoder = uniform_replay()
    fit(replay, QUICK, encoder=encoder, checkpoint_dir=tmp_path)
    other = QUICK.model_copy(update={"learning_rate": 1e-4})
    with caplog.at_level(logging.WARNING):
        trained = fit(replay, other, encoder=encoder, checkpoint_dir=tmp_path)
    assert "belongs to other data or settings" in caplog.text
    assert same_bits(trained, fit(replay, other, encoder=encoder))
    fewer = replay.subset(np.arange(replay.n_episodes) > 0)
    caplog.clear()
    assert same_bits(fit(fewer, other, encoder=encoder, checkpoint_dir=tmp_path), fit(fewer, other, encoder=encoder))
    assert "belongs to other data or settings" in caplog.text


def test_broken_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, replay, encoder = uniform_replay()
    (tmp_path / "training.safetensors").write_bytes(b"\x00" * 100)
    assert same_bits(fit(replay, QUICK, encoder=encoder, checkpoint_dir=tmp_path), fit(replay, QUICK, encoder=encoder))
    assert "cannot be read" in caplog.text


def test_metrics_are_reported_and_kept() -> None:
    _, replay, encoder = uniform_replay()
    reported: list[tuple[int, dict[str, float]]] = []
    trained = fit(replay, QUICK, encoder=encoder, on_metrics=lambda step, m: reported.append((step, m)))
    assert [step for step, _ in reported] == [20, 40, 60]
    assert set(reported[0][1]) == {
        "td_loss",
        "td_error_abs",
        "conservative_penalty",
        "q_logged",
        "q_greedy",
        "gradient_norm",
        "learning_rate",
        "updates_per_s",
    }
    assert [{"step": step, **m} for step, m in reported] == list(trained.history)
    assert trained.q_greedy_mean <= trained.q_greedy_max


def test_cut_off_step_without_next_observation_is_left_out_and_counted() -> None:
    _, replay, encoder = uniform_replay()
    last = replay.offsets[1:] - 1
    cut = last[~replay.terminated[last]]
    next_row = replay.next_row.copy()
    next_row[cut] = -1
    without = replace(replay, next_row=next_row)
    data = prepare_training_data(without, encoder, 1.0)
    assert set(usable_steps(without)) == set(range(replay.n_steps)) - set(cut)
    # What is left is terminal exactly where the log says so.
    np.testing.assert_array_equal(data.discounts.numpy() == 0.0, replay.terminated[usable_steps(without)])
    assert fit(without, QUICK, encoder=encoder).n_unusable_steps == len(cut) > 0


def test_truncated_last_step_still_bootstraps_from_its_final_observation() -> None:
    _, replay, encoder = uniform_replay()
    data = prepare_training_data(replay, encoder, 1.0)
    last = replay.offsets[1:] - 1
    cut = last[~replay.terminated[last]]
    assert len(cut)
    assert (data.discounts.numpy()[cut] == np.float32(0.9)).all()
    assert (data.next_rows.numpy()[cut] >= replay.n_steps).all()


def tiny(values: dict[str, Any], **changes: Any) -> tuple[Replay, Encoder]:
    base: dict[str, Any] = {
        "name": "tiny",
        "gamma": 0.9,
        "features": {"x": {"type": "numeric"}},
        "actions": {"names": ["a", "b"]},
    }
    x = np.arange(4.0)
    replay = make_replay(
        Contract.model_validate(base | values),
        Observations({"x": x}, {}),
        np.array([0, 1, 0, 1]),
        np.array([1.0, 0.0, 0.0, 1.0]),
        np.array([2, 2]),
    )
    return replace(replay, **changes), fit_encoder(replay.contract, replay.observations)


ENDLESS = {"terminated": np.zeros(4, dtype=bool), "truncated": np.array([False, True, False, True])}


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        ({}, {"terminated": np.zeros(4, bool), "next_row": np.full(4, -1)}, "none of the 4 steps of 2 episodes"),
        (
            {},
            {"rewards": np.array([0.0, np.nan, 1.0, np.inf])},
            "reward is not finite in 2 of 4 steps, first in episode 'e0'",
        ),
        ({}, {"observations": Observations({"x": np.array([0.0, 1.0, np.inf, 2.0])}, {})}, "none"),
        ({}, {"available": np.array([[1, 1], [1, 0], [1, 1], [1, 1]], bool)}, "'b' in episode 'e0' step 1"),
        ({"gamma": 1.0}, ENDLESS, "gamma = 1 and no episode terminates"),
    ],
)
def test_data_that_nothing_can_be_learned_from_is_refused(
    values: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    replay, encoder = tiny(values, **changes)
    if message == "none":  # the encoder cuts wild values: the network never sees them
        assert np.isfinite(fit(replay, QUICK, encoder=encoder).q_greedy_max)
        return
    with pytest.raises(TrainingDataError, match=message):
        fit(replay, QUICK, encoder=encoder)


def test_single_logged_action_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    replay, encoder = tiny({}, actions=np.zeros(4, dtype=np.int64))
    fit(replay, QUICK, encoder=encoder)
    assert "every logged action is 'a'" in caplog.text


def test_one_step_episodes_never_bootstrap() -> None:
    replay, encoder = tiny(
        {"episodes": {"kind": "one_step"}}, terminated=np.zeros(4, bool), offsets=np.arange(5), next_row=np.full(4, -1)
    )
    assert (prepare_training_data(replay, encoder, 1.0).discounts == 0).all()


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    _, replay, encoder = uniform_replay()
    with pytest.raises(TrainingDivergedError, match=r"diverged before update 20: .* Lower train.learning_rate"):
        fit(replay, QUICK.model_copy(update={"learning_rate": 1e30}), encoder=encoder)


def test_values_beyond_the_feasible_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    replay, encoder = tiny({"reward": {"max": 0.01}})
    trained = fit(replay, QUICK, encoder=encoder)
    assert trained.feasible_max == pytest.approx(0.1)
    assert trained.q_exceeds_feasible
    assert "no policy can earn more than 0.1" in caplog.text


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, None),
        ({"reward": {"max": 2.0}}, 20.0),
        ({"reward": {"max": -1.0}}, -1.0),
        ({"reward": {"max": 2.0}, "gamma": 1.0}, None),
        ({"reward": {"max": 0.0}, "gamma": 1.0}, 0.0),
        ({"reward": {"max": 2.0}, "episodes": {"kind": "one_step"}}, 2.0),
    ],
)
def test_feasible_maximum_follows_the_contract(values: dict[str, Any], wanted: float | None) -> None:
    found = feasible_maximum(tiny(values)[0])
    assert found == (None if wanted is None else pytest.approx(wanted))


def test_values_are_in_reward_units_whatever_the_scale() -> None:
    _, replay, encoder = uniform_replay()
    trained = fit(replay, QUICK, encoder=encoder)
    hundredfold = fit(replace(replay, rewards=100.0 * replay.rewards), QUICK, encoder=encoder)
    observations = replay.observations.take(np.arange(50))
    np.testing.assert_allclose(
        hundredfold.to_policy().q_values(observations), 100.0 * trained.to_policy().q_values(observations), rtol=1e-3
    )
    assert reward_scale(np.full(5, -2.0)) == 2.0
    assert reward_scale(np.zeros(5)) == 1.0


def test_returns_to_go_discount_within_each_episode() -> None:
    replay, _ = tiny({})
    np.testing.assert_allclose(returns_to_go(replay), [1.0, 0.0, 0.9, 1.0])


def test_label_never_seen_in_training_moves_no_value() -> None:
    _, replay, encoder = uniform_replay()
    policy = fit(replay, QUICK, encoder=encoder).to_policy()
    unseen = Observations({"state": np.array([0, 1], dtype=np.int32)}, {"state": ("new", "newer")})
    weights = policy.weights["hidden.0.weight"]
    assert (weights[:, encoder.names.index("state=(unseen)")] == 0).all()
    assert np.isfinite(policy.q_values(unseen)).all()


def test_states_of_a_replay_are_its_codes() -> None:
    _, replay, _ = uniform_replay()
    assert states_of(replay).max() == 5
