"""The three parts of the loss: the Double DQN target, the temporal-difference loss, the conservative penalty."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # the name torch's own documentation uses
from torch import Tensor


def double_dqn_target(
    rewards: Tensor, discounts: Tensor, next_q_online: Tensor, next_q_target: Tensor, next_available: Tensor
) -> Tensor:
    """Reward plus the discounted target-network value of the action that the online network prefers next.

    Args:
        rewards: (B,) float.
        discounts: (B,) float, gamma * (1 - terminated): 0 where the task ended.
        next_q_online: (B, A) float, online network at the next observation.
        next_q_target: (B, A) float, target network at the next observation.
        next_available: (B, A) bool, actions that may be taken there; the others take no part in the maximum. At
            least one in every row that is not discounted to 0.

    Returns:
        (B,) float, in the units of the rewards.

    Raises:
        ValueError: the shapes do not agree.

    Source: van Hasselt et al. 2016, Deep Reinforcement Learning with Double Q-learning (arXiv:1509.06461), eq. 4.
    """
    _check_shapes(rewards, next_q_online, next_available)
    if next_q_target.shape != next_q_online.shape or discounts.shape != rewards.shape:
        raise ValueError(
            f"next_q_target {tuple(next_q_target.shape)} and discounts {tuple(discounts.shape)} want the shapes of "
            f"next_q_online {tuple(next_q_online.shape)} and rewards {tuple(rewards.shape)}"
        )
    next_actions = next_q_online.masked_fill(~next_available, -torch.inf).argmax(dim=1, keepdim=True)
    return rewards + discounts * next_q_target.gather(1, next_actions).squeeze(1)


def conservative_penalty(q_values: Tensor, actions: Tensor, available: Tensor) -> Tensor:
    """Mean over the batch of logsumexp_a Q(s, a) - Q(s, logged action), over the available actions.

    Grows when actions the log never took look better than the one it took.

    Args:
        q_values: (B, A) float, value of each action, in the units the network is trained in.
        actions: (B,) int64 in [0, A), the logged action of each step; it must be available.
        available: (B, A) bool; an unavailable action takes no part.

    Returns:
        Scalar >= 0; the mean of ln(number of available actions) when every action looks equal.

    Raises:
        ValueError: the shapes do not agree.

    Source: Kumar et al. 2020, Conservative Q-Learning (arXiv:2006.04779), eq. 4.
    Differs from it: temperature fixed at 1; unavailable actions are masked out.
    """
    _check_shapes(actions, q_values, available)
    logged = q_values.gather(1, actions[:, None]).squeeze(1)
    return (q_values.masked_fill(~available, -torch.inf).logsumexp(dim=1) - logged).mean()


def td_loss(q_logged: Tensor, td_target: Tensor, kind: Literal["mse", "huber"]) -> Tensor:
    """Mean loss of Q(s, logged action) against its target, both (B,).

    The squared loss estimates the mean, which is what a value is. The Huber loss (threshold 1, Mnih et al. 2015)
    withstands outliers by moving towards the median: rare large rewards or costs are then undervalued.
    """
    return F.mse_loss(q_logged, td_target) if kind == "mse" else F.smooth_l1_loss(q_logged, td_target)


def _check_shapes(per_row: Tensor, q_values: Tensor, available: Tensor) -> None:
    if q_values.ndim != 2 or per_row.shape != q_values.shape[:1] or available.shape != q_values.shape:
        raise ValueError(
            f"Q-values want (B, A), per-row values (B,) and availability (B, A); found {tuple(q_values.shape)}, "
            f"{tuple(per_row.shape)} and {tuple(available.shape)}"
        )
