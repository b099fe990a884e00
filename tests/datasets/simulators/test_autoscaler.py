from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from datasets.simulators.autoscaler import REWARD_RANGE, AutoscalerEnv
from datasets.simulators.service import ServiceParameters
from datasets.simulators.simulation import roll_out
from datasets.simulators.threshold_rule import logging_policy
from datasets.simulators.workload import Workload


def test_gymnasium_accepts_the_environment():
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", message=".*maximum value is infinity.*")  # request rates have no bound
        check_env(AutoscalerEnv(), skip_render_check=True)


@pytest.mark.parametrize("seed", range(20))
def test_environment_and_vectorised_simulation_agree(seed):
    parameters = ServiceParameters(workload=Workload(night_shock_sd=0.1))
    start_s = 3600 * (7 * seed % 168)
    seconds = np.array([start_s], dtype=np.int64)
    episodes = roll_out(np.random.default_rng(seed), parameters, seconds, logging_policy(), n_steps=6)
    env = AutoscalerEnv(parameters)
    observation, _ = env.reset(seed=seed, options={"start_s": start_s})
    for step in range(6):
        assert {name: values[0, step] for name, values in episodes.observations.items()} == observation
        observation, reward, terminated, truncated, _ = env.step(episodes.actions[0, step])
        assert reward == episodes.rewards[0, step]
        assert (terminated, truncated) == (False, step == 5)
    assert {name: values[0, 6] for name, values in episodes.observations.items()} == observation


def test_same_seed_same_episode():
    episodes = []
    for _ in range(2):
        env = AutoscalerEnv()
        observation, _ = env.reset(seed=4)
        episodes.append([observation, *(env.step(np.int64(2))[:2] for _ in range(6))])
    assert episodes[0] == episodes[1]


def test_rewards_and_observations_stay_in_their_spaces():
    env = AutoscalerEnv(ServiceParameters(workload=Workload(traffic=3.0)))
    env.action_space.seed(1)
    for seed in range(50):
        observation, _ = env.reset(seed=seed)
        truncated = False
        while not truncated:
            assert env.observation_space.contains(observation)
            observation, reward, _, truncated, _ = env.step(env.action_space.sample())
            assert REWARD_RANGE[0] <= reward <= REWARD_RANGE[1]
        assert env.observation_space.contains(observation)


def test_a_step_outside_an_episode_is_refused():
    env = AutoscalerEnv()
    with pytest.raises(ValueError, match="Call reset"):
        env.step(np.int64(1))
    env.reset(seed=1)
    for _ in range(6):
        env.step(np.int64(1))
    with pytest.raises(ValueError, match="after truncation"):
        env.step(np.int64(1))


def test_an_unknown_action_is_refused():
    env = AutoscalerEnv()
    env.reset(seed=1)
    with pytest.raises(ValueError, match=r"action must be an integer in \[0, 3\)"):
        env.step(np.int64(3))
