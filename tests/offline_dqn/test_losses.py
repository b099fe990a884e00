from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from offline_dqn.losses import (
    action_values,
    conservative_penalty,
    double_dqn_target,
    of_action,
    quantile_huber_loss,
    supported_actions,
    td_loss,
)


def penalty_of(q_values: torch.Tensor, actions: torch.Tensor, available: torch.Tensor) -> torch.Tensor:
    return conservative_penalty(q_values, of_action(q_values.unsqueeze(-1), actions).squeeze(-1), available)


Q_VALUES = torch.tensor([[1.0, 2.0, 3.0], [0.5, -0.5, 0.0]], dtype=torch.float64)
ACTIONS = torch.tensor([2, 0])
ALL = torch.ones(2, 3, dtype=torch.bool)


def test_penalty_matches_hand_computed_values() -> None:
    # logsumexp = (3.40760596, 1.18026967); minus the logged values (3, .5), averaged.
    assert float(penalty_of(Q_VALUES, ACTIONS, ALL).mean()) == pytest.approx(0.5439378175, abs=1e-10)


def test_masked_action_takes_no_part_in_the_penalty() -> None:
    available = ALL.clone()
    available[1, 2] = False
    assert float(penalty_of(Q_VALUES, ACTIONS, available).mean()) == pytest.approx(0.3604338260, abs=1e-10)


def test_penalty_of_equal_values_is_the_log_of_the_number_of_actions() -> None:
    penalty = penalty_of(torch.zeros(4, 5), torch.arange(4), torch.ones(4, 5, dtype=torch.bool))
    assert penalty.tolist() == pytest.approx([math.log(5)] * 4)


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
    penalty = penalty_of(torch.from_numpy(q_values), taken, available).mean()
    shifted = penalty_of(torch.from_numpy(q_values + constant), taken, available).mean()
    assert float(shifted) == pytest.approx(float(penalty), abs=1e-9)
    assert float(penalty) >= -1e-12


def test_target_takes_the_online_networks_choice_at_the_target_networks_value() -> None:
    target = double_dqn_target(
        rewards=torch.tensor([1.0, 1.0]),
        discounts=torch.tensor([0.9, 0.0]),
        next_q_online=torch.tensor([[5.0, 1.0, 0.0], [1.0, 2.0, 3.0]]),
        next_values_target=torch.tensor([[2.0, 7.0, 9.0], [1.0, 2.0, 3.0]])[..., None],
        next_available=ALL,
    )
    assert target.squeeze(-1).tolist() == pytest.approx([1.0 + 0.9 * 2.0, 1.0])


def test_masked_action_takes_no_part_in_the_target() -> None:
    target = double_dqn_target(
        rewards=torch.zeros(1),
        discounts=torch.ones(1),
        next_q_online=torch.tensor([[5.0, 1.0, 0.0]]),
        next_values_target=torch.tensor([[2.0, 7.0, 9.0]])[..., None],
        next_available=torch.tensor([[False, True, True]]),
    )
    assert target.tolist() == [[7.0]]


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), \(3,\) and \(2, 3\)"):
        conservative_penalty(Q_VALUES, torch.zeros(3), ALL)
    with pytest.raises(ValueError, match="next_values_target"):
        double_dqn_target(torch.zeros(2), torch.zeros(2), Q_VALUES, Q_VALUES[:, :2, None], ALL)


def test_huber_undervalues_a_rare_reward_and_mse_does_not() -> None:
    rare = torch.zeros(100)
    rare[0] = 50.0
    constants = torch.linspace(0.0, 2.0, 201)
    best = {
        kind: float(
            constants[int(torch.stack([td_loss(c.expand(100), rare, kind).mean() for c in constants]).argmin())]
        )
        for kind in ("mse", "huber")
    }
    assert best["mse"] == pytest.approx(0.5, abs=0.01)
    assert best["huber"] < 0.02


def test_quantile_loss_matches_a_case_done_by_hand() -> None:
    # Two quantiles at shares 1/4 and 3/4 predict 0 and 1, the target's two values are 1 and 3. Errors of the first: 1
    # and 3, Huber .5 and 2.5, tilted by 1/4: mean .375. Of the second: 0 and 2, Huber 0 and 1.5, by 3/4: mean .5625.
    loss = quantile_huber_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    assert loss.tolist() == pytest.approx([0.375 + 0.5625])


def test_quantile_loss_is_least_at_the_quantiles() -> None:
    target = torch.linspace(-1.0, 1.0, 201).expand(1, -1) * 20  # wide: the Huber threshold hardly matters
    quantiles = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([quantiles], lr=0.2)
    for _ in range(800):
        optimizer.zero_grad()
        quantile_huber_loss(quantiles, target).sum().backward()
        optimizer.step()
    assert quantiles.detach().squeeze(0).tolist() == pytest.approx([-15.0, -5.0, 5.0, 15.0], abs=0.3)


def test_cvar_prefers_the_action_without_a_bad_tail() -> None:
    risky, safe = [-10.0, 4.0, 8.0, 10.0], [1.0, 1.0, 1.0, 1.0]
    quantiles = torch.tensor([risky, safe])
    assert action_values(quantiles).argmax() == 0
    assert action_values(quantiles, cvar_share=0.5).tolist() == [-3.0, 1.0]


def test_support_leaves_what_the_logger_takes_often_enough() -> None:
    logits = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    available = torch.tensor([[True, True, True]])
    assert supported_actions(logits, available, 0.4).tolist() == [[True, True, False]]
    assert supported_actions(logits, available, 0.0).tolist() == [[True, True, True]]
    # Its favourite is not available: the next one is the measure.
    masked = torch.tensor([[False, True, True]])
    assert supported_actions(logits, masked, 0.4).tolist() == [[False, True, False]]
    both = supported_actions(logits, available, torch.tensor([0.0, 0.4]).reshape(2, 1, 1))
    assert both.tolist() == [[[True, True, True]], [[True, True, False]]]
