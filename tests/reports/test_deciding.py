from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import estimators
from reports.deciding import DecidingConfig, choose_deciding
from reports.estimators import balance_terms, cumulative_log_weights, windowed_log_weights
from tests.reports.worlds import GAMMA, greedy, simulate, small_world

OFFSETS = np.array([0, 3, 5])
LOG_RATIOS = np.log(np.array([2.0, 0.5, 3.0, 1.5, 0.25]))
LOG_STATES = np.log(np.array([1.1, 0.9, 2.0, 1.0, 0.5]))


def test_window_zero_is_the_states_weight_times_the_ratio() -> None:
    np.testing.assert_allclose(windowed_log_weights(LOG_RATIOS, LOG_STATES, OFFSETS, 0), LOG_RATIOS + LOG_STATES)


def test_a_window_of_one_takes_the_state_before_and_two_ratios() -> None:
    # First steps: their own ratio, from an exact start. Step 1: w(s_0) r_0 r_1. Step 2: w(s_1) r_1 r_2.
    found = np.exp(windowed_log_weights(LOG_RATIOS, LOG_STATES, OFFSETS, 1))
    np.testing.assert_allclose(found, [2.0, 1.1 * 2 * 0.5, 0.9 * 0.5 * 3, 1.5, 1.0 * 1.5 * 0.25])


@given(st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6))
def test_a_window_as_long_as_the_episode_is_the_product(probs: list[float]) -> None:
    offsets, evaluation, behavior = np.array([0, 2, 6]), np.array(probs), np.full(6, 0.5)
    with np.errstate(divide="ignore"):
        ratios = np.log(evaluation / behavior)
    np.testing.assert_allclose(
        windowed_log_weights(ratios, np.full(6, 7.0), offsets, 4),
        cumulative_log_weights(evaluation, behavior, offsets),
    )


def test_balance_of_products_is_the_weight_at_the_end_without_discount() -> None:
    products = windowed_log_weights(LOG_RATIOS, LOG_STATES, OFFSETS, 3)
    np.testing.assert_allclose(balance_terms(products, OFFSETS, gamma=1.0), [2 * 0.5 * 3, 1.5 * 0.25])


def test_an_action_the_log_never_takes_lowers_the_balance() -> None:
    # Two steps, the policy takes the logged action with .9 where the log always does: .9, then .81 reach the end.
    ratios = np.log(np.full(2, 0.9))
    terms = balance_terms(windowed_log_weights(ratios, np.zeros(2), np.array([0, 2]), 2), np.array([0, 2]), 1.0)
    np.testing.assert_allclose(terms, 0.81)


WORLD = small_world()
UNIFORM = np.full((4, 2), 0.5)


def true_weights(policy: np.ndarray) -> np.ndarray:
    """(S,) discounted visits of `policy` over those of the uniform logger."""

    def visits(acting: np.ndarray) -> np.ndarray:
        step = np.einsum("sa,sat->st", acting, WORLD.transitions)
        return np.linalg.solve((np.eye(4) - GAMMA * step).T, WORLD.first)

    return visits(policy) / visits(UNIFORM)


def test_every_window_has_the_policys_value_and_the_longer_the_larger_its_variance() -> None:
    policy = greedy(WORLD, 0.3)
    log = simulate(WORLD, UNIFORM, 20_000, np.random.default_rng(4))
    ratios = np.log(policy[log.states, log.actions] / 0.5)
    states = np.log(true_weights(policy)[log.states])
    spread = []
    for window in (0, 1, 4, 400):
        weights = windowed_log_weights(ratios, states, log.offsets, window)
        terms = estimators.per_decision(log.rewards, weights, log.offsets, GAMMA).terms
        balance = balance_terms(weights, log.offsets, GAMMA)
        error = terms.std() / np.sqrt(len(terms))
        assert abs(terms.mean() - WORLD.value(policy)) < 4 * error
        assert abs(balance.mean() - 1) < 4 * balance.std() / np.sqrt(len(balance))
        spread.append(terms.std())
    assert spread == sorted(spread)


def rule(policy: np.ndarray, n: int = 600, config: DecidingConfig | None = None, **changes: object) -> str:
    log = simulate(WORLD, UNIFORM, n, np.random.default_rng(0))
    found = choose_deciding(
        policy[log.states, log.actions] / 0.5,
        changes.get("weights", true_weights(policy)[log.states]),  # type: ignore[arg-type]  # by name
        log.offsets,
        GAMMA,
        n_gate_episodes=n,
        largest_share=0.1,
        config=config or DecidingConfig(),
    )
    assert found.window >= 1 if found.estimator == "drl" else found.window == 0
    return found.estimator


def test_products_decide_near_the_log_and_marginalized_weights_far_from_it() -> None:
    assert rule(0.9 * UNIFORM + 0.1 * greedy(WORLD, 0.0)) == "dr"
    assert rule(greedy(WORLD, 0.05)) == "drl"


def test_the_rule_falls_back_on_products_and_can_be_overruled() -> None:
    assert rule(greedy(WORLD, 0.05), weights=None) == "dr"
    assert rule(greedy(WORLD, 0.05), config=DecidingConfig(estimator="dr")) == "dr"
    assert rule(0.9 * UNIFORM + 0.1 * greedy(WORLD, 0.0), config=DecidingConfig(estimator="drl")) == "drl"


def test_episodes_of_one_step_need_no_marginalized_weights() -> None:
    found = choose_deciding(
        np.array([2.0, 0.5]), np.ones(2), np.array([0, 1, 2]), 0.9,
        n_gate_episodes=10, largest_share=0.1, config=DecidingConfig(),
    )  # fmt: skip
    assert (found.estimator, found.variance_ratio) == ("dr", None)
    assert "one step" in found.says


def test_overflowing_products_never_decide() -> None:
    n = 400
    found = choose_deciding(
        np.full(n, 1e3), np.ones(n), np.array([0, n]), 1.0,
        n_gate_episodes=1, largest_share=0.1, config=DecidingConfig(),
    )  # fmt: skip
    assert found.estimator == "drl"
    assert found.variance_ratio is None


@pytest.mark.parametrize("policy", [greedy(WORLD, 0.3)])
def test_drl_is_unbiased_if_either_model_is_right(policy: np.ndarray) -> None:
    log = simulate(WORLD, UNIFORM, 20_000, np.random.default_rng(7))
    q, ratios = WORLD.q(policy), np.log(policy[log.states, log.actions] / 0.5)
    states = np.log(true_weights(policy)[log.states])
    for wrong_q, wrong_states in ((3.0 * np.cos(q), states), (q, np.zeros(len(ratios)))):
        values = (policy * wrong_q).sum(axis=1)[log.states]
        weights = windowed_log_weights(ratios, wrong_states, log.offsets, 0)
        taken = wrong_q[log.states, log.actions]
        terms = estimators.doubly_robust(log.rewards, taken, values, weights, log.offsets, GAMMA).terms
        assert abs(terms.mean() - WORLD.value(policy)) < 4 * terms.std() / np.sqrt(len(terms))
