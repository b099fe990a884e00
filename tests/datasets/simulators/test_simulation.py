from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets.contract import read_contract
from datasets.simulators.service import ACTIONS, ZONES, ServiceParameters
from datasets.simulators.simulation import roll_out, simulate_night, true_value, weekly_return
from datasets.simulators.threshold_rule import EXPLORATION, logging_policy, rule_actions, with_exploration
from datasets.simulators.workload import Workload
from tests.datasets.simulators.policies import size_by_request_rate

PARAMETERS = ServiceParameters()
SHIFTED = ServiceParameters(workload=Workload(traffic=1.6))
GAMMA = 0.9
BETTER = with_exploration(size_by_request_rate, EXPLORATION)


def night(seed: int = 1, *, n_episodes: int = 1000, parameters: ServiceParameters = PARAMETERS, **kwargs):
    arguments = {"night": 1, "policy": logging_policy(), "policy_version": "0"} | kwargs
    return simulate_night(np.random.default_rng(seed), parameters, n_episodes=n_episodes, **arguments)


def test_the_same_seed_gives_the_same_night_and_another_seed_another():
    first, again, other = (night(seed).episodes for seed in (1, 1, 2))
    for name, values in first.observations.items():
        np.testing.assert_array_equal(values, again.observations[name])
    np.testing.assert_array_equal(first.actions, again.actions)
    np.testing.assert_array_equal(first.rewards, again.rewards)
    assert (first.rewards != other.rewards).any()


def test_two_policies_meet_the_same_traffic_under_the_same_seed():
    first, other = night(policy=logging_policy()), night(policy=BETTER)
    rates = [one.episodes.observations["request_rate"] for one in (first, other)]
    np.testing.assert_array_equal(*rates)
    assert (first.episodes.actions != other.episodes.actions).any()


def test_logged_propensities_are_the_frequencies_of_the_actions():
    episodes = night(n_episodes=20_000).episodes
    before = {name: values[:, :-1].ravel() for name, values in episodes.observations.items()}
    probs = logging_policy()(before)
    actions = episodes.actions.ravel()
    np.testing.assert_array_equal(episodes.behavior_prob.ravel(), probs[np.arange(len(actions)), actions])
    chosen = rule_actions(before)
    for decided in range(len(ACTIONS)):
        rows = chosen == decided
        frequency = np.bincount(actions[rows], minlength=3) / rows.sum()
        tolerance = 4 * np.sqrt(0.25 / rows.sum())
        np.testing.assert_allclose(frequency, probs[rows][0], atol=tolerance)
    for action in range(len(ACTIONS)):  # 1[A = a] / p averages to 1
        inverse = (actions == action) / episodes.behavior_prob.ravel()
        assert inverse.mean() == pytest.approx(1, abs=4 * inverse.std() / np.sqrt(len(actions)))


@pytest.mark.parametrize("parameters", [PARAMETERS, SHIFTED])
def test_every_value_lies_in_the_range_of_the_contract(parameters):
    contract = read_contract(Path(datasets.__file__).parent / "scenarios" / "autoscaler.toml")
    episodes = night(n_episodes=5000, parameters=parameters).episodes
    assert contract.actions.names == ACTIONS
    assert contract.features["zone"].values == ZONES
    assert set(contract.features) == set(episodes.observations)
    for name, feature in contract.features.items():
        if feature.type == "numeric":
            values = episodes.observations[name]
            assert feature.min is None or values.min() >= feature.min, name
            assert feature.max is None or values.max() <= feature.max, name
    assert contract.reward.min <= episodes.rewards.min() <= episodes.rewards.max() <= contract.reward.max


def test_an_action_of_probability_zero_is_never_taken():
    never_up = lambda seen: np.tile([0.5, 0.5, 0.0], (len(seen["cpu"]), 1))  # noqa: E731
    assert night(policy=never_up, n_episodes=5000).episodes.actions.max() == 1


def test_a_policy_whose_rows_do_not_sum_to_one_is_refused():
    with pytest.raises(ValueError, match=r"must return \(1000, 3\) probabilities"):
        night(policy=lambda seen: np.ones((len(seen["cpu"]), 3)))


def test_an_episode_longer_than_an_hour_is_refused():
    with pytest.raises(ValueError, match="7 steps of 600 s"):
        night(parameters=ServiceParameters(steps_per_episode=7))


def test_nights_follow_each_other_and_episodes_start_at_whole_hours():
    starts = night(night=9, n_episodes=48).starts
    assert starts[0] == np.datetime64("2026-01-13T00:00:00")
    np.testing.assert_array_equal(np.diff(starts).astype(int), [0, 3600] * 23 + [0])


def test_a_better_policy_earns_more_per_hour_and_over_the_week():
    logged = true_value(logging_policy(), PARAMETERS, n_episodes=8000, seed=1, gamma=GAMMA)
    better = true_value(BETTER, PARAMETERS, n_episodes=8000, seed=1, gamma=GAMMA)
    assert better.value - logged.value > 0.8
    assert max(logged.standard_error, better.standard_error) < 0.08
    weekly = [weekly_return(policy, PARAMETERS, n_services=60, seed=1).value for policy in (logging_policy(), BETTER)]
    assert weekly[1] - weekly[0] > 2


def test_a_better_policy_can_be_recognised_by_its_weights():
    n = 1200
    ratios = []
    for seed in range(5):
        episodes = night(seed, n_episodes=n).episodes
        before = {name: values[:, :-1].ravel() for name, values in episodes.observations.items()}
        probs = BETTER(before)[np.arange(n * 6), episodes.actions.ravel()].reshape(n, 6)
        weights = (probs / episodes.behavior_prob).prod(axis=1)
        ratios.append(n * np.sum(weights**2) / np.sum(weights) ** 2)
        assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / np.sqrt(n))
    assert np.mean(ratios) <= 20


def test_more_traffic_shows_in_the_rates_and_hurts_the_logging_policy():
    usual, shifted = (night(parameters=p).episodes.observations["request_rate"] for p in (PARAMETERS, SHIFTED))
    np.testing.assert_allclose(np.median(shifted) / np.median(usual), 1.6, rtol=0.05)
    values = [true_value(logging_policy(), p, n_episodes=3000, seed=1, gamma=GAMMA) for p in (PARAMETERS, SHIFTED)]
    assert values[1].value < values[0].value - 3


def test_a_night_shock_moves_the_whole_night():
    parameters = ServiceParameters(workload=Workload(night_shock_sd=0.3))
    means = [night(seed, parameters=parameters).episodes.observations["request_rate"].mean() for seed in range(20)]
    usual = [night(seed).episodes.observations["request_rate"].mean() for seed in range(20)]
    assert np.std(np.log(means)) > 5 * np.std(np.log(usual))


def test_a_value_from_one_episode_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        true_value(BETTER, PARAMETERS, n_episodes=1, seed=1, gamma=GAMMA)


def test_a_week_is_one_run_of_1008_steps():
    rng = np.random.default_rng(1)
    rewards = roll_out(rng, PARAMETERS, np.array([0, 7 * 86_400]), BETTER, n_steps=1008).rewards
    found = weekly_return(BETTER, PARAMETERS, n_services=2, seed=1)
    assert found.value == pytest.approx(rewards.sum() / 2 / 168)
