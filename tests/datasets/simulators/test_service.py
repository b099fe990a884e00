from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.simulators.service import (
    P95_CAP_MS,
    Conditions,
    ServiceParameters,
    initial_state,
    latency_p95_ms,
    observe,
    reward,
    step_service,
)

DOWN, HOLD, UP = (np.array([action]) for action in range(3))


def one_service(*, replicas: float, rates: list[float], ready: list[float]) -> Conditions:
    return Conditions(
        np.array([0]), np.array([rates]), np.array([ready]), np.array([0], dtype=np.int32), np.array([replicas])
    )


def test_an_idle_service_answers_in_three_service_times():
    # rho = 0: nobody waits, so p95 = 3 * 40 ms.
    assert latency_p95_ms(ServiceParameters(), np.array([0.0]), np.array([4.0]))[0] == 120


def test_one_server_waits_as_in_m_m_1():
    # c = 1: the exponent sqrt(2 * 2) - 1 = 1, so the wait is S rho / (1 - rho), as long as the service at rho = .5.
    parameters = ServiceParameters(within_step_sd=0)
    assert latency_p95_ms(parameters, np.array([0.5]), np.array([1.0]))[0] == pytest.approx(240)


def test_busy_minutes_make_a_step_slower_than_its_mean_load():
    load, replicas = np.array([0.85]), np.array([6.0])
    steady, varying = (latency_p95_ms(ServiceParameters(within_step_sd=sd), load, replicas)[0] for sd in (0, 0.2))
    assert varying > 2 * steady


def test_latency_is_capped_under_overload():
    assert latency_p95_ms(ServiceParameters(), np.array([2.0, 9.0]), np.array([3.0, 3.0])).tolist() == [P95_CAP_MS] * 2


@given(low=st.floats(0, 1.5), high=st.floats(0, 1.5), replicas=st.integers(1, 20))
def test_latency_never_falls_with_load(low, high, replicas):
    low, high = sorted((low, high))
    p95 = latency_p95_ms(ServiceParameters(), np.array([low, high]), np.full(2, float(replicas)))
    assert p95[0] <= p95[1]


def test_reward_by_hand():
    # 8 of 16 replicas cost 3.5; 1125 ms is halfway from the objective of 250 ms to the cap of 2000 ms: 1.5.
    assert reward(ServiceParameters(), np.array([8.0]), np.array([1125.0]))[0] == -5.0
    assert reward(ServiceParameters(), np.array([8.0]), np.array([250.0]))[0] == -3.5
    assert reward(ServiceParameters(), np.array([16.0]), np.array([P95_CAP_MS]))[0] == -10.0


def test_a_new_replica_costs_at_once_and_serves_only_when_ready():
    parameters = ServiceParameters()
    conditions = one_service(replicas=2, rates=[100, 100, 100, 100], ready=[0.99, 0.0, 0.0])
    state = initial_state(parameters, conditions)
    state, rewards = step_service(parameters, conditions, 0, state, UP)
    assert (state.replicas[0], state.pending[0], state.load[0]) == (2, 1, 0.5)
    assert rewards[0] == pytest.approx(-7 * 3 / 16)
    state, _ = step_service(parameters, conditions, 1, state, HOLD)
    assert (state.replicas[0], state.pending[0], state.load[0]) == (3, 0, 0.5)  # ready as the step ends
    state, _ = step_service(parameters, conditions, 2, state, HOLD)
    assert state.load[0] == pytest.approx(1 / 3)


def test_scaling_down_cancels_starting_replicas_first():
    parameters = ServiceParameters()
    conditions = one_service(replicas=2, rates=[100, 100, 100], ready=[0.99, 0.99])
    state, _ = step_service(parameters, conditions, 0, initial_state(parameters, conditions), UP)
    state, _ = step_service(parameters, conditions, 1, state, DOWN)
    assert (state.replicas[0], state.pending[0]) == (2, 0)


@pytest.mark.parametrize("scale_by", [1, 2])
def test_replicas_stay_between_one_and_the_maximum(scale_by):
    parameters = ServiceParameters(scale_by=scale_by, max_replicas=3)
    for action, expected in ((DOWN, 1), (UP, 3)):
        conditions = one_service(replicas=2, rates=[100] * 5, ready=[0.0] * 4)
        state = initial_state(parameters, conditions)
        for step in range(4):
            state, rewards = step_service(parameters, conditions, step, state, action)
            assert -10 <= rewards[0] <= 0
        assert state.replicas[0] + state.pending[0] == expected


def test_scaling_by_two_moves_two_replicas():
    parameters = ServiceParameters(scale_by=2)
    conditions = one_service(replicas=4, rates=[100, 100], ready=[0.0])
    state, _ = step_service(parameters, conditions, 0, initial_state(parameters, conditions), UP)
    assert state.replicas[0] == 6


def test_observed_cpu_is_at_most_one_though_the_load_is_higher():
    parameters = ServiceParameters()
    conditions = one_service(replicas=1, rates=[250, 250], ready=[0.0])
    state = initial_state(parameters, conditions)
    assert state.load[0] == 2.5
    assert observe(parameters, conditions, 0, state)["cpu"][0] == 1
