from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.learner import fit
from offline_dqn.mixture import MixturePolicy
from offline_dqn.networks import to_weights
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import RulePolicy
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from offline_dqn.warm_start import WarmStartError, champion_parameters
from tests.offline_dqn.logs import numbered_replay

CONFIG = TrainConfig(
    n_updates=30, batch_size=32, hidden=(16,), log_every=10, penalty_weights=(0.0, 1.0), candidates_at=(1.0,)
)


def source_of(replay: Replay, config: TrainConfig) -> InMemorySource:
    return InMemorySource(replay, config, encoder=fit_encoder(replay.contract, replay.observations))


def champion(config: TrainConfig, learner: str = "cql 1") -> QPolicy:
    trained = fit(source_of(numbered_replay(60), config), config)
    return trained.policy(trained.network(learner))


def later_replay() -> Replay:
    """Another night: every mean, spread and the scale of the rewards have moved."""
    replay = numbered_replay(60, seed=7)
    columns = dict(replay.observations.columns)
    columns["x0"], columns["x1"] = 1.7 * columns["x0"] + 0.4, 0.9 * columns["x1"] - 3.0
    return replace(
        replay,
        observations=Observations(columns, replay.observations.vocabularies),
        rewards=3.0 * replay.rewards,
    )


@pytest.mark.parametrize("changes", [{}, {"dueling": True}, {"hidden": ()}, {"n_quantiles": 3}, {"n_members": 2}])
def test_networks_begin_with_the_champions_values_whatever_the_encoder(changes: dict[str, Any]) -> None:
    config = CONFIG.model_copy(update=changes)
    parent, source = champion(config), source_of(later_replay(), config)
    assert source.encoder != parent.encoder
    assert source.reward_scale != pytest.approx(parent.reward_scale)
    parameters = champion_parameters(parent, source, config)
    child = replace(parent, encoder=source.encoder, reward_scale=source.reward_scale, weights=to_weights(parameters))
    rows = numbered_replay(20, seed=3).observations  # some values are missing
    wanted, found = parent.q_values(rows), child.q_values(rows)
    assert wanted is not None
    assert found is not None
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_training_starts_there_for_every_learner_of_values_and_not_for_the_clone() -> None:
    config = CONFIG.model_copy(update={"n_members": 2, "n_updates": 1, "learning_rate": 1e-12})
    source = source_of(later_replay(), config)
    parameters = champion_parameters(champion(CONFIG.model_copy(update={"n_members": 2})), source, config)
    trained = fit(source, config, warm_start=parameters)
    for name in ("dqn", "cql 1", "bcq 0.3"):
        for key, values in trained.network(name).weights.items():
            np.testing.assert_allclose(values, parameters[key].numpy(), atol=1e-6)
    assert trained.network("bc").weights["head.weight"].shape[0] == 1
    assert not np.allclose(trained.network("bc").weights["head.weight"][0], parameters["head.weight"][0].numpy())
    members = trained.network("cql 1").weights["head.weight"]
    assert not np.allclose(members[0], members[1])


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({"hidden": (8,)}, r"hidden was \(8,\) and is \(16,\)"),
        ({"dueling": True}, "dueling was True and is False"),
        ({"n_quantiles": 3}, "n_quantiles was 3 and is 1"),
        ({"potential": "observation.x1"}, "potential was observation.x1 and is None"),
    ],
)
def test_a_champion_of_another_shape_says_what_differs(before: dict[str, Any], message: str) -> None:
    parent = champion(CONFIG.model_copy(update=before))
    with pytest.raises(WarmStartError, match=message):
        champion_parameters(parent, source_of(numbered_replay(60), CONFIG), CONFIG)


def test_fewer_networks_than_wanted_or_other_columns_are_refused() -> None:
    parent = champion(CONFIG)
    more = CONFIG.model_copy(update={"n_members": 3})
    with pytest.raises(WarmStartError, match="it has 1 networks and n_members is 3: two that begin alike stay alike"):
        champion_parameters(parent, source_of(numbered_replay(60), more), more)
    other = numbered_replay(60)
    relabelled = replace(other, observations=Observations(other.observations.columns, {"zone": ("n", "s", "east")}))
    with pytest.raises(WarmStartError, match=r"encoded columns differ \(zone=east, zone=w\)"):
        champion_parameters(parent, source_of(relabelled, CONFIG), CONFIG)


def test_of_a_mixture_its_own_part_counts_and_rules_have_nothing_to_give() -> None:
    own, source = champion(CONFIG), source_of(numbered_replay(60), CONFIG)
    rules = RulePolicy(contract=own.contract, rules=(), otherwise="a")
    mixed = champion_parameters(MixturePolicy(own, rules, 0.5), source, CONFIG)
    alone = champion_parameters(own, source, CONFIG)
    assert all((mixed[name] == alone[name]).all() for name in alone)
    for policy in (rules, champion(CONFIG, "bc")):
        with pytest.raises(WarmStartError, match="it has no networks that learned values"):
            champion_parameters(policy, source, CONFIG)


def test_a_champion_of_another_gamma_is_refused() -> None:
    parent = champion(CONFIG)
    short = replace(parent, contract=parent.contract.model_copy(update={"gamma": 0.5}))
    with pytest.raises(WarmStartError, match=r"gamma was 0\.5 and is"):
        champion_parameters(short, source_of(numbered_replay(60), CONFIG), CONFIG)
