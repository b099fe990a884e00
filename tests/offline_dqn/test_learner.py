from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.contract import Contract
from datasets.encoding import Encoder, fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn import learner
from offline_dqn.architecture import forward
from offline_dqn.distributed import ALONE
from offline_dqn.networks import network_values
from offline_dqn.q_policy import QPolicy
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import TrainedQ, feasible_maximum
from offline_dqn.training_data import (
    TrainingDataError,
    prepare_training_data,
    returns_to_go,
    reward_scale,
    usable_steps,
)
from offline_dqn.watch import TrainingDivergedError
from tests.offline_dqn.worlds import TabularWorld, make_replay, states_of

QUICK = TrainConfig(
    n_updates=60, batch_size=32, hidden=(16, 16), log_every=20, checkpoint_every=20, penalty_weights=(1.0,)
)


def fit(replay: Replay, config: TrainConfig, *, encoder: Encoder, **options: Any) -> TrainedQ:
    return learner.fit(InMemorySource(replay, config, encoder=encoder), config, **options)


def policy_of(trained: TrainedQ, name: str = "cql 1") -> QPolicy:
    return trained.policy(trained.network(name))


def uniform_replay(gamma: float = 0.9, n_episodes: int = 60) -> tuple[TabularWorld, Replay, Encoder]:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=gamma, end_prob=0.05, seed=3)
    replay = world.roll(np.full((6, 3), 1 / 3), n_episodes, horizon=30, seed=0)
    return world, replay, fit_encoder(replay.contract, replay.observations)


def same_bits(one: TrainedQ, other: TrainedQ) -> bool:
    return len(one.networks) == len(other.networks) and all(
        mine.name == theirs.name
        and all(mine.weights[name].tobytes() == theirs.weights[name].tobytes() for name in mine.weights)
        for mine, theirs in zip(one.networks, other.networks, strict=True)
    )


def test_greedy_policy_is_optimal_where_the_log_covers_everything() -> None:
    world, replay, encoder = uniform_replay(n_episodes=300)
    config = TrainConfig(
        n_updates=2_000,
        batch_size=128,
        hidden=(64,),
        penalty_weights=(0.0,),
        learning_rate=2e-3,
        target_sync_every=50,
        log_every=1_000,
    )
    trained = fit(replay, config, encoder=encoder)
    optimal = world.optimal_values()
    states = Observations({"state": np.arange(6, dtype=np.int32)}, replay.observations.vocabularies)
    q_values = policy_of(trained, "dqn").q_values(states)
    assert q_values is not None
    chosen = optimal[np.arange(6), q_values.argmax(axis=1)]
    np.testing.assert_allclose(chosen, optimal.max(axis=1), atol=0.02)
    assert np.abs(q_values - optimal).mean() < 0.1 * optimal.mean()


def test_penalty_keeps_to_the_logged_action() -> None:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=0.9, end_prob=0.05, seed=3)
    mostly = np.full((6, 3), 0.02)
    mostly[:, 1] = 0.96
    replay = world.roll(mostly, 100, horizon=30, seed=0)
    encoder = fit_encoder(replay.contract, replay.observations)
    config = TrainConfig(n_updates=800, hidden=(32,), penalty_weights=(20.0,), learning_rate=2e-3, log_every=400)
    trained = fit(replay, config, encoder=encoder)
    states = Observations({"state": np.arange(6, dtype=np.int32)}, replay.observations.vocabularies)
    for name in ("cql 20", "bc"):
        probs = policy_of(trained, name).action_probs(states, np.ones((6, 3), bool))
        assert (probs.argmax(axis=1) == 1).all()


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


def test_checkpoint_with_a_flipped_bit_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, replay, encoder = uniform_replay()
    undisturbed = fit(replay, QUICK, encoder=encoder, checkpoint_dir=tmp_path)
    path = tmp_path / "training.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert same_bits(undisturbed, fit(replay, QUICK, encoder=encoder, checkpoint_dir=tmp_path))
    assert "not what was written" in caplog.text


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
    of_values = {
        f"{name}/{metric}"
        for name in ("cql 1", "bcq 0.3")
        for metric in ("td_loss", "td_error_abs", "q_logged", "q_greedy", "q_logged_minus_return")
    }
    of_all = {f"{name}/{m}" for name in ("cql 1", "bcq 0.3", "bc") for m in ("conservative_penalty", "gradient_norm")}
    assert set(reported[0][1]) == of_values | of_all | {"learning_rate", "updates_per_s"}
    assert [{"step": step, **m} for step, m in reported] == list(trained.history)
    assert all(network.q_greedy_mean <= network.q_greedy_max for network in trained.networks)
    assert [(network.name, network.step) for network in trained.networks] == [
        (name, step) for step in (30, 60) for name in ("cql 1", "bcq 0.3", "bc")
    ]


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
        assert np.isfinite(fit(replay, QUICK, encoder=encoder).network("cql 1").q_greedy_max)
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
    with pytest.raises(
        TrainingDivergedError, match=r"cql 1 diverged before update 20: (.|\n)*Lower train.learning_rate"
    ):
        fit(replay, QUICK.model_copy(update={"learning_rate": 1e30}), encoder=encoder)


def test_a_learner_that_diverges_alone_is_dropped_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    _, replay, encoder = uniform_replay()
    huge = QUICK.model_copy(update={"penalty_weights": (1.0, 1e38), "max_gradient_norm": 1e38})
    trained = fit(replay, huge, encoder=encoder)
    assert list(trained.diverged) == ["cql 1e+38"]
    assert "it is no candidate" in caplog.text
    assert {network.name for network in trained.networks} == {"cql 1", "bcq 0.3", "bc"}
    alone = fit(replay, QUICK.model_copy(update={"max_gradient_norm": 1e38}), encoder=encoder)
    for name in ("cql 1", "bc"):
        wanted, found = alone.network(name).weights, trained.network(name).weights
        assert all(np.allclose(found[key], wanted[key], rtol=1e-4, atol=1e-6) for key in wanted)


def test_values_beyond_the_feasible_are_recorded() -> None:
    replay, encoder = tiny({"reward": {"max": 0.01}})
    trained = fit(replay, QUICK, encoder=encoder)
    assert trained.feasible_max == pytest.approx(0.1)
    assert trained.exceeds_feasible(trained.network("cql 1"))
    assert not trained.exceeds_feasible(trained.network("bc"))


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
    found = feasible_maximum(tiny(values)[0].contract)
    assert found == (None if wanted is None else pytest.approx(wanted))


def test_values_are_in_reward_units_whatever_the_scale() -> None:
    _, replay, encoder = uniform_replay()
    trained = fit(replay, QUICK, encoder=encoder)
    hundredfold = fit(replace(replay, rewards=100.0 * replay.rewards), QUICK, encoder=encoder)
    observations = replay.observations.take(np.arange(50))
    np.testing.assert_allclose(
        policy_of(hundredfold).q_values(observations), 100.0 * policy_of(trained).q_values(observations), rtol=1e-3
    )
    assert reward_scale(np.full(5, -2.0)) == 2.0
    assert reward_scale(np.zeros(5)) == 1.0


def test_returns_to_go_discount_within_each_episode() -> None:
    replay, _ = tiny({})
    np.testing.assert_allclose(returns_to_go(replay), [1.0, 0.0, 0.9, 1.0])


def test_label_never_seen_in_training_moves_no_value() -> None:
    _, replay, encoder = uniform_replay()
    policy = policy_of(fit(replay, QUICK, encoder=encoder))
    unseen = Observations({"state": np.array([0, 1], dtype=np.int32)}, {"state": ("new", "newer")})
    weights = policy.weights["hidden.0.weight"]
    assert (weights[:, encoder.names.index("state=(unseen)")] == 0).all()
    q_values = policy.q_values(unseen)
    assert q_values is not None
    assert np.isfinite(q_values).all()


def test_states_of_a_replay_are_its_codes() -> None:
    _, replay, _ = uniform_replay()
    assert states_of(replay).max() == 5


def test_pictures_are_learned_from() -> None:
    """Whether a dot stands left or right is all that matters, and only the picture says so."""
    rng = np.random.default_rng(0)
    contract = Contract.model_validate(
        {
            "name": "dots",
            "gamma": 0.9,
            "features": {"load": {"type": "numeric"}, "frame": {"type": "image", "shape": [6, 8, 1]}},
            "actions": {"names": ["left", "right"]},
            "episodes": {"kind": "one_step"},
        }
    )
    n = 800
    pictures = np.zeros((n, 6, 8), dtype=np.uint8)
    columns = rng.integers(8, size=n)
    pictures[np.arange(n), rng.integers(6, size=n), columns] = 255
    actions = rng.integers(2, size=n)
    frame = np.concatenate([pictures.reshape(n, -1), np.zeros((n, 1), np.uint8)], axis=1)  # none is missing
    observations = Observations({"load": rng.normal(size=n), "frame": frame}, {})
    replay = make_replay(
        contract, observations, actions, (actions == (columns >= 4)).astype(float), np.ones(n, dtype=int)
    )
    encoder = fit_encoder(contract, observations)
    config = QUICK.model_copy(update={"n_updates": 300, "penalty_weights": (0.0,), "learning_rate": 3e-3})
    policy = policy_of(fit(replay, config, encoder=encoder), "dqn")
    assert policy.architecture.image is not None
    q_values = policy.q_values(observations)
    assert q_values is not None
    assert ((q_values[:, 1] > q_values[:, 0]) == (columns >= 4)).mean() > 0.98


def test_priorities_stay_finite_when_one_learner_diverges() -> None:
    _, replay, encoder = uniform_replay()
    huge = {"penalty_weights": (1.0, 1e38), "max_gradient_norm": 1e38, "priority_exponent": 0.6}
    trained = fit(replay, QUICK.model_copy(update=huge), encoder=encoder)
    assert list(trained.diverged) == ["cql 1e+38"]
    assert all(np.isfinite(value) for metrics in trained.history for value in metrics.values())
    assert all(np.isfinite(w).all() for w in trained.network("cql 1").weights.values())


def test_a_clone_that_diverges_takes_bcq_with_it_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    _, replay, encoder = uniform_replay()
    source = InMemorySource(replay, QUICK, encoder=encoder)
    training = learner._Training(source, QUICK, torch.device("cpu"), None, None, ALONE)
    with torch.no_grad():
        training.online["head.bias"][-1] = torch.nan  # the clone stands last
    for _ in range(3):
        training.update()
    training.keep()
    training.measure()
    trained = training.trained()
    assert set(trained.diverged) == {"bc", "bcq 0.3"}
    assert "lost its cloned logger" in caplog.text
    assert [network.name for network in trained.networks] == ["cql 1"]


def test_a_gap_is_reached_with_priorities_too() -> None:
    _, replay, encoder = uniform_replay(n_episodes=200)
    config = QUICK.model_copy(
        update={
            "n_updates": 1_500, "penalty_weights": (), "bcq_thresholds": (), "target_gaps": (1.2,), "log_every": 100,
            "priority_exponent": 0.6, "gap_learning_rate": 0.02, "learning_rate": 2e-3,
        }
    )  # fmt: skip
    trained = fit(replay, config, encoder=encoder)
    late = trained.history[-6:]
    assert np.mean([m["cql gap 1.2/penalty_above_gap"] for m in late]) == pytest.approx(0.0, abs=0.08)
    assert 1.0 < np.mean([m["bc/conservative_penalty"] for m in late]) < 1.2  # ln 3 = 1.0986, weighted or not


def test_multipliers_stay_where_they_find_back_from_and_fixed_weights_stay() -> None:
    _, replay, encoder = uniform_replay()
    config = QUICK.model_copy(update={"penalty_weights": (5e4,), "target_gaps": (20.0,), "gap_learning_rate": 1.0})
    source = InMemorySource(replay, config, encoder=encoder)
    training = learner._Training(source, config, torch.device("cpu"), None, None, ALONE)
    for _ in range(60):
        training.update()
    assert training.penalty_weights[:2].tolist() == pytest.approx([5e4, 1e-4], rel=1e-3)


def test_a_clone_says_one_number_for_each_action_whatever_the_q_learners_say() -> None:
    _, replay, encoder = uniform_replay()
    config = QUICK.model_copy(update={"n_quantiles": 8, "cvar_share": 0.25, "dueling": True})
    source = InMemorySource(replay, config, encoder=encoder)
    training = learner._Training(source, config, torch.device("cpu"), None, None, ALONE)
    for _ in range(20):
        training.update()
    training.keep()
    clone = training.trained().network("bc")
    assert clone.architecture.n_quantiles == 1
    encoded = torch.from_numpy(encoder.encode(replay.observations.take(np.arange(50))))
    whole = network_values(training.architecture, training.online, encoded)[-1].mean(dim=-1)
    np.testing.assert_allclose(
        forward(clone.architecture, clone.weights, encoded.numpy())[0, ..., 0], whole.detach().numpy(), atol=1e-5
    )
