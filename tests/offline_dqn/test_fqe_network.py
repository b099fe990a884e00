from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.encoding import fit_encoder
from offline_dqn.fqe import FqeError
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.fqe_network import fit_q_network
from tests.offline_dqn.worlds import TabularWorld, states_of

CONFIG = FqeConfig(model="network", network_updates=1_500, network_hidden=(32, 32))


def test_values_match_dynamic_programming_up_to_the_cut() -> None:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=0.9, end_prob=0.05, seed=0)
    rng = np.random.default_rng(1)
    behavior, evaluation = rng.dirichlet(np.full(3, 2.0), size=6), rng.dirichlet(np.ones(3), size=6)
    replay = world.roll(behavior, 300, 12, seed=0, noise=0.3)
    fresh = world.roll(behavior, 100, 12, seed=1)
    fitted = fit_q_network(
        replay,
        evaluation[states_of(replay)],
        CONFIG,
        encoder=fit_encoder(replay.contract, replay.observations),
        seed=0,
    )
    by_time = np.stack([world.values(evaluation, 12 - t) for t in range(12)])
    truth = by_time[fresh.step_in_episode, states_of(fresh)]
    error = fitted.q_values(fresh) - truth
    assert (error**2).mean() < 0.05 * truth.var()


def test_what_nothing_can_be_fitted_to_is_refused() -> None:
    world = TabularWorld.random(n_states=3, n_actions=2, gamma=0.9, end_prob=0.2, seed=0)
    replay = world.roll(np.full((3, 2), 0.5), 10, 5, seed=0)
    encoder = fit_encoder(replay.contract, replay.observations)
    half = np.full((replay.n_steps, 2), 0.5)
    with pytest.raises(ValueError, match="rows of evaluation_probs do not sum to 1"):
        fit_q_network(replay, 0.9 * half, CONFIG, encoder=encoder, seed=0)
    with pytest.raises(FqeError, match="reward is not finite"):
        fit_q_network(replace(replay, rewards=replay.rewards * np.nan), half, CONFIG, encoder=encoder, seed=0)
