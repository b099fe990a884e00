from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.learner import fit
from offline_dqn.policy import load_policy, save_policy
from offline_dqn.potential import Potential, PotentialError
from offline_dqn.q_policy import QPolicy
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from tests.offline_dqn.worlds import TabularWorld

CONTRACT = Contract.model_validate(
    {
        "name": "queue",
        "gamma": 0.9,
        "features": {
            "length": {"type": "numeric", "nullable": True},
            "zone": {"type": "categorical", "values": ["n", "s"]},
            "open": {"type": "boolean", "nullable": True},
        },
        "actions": {"names": ["a", "b"]},
    }
)
ROWS = Observations(
    {
        "length": np.array([4.0, 0.0, np.nan]),
        "zone": np.array([0, 1, 1], dtype=np.int32),
        "open": np.array([1.0, np.nan, 0.0]),
    },
    {"zone": ("n", "s")},
)


def test_potential_is_sql_over_the_observation() -> None:
    sql = "-coalesce(observation.length, 9) + CASE WHEN observation.zone = 's' THEN 0.5 ELSE 0 END"
    np.testing.assert_array_equal(Potential(CONTRACT, sql)(ROWS), [-4.0, 0.5, -8.5])
    assert Potential(CONTRACT, "1 -- one")(ROWS).tolist() == [1.0, 1.0, 1.0]
    assert Potential(CONTRACT, "1")(ROWS.take(np.arange(0))).shape == (0,)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("observation.lenght", r"train.potential cannot be used: `observation.lenght`: .*fields length, zone, open"),
        ("1) AS DOUBLE) FROM steps; COPY steps TO 'x'; SELECT CAST((1", "is not one expression"),
        ("observation.zone", None),
    ],
)
def test_sql_that_is_no_potential_is_refused(sql: str, message: str | None) -> None:
    with pytest.raises(PotentialError, match=message or "fails on these observations: Conversion Error"):
        Potential(CONTRACT, sql)(ROWS)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("-observation.length", r"for 1 of 3 observations: it is null in row 2, \{'length': None, 'zone': 's', "),
        ("1 / observation.length", r"for 2 of 3 observations: it is (inf|null) in row 1, \{'length': 0.0"),
        ("CASE WHEN observation.open THEN 'nan'::DOUBLE ELSE 0 END", "it is nan in row 0"),
    ],
)  # fmt: skip
def test_null_and_infinite_potentials_name_the_row(sql: str, message: str) -> None:
    with pytest.raises(PotentialError, match=message):
        Potential(CONTRACT, sql)(ROWS)


def learned(replay: Replay, config: TrainConfig) -> QPolicy:
    encoder = fit_encoder(replay.contract, replay.observations)
    potentials = None if config.potential is None else Potential(replay.contract, config.potential)(replay.observations)
    trained = fit(InMemorySource(replay, config, encoder=encoder, potentials=potentials), config)
    assert not trained.exceeds_feasible(trained.networks[-1])
    return trained.policy(trained.network("dqn"))


def all_states(replay: Replay, n_states: int) -> Observations:
    return Observations({"state": np.arange(n_states, dtype=np.int32)}, replay.observations.vocabularies)


ALONE: dict[str, Any] = {
    "penalty_weights": (0.0,), "bcq_thresholds": (), "clone": False, "hidden": (64,), "learning_rate": 2e-3,
    "target_sync_every": 50, "log_every": 1_000, "batch_size": 128, "candidates_at": (1.0,),
}  # fmt: skip
NUMBER = "CAST(substr(observation.state, 2) AS DOUBLE)"


@pytest.mark.parametrize("n_step", [1, 2])
def test_shaping_leaves_the_optimum_and_true_values_unchanged(n_step: int) -> None:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=0.9, end_prob=0.05, seed=3)
    replay = world.roll(np.full((6, 3), 1 / 3), 300, horizon=30, seed=0)
    # A potential that says the opposite of the truth: it may slow learning down, not mislead it.
    config = TrainConfig(n_updates=2_000, potential=f"-2 * {NUMBER}", n_step=n_step, **ALONE)
    q_values = learned(replay, config).q_values(all_states(replay, 6))
    assert q_values is not None
    if n_step == 1:  # longer targets are biased towards what the log did, shaped or not
        optimal = world.optimal_values()
        np.testing.assert_allclose(optimal[np.arange(6), q_values.argmax(axis=1)], optimal.max(axis=1), atol=0.02)
        assert np.abs(q_values - optimal).mean() < 0.1 * np.abs(optimal).mean()
    else:
        plain = learned(replay, config.model_copy(update={"potential": None})).q_values(all_states(replay, 6))
        np.testing.assert_allclose(q_values, plain, atol=0.35)


def chain(n_states: int) -> TabularWorld:
    """Action 1 goes on, action 0 goes back; the last state ends with the only reward."""
    transition = np.zeros((n_states, 2, n_states))
    for state in range(n_states):
        transition[state, 0, max(state - 1, 0)] = 1.0
        if state + 1 < n_states:
            transition[state, 1, state + 1] = 1.0
    reward = np.zeros((n_states, 2))
    reward[-1, 1] = 1.0
    return TabularWorld(transition, reward, 0.95)


def right_share(policy: QPolicy, replay: Replay, n_states: int) -> float:
    probs: NDArray[np.float64] = policy.action_probs(all_states(replay, n_states), np.ones((n_states, 2), bool))
    return float((probs[:, 1] > 0.5).mean())


def test_a_good_potential_learns_a_long_chain_sooner() -> None:
    n_states = 24
    world = chain(n_states)
    replay = world.roll(np.full((n_states, 2), 0.5), 200, horizon=40, seed=1)
    config = TrainConfig(n_updates=300, **ALONE)
    plain = right_share(learned(replay, config), replay, n_states)
    shaped = right_share(
        learned(replay, config.model_copy(update={"potential": f"{NUMBER} / {n_states}"})), replay, n_states
    )
    assert shaped == 1.0
    assert plain < 0.8


def test_saved_policy_keeps_its_potential_and_its_graph_leaves_q_values_out(tmp_path: Path) -> None:
    world = TabularWorld.random(n_states=4, n_actions=2, gamma=0.9, end_prob=0.2, seed=1)
    replay = world.roll(np.full((4, 2), 0.5), 40, horizon=7, seed=0)
    policy = learned(replay, TrainConfig(n_updates=20, potential=NUMBER, **ALONE))
    save_policy(tmp_path / "release", policy)
    loaded = load_policy(tmp_path / "release")
    states = all_states(replay, 4)
    found, wanted = loaded.q_values(states), policy.q_values(states)
    assert found is not None
    np.testing.assert_array_equal(found, wanted)
    graph = json.loads((tmp_path / "release" / "policy.json").read_text())["graph"]
    assert (graph["outputs"], graph["whole"]) == (["probabilities"], True)
