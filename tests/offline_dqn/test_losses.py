from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from offline_dqn.losses import conservative_penalty, double_dqn_target, td_loss

Q_VALUES = torch.tensor([[1.0, 2.0, 3.0], [0.5, -0.5, 0.0]], dtype=torch.float64)
ACTIONS = torch.tensor([2, 0])
ALL = torch.ones(2, 3, dtype=torch.bool)


def test_penalty_matches_hand_computed_values() -> None:
    # logsumexp = (3.40760596, 1.18026967); minus the logged values (3, .5), averaged.
    assert float(conservative_penalty(Q_VALUES, ACTIONS, ALL)) == pytest.approx(0.5439378175, abs=1e-10)


def test_masked_action_takes_no_part_in_the_penalty() -> None:
    available = ALL.clone()
    available[1, 2] = False
    assert float(conservative_penalty(Q_VALUES, ACTIONS, available)) == pytest.approx(0.3604338260, abs=1e-10)


def test_penalty_of_equal_values_is_the_log_of_the_number_of_actions() -> None:
    assert float(conservative_penalty(torch.zeros(4, 5), torch.arange(4), torch.ones(4, 5, dtype=torch.bool))) == (
        pytest.approx(math.log(5))
    )


@settings(max_examples=50, deadline=None)
@given(
    q_values=arrays(np.float64, (4, 3), elements=st.floats(-50, 50)),
    constant=st.floats(-100, 100),
    actions=arrays(np.int64, 4, elements=st.integers(0, 2)),
)
def test_adding_a_constant_to_all_values_leaves_the_penalty_alone(
    q_values: np.ndarray, constant: float, actions: np.ndarray
) -> None:
    taken, available = torch.from_numpy(actions), torch.ones(4, 3, dtype=torch.bool)
    penalty = conservative_penalty(torch.from_numpy(q_values), taken, available)
    shifted = conservative_penalty(torch.from_numpy(q_values + constant), taken, available)
    assert float(shifted) == pytest.approx(float(penalty), abs=1e-9)
    assert float(penalty) >= -1e-12


def test_target_takes_the_online_networks_choice_at_the_target_networks_value() -> None:
    target = double_dqn_target(
        rewards=torch.tensor([1.0, 1.0]),
        discounts=torch.tensor([0.9, 0.0]),
        next_q_online=torch.tensor([[5.0, 1.0, 0.0], [1.0, 2.0, 3.0]]),
        next_q_target=torch.tensor([[2.0, 7.0, 9.0], [1.0, 2.0, 3.0]]),
        next_available=ALL,
    )
    assert target.tolist() == pytest.approx([1.0 + 0.9 * 2.0, 1.0])


def test_masked_action_takes_no_part_in_the_target() -> None:
    target = double_dqn_target(
        rewards=torch.zeros(1),
        discounts=torch.ones(1),
        next_q_online=torch.tensor([[5.0, 1.0, 0.0]]),
        next_q_target=torch.tensor([[2.0, 7.0, 9.0]]),
        next_available=torch.tensor([[False, True, True]]),
    )
    assert target.tolist() == [7.0]


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), \(3,\) and \(2, 3\)"):
        conservative_penalty(Q_VALUES, torch.zeros(3, dtype=torch.int64), ALL)
    with pytest.raises(ValueError, match="next_q_target"):
        double_dqn_target(torch.zeros(2), torch.zeros(2), Q_VALUES, Q_VALUES[:, :2], ALL)


def test_huber_undervalues_a_rare_reward_and_mse_does_not() -> None:
    rare = torch.zeros(100)
    rare[0] = 50.0
    constants = torch.linspace(0.0, 2.0, 201)
    best = {
        kind: float(constants[int(torch.stack([td_loss(c.expand(100), rare, kind) for c in constants]).argmin())])
        for kind in ("mse", "huber")
    }
    assert best["mse"] == pytest.approx(0.5, abs=0.01)
    assert best["huber"] < 0.02
