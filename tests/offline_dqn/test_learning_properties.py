"""What training promises on any data: gaps that are reached, spread that shrinks, an early end that is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.learner import fit
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import Metrics, TrainedQ
from tests.offline_dqn.worlds import TabularWorld

WORLD = TabularWorld.random(n_states=6, n_actions=3, gamma=0.9, end_prob=0.1, seed=3)
SMALL: dict[str, Any] = {
    "batch_size": 64, "hidden": (32,), "learning_rate": 2e-3, "target_sync_every": 50, "penalty_weights": (),
    "bcq_thresholds": (), "clone": False, "candidates_at": (1.0,),
}  # fmt: skip


def rolled(n_episodes: int, seed: int = 0) -> Replay:
    mostly = np.tile([0.6, 0.3, 0.1], (6, 1))
    return WORLD.roll(mostly, n_episodes, horizon=20, seed=seed, noise=0.3)


def train(replay: Replay, config: TrainConfig, **options: Any) -> TrainedQ:
    source = InMemorySource(replay, config, encoder=fit_encoder(replay.contract, replay.observations))
    return fit(source, config, **options)


def test_a_target_gap_is_reached_by_moving_its_weight() -> None:
    # The penalty is a cross-entropy: nothing gets it below the entropy of the log's actions, here 0.90.
    config = TrainConfig(**SMALL | {"target_gaps": (0.95, 1.1)}, n_updates=3_000, log_every=50, gap_learning_rate=1e-2)
    history = train(rolled(200), config).history[-20:]
    weights = []
    for gap in config.target_gaps:
        penalty = np.mean([metrics[f"cql gap {gap:g}/conservative_penalty"] for metrics in history])
        assert penalty == pytest.approx(gap, abs=0.05)
        above = np.mean([metrics[f"cql gap {gap:g}/penalty_above_gap"] for metrics in history])
        assert above == pytest.approx(penalty - gap, abs=1e-6)
        weights.append(np.mean([metrics[f"cql gap {gap:g}/penalty_weight"] for metrics in history]))
    assert weights[0] > 2 * weights[1] > 0


def test_networks_of_an_ensemble_differ_and_agree_more_where_there_are_more_data() -> None:
    config = TrainConfig(**SMALL | {"penalty_weights": (0.0,)}, n_members=4, n_updates=800, log_every=100)
    states = Observations({"state": np.arange(6, dtype=np.int32)}, rolled(5).observations.vocabularies)
    spreads = []
    for n_episodes in (3, 300):
        trained = train(rolled(n_episodes), config)
        policy = trained.policy(trained.network("dqn"))
        weights = policy.weights["hidden.0.weight"]
        assert all(not np.allclose(weights[i], weights[j]) for i in range(4) for j in range(i))
        disagreement = policy.disagreement(states)
        assert disagreement is not None
        assert (disagreement > 0).all()
        spreads.append(disagreement.mean())
        assert trained.history[-1]["dqn/ensemble_spread"] > 0
    assert spreads[1] < 0.5 * spreads[0]


class _KilledError(Exception):
    pass


def test_training_that_has_settled_stops_early_and_a_resumed_one_stops_at_the_same_update(tmp_path: Path) -> None:
    config = TrainConfig(
        **SMALL | {"penalty_weights": (0.0, 1.0)}, n_updates=20_000, log_every=100, checkpoint_every=130,
        settled_share=0.05,
    )  # fmt: skip
    replay = rolled(200)
    undisturbed = train(replay, config)
    assert 300 <= undisturbed.n_updates < 10_000
    assert [m["changed_share"] < 0.05 for m in undisturbed.history[-3:]] == [True, True, True]
    assert {network.step for network in undisturbed.networks} == {undisturbed.n_updates}

    def die(step: int, _: Metrics) -> None:
        if step == undisturbed.n_updates - 100:  # two of the three measurements are done
            raise _KilledError

    with pytest.raises(_KilledError):
        train(replay, config, checkpoint_dir=tmp_path, on_metrics=die)
    resumed = train(replay, config, checkpoint_dir=tmp_path)
    assert resumed.n_updates == undisturbed.n_updates
    for mine, theirs in zip(resumed.networks, undisturbed.networks, strict=True):
        assert all(mine.weights[name].tobytes() == theirs.weights[name].tobytes() for name in mine.weights)
    changed = [[m["changed_share"] for m in trained.history] for trained in (resumed, undisturbed)]
    assert changed[0] == changed[1]


def test_training_that_never_settles_does_all_its_updates() -> None:
    config = TrainConfig(**SMALL | {"penalty_weights": (0.0,)}, n_updates=200, log_every=20, settled_share=1e-9)
    trained = train(rolled(50), config)
    assert trained.n_updates == 200 or trained.history[-1]["changed_share"] == 0.0
