from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.contract import contract_from_text
from datasets.observations import Observations
from reports.dynamics_models import DynamicsModels, fit_dynamics, place_outcomes
from reports.estimators import Floats
from tests.reports.promotion_world import CONTRACT, Leaning, logged

LOGGER, PROMOTED = Leaning(-0.3), Leaning(-1.1, 0.15)


@pytest.fixture(scope="module")
def models() -> DynamicsModels:
    return fit_dynamics(logged(np.random.default_rng(0), LOGGER, n_nights=10, per_night=120), seed=0)


def unevenness(values: Floats) -> float:
    """Largest difference between the shares of ten bins of [0, 1] and a tenth."""
    return float(np.abs(np.histogram(values, bins=10, range=(0, 1))[0] / len(values) - 0.1).max())


@pytest.mark.parametrize("policy", [LOGGER, PROMOTED])
def test_outcomes_fall_evenly_whichever_policy_acts(models: DynamicsModels, policy: Leaning) -> None:
    # The noise of the load grows with its size, which the promoted policy changes: plain residuals would differ.
    placed = place_outcomes(models, logged(np.random.default_rng(1), policy, n_nights=10, per_night=120), seed=1)
    assert set(placed) == {"reward", "load", "busy", "level", "weather"}
    for name, found in placed.items():
        assert not np.isnan(found.values).any()
        # 7,000 steps of 1,200 episodes: a share of .1 has a standard error of about .004, and models are not perfect.
        assert unevenness(found.values) < 0.03, name


def test_changed_world_shows_in_what_it_changed(models: DynamicsModels) -> None:
    rng = np.random.default_rng(2)
    weaker = place_outcomes(models, logged(rng, LOGGER, n_nights=10, per_night=120, push=0.0), seed=1)
    assert unevenness(weaker["load"].values) > 0.05
    assert unevenness(weaker["weather"].values) < 0.03
    dearer = place_outcomes(models, logged(rng, LOGGER, n_nights=10, per_night=120, reward_shift=-0.5), seed=1)
    assert unevenness(dearer["reward"].values) > 0.05
    assert unevenness(dearer["load"].values) < 0.03


def test_only_steps_that_something_followed_are_placed(models: DynamicsModels) -> None:
    live = logged(np.random.default_rng(3), LOGGER, n_nights=1, per_night=50)
    placed = place_outcomes(models, live, seed=0)
    assert np.array_equal(placed["load"].rows, np.flatnonzero(live.next_row >= 0))
    assert len(placed["reward"].rows) == live.n_steps


def test_label_that_was_never_seen_comes_last(models: DynamicsModels) -> None:
    live = logged(np.random.default_rng(3), LOGGER, n_nights=1, per_night=50)
    columns = dict(live.observations.columns)
    columns["level"] = np.full_like(columns["level"], 3)
    strange = replace(live, observations=Observations(columns, {"level": ("low", "middle", "high", "absurd")}))
    assert (place_outcomes(models, strange, seed=0)["level"].values == 1.0).all()


def test_feature_that_a_newer_contract_added_changes_nothing(models: DynamicsModels) -> None:
    live = logged(np.random.default_rng(3), LOGGER, n_nights=1, per_night=50)
    columns = {"added": np.arange(float(len(live.observations))), **live.observations.columns}
    features = CONTRACT.model_copy(update={"features": {
        "added": contract_from_text(
            'name = "x"\ngamma = 1\n[features.added]\ntype = "numeric"\n[actions]\nnames = ["a", "b"]\n', "x"
        ).features["added"],
        **CONTRACT.features,
    }})  # fmt: skip
    newer = replace(live, contract=features, observations=Observations(columns, live.observations.vocabularies))
    now, then = place_outcomes(models, newer, seed=0), place_outcomes(models, live, seed=0)
    assert now.keys() == then.keys()
    assert all(np.array_equal(now[name].values, then[name].values) for name in now)


def test_log_that_is_too_short_has_no_models() -> None:
    short = logged(np.random.default_rng(0), LOGGER, n_nights=1, per_night=10)
    models = fit_dynamics(short, seed=0)
    assert models.reward is None
    assert place_outcomes(models, short, seed=0) == {}


@pytest.mark.filterwarnings("error")
def test_finite_values_beyond_what_trees_can_hold_are_placed(models: DynamicsModels) -> None:
    live = logged(np.random.default_rng(3), LOGGER, n_nights=1, per_night=50)
    columns = dict(live.observations.columns)
    columns["load"] = columns["load"].copy()
    columns["load"][::7] = 1e40
    wild = replace(live, observations=Observations(columns, live.observations.vocabularies))
    for found in (
        *place_outcomes(models, wild, seed=0).values(),
        *place_outcomes(fit_dynamics(wild, seed=0), wild, seed=0).values(),
    ):
        assert ((found.values >= 0) & (found.values <= 1)).all()
