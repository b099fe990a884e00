"""The parts of the loss. Leading axes, such as the K members of a batched network, are free: `...` below."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # the name torch's own documentation uses
from torch import Tensor

from offline_dqn.choice import quantile_weights


def double_dqn_target(
    rewards: Tensor,
    discounts: Tensor,
    next_q_online: Tensor,
    next_values_target: Tensor,
    next_available: Tensor,
) -> Tensor:
    """Reward plus the discounted target-network value of the action that the online network prefers next.

    Args:
        rewards: (B,) float; the discounted sum of n rewards where targets look n steps ahead.
        discounts: (B,) float, gamma^n * (1 - terminated): 0 where the task ended.
        next_q_online: (..., B, A) float, by which the online network chooses at the next observation.
        next_values_target: (..., B, A, N) float, N quantiles of the target network there; N = 1 is the mean.
        next_available: (..., B, A) bool, actions that may be taken there; the others take no part in the maximum. At
            least one in every row that is not discounted to 0.

    Returns:
        (..., B, N) float, in the units of the rewards.

    Raises:
        ValueError: the shapes do not agree.

    Source: van Hasselt et al. 2016, Deep Reinforcement Learning with Double Q-learning (arXiv:1509.06461), eq. 4; with
    N > 1 Dabney et al. 2018, Distributional Reinforcement Learning with Quantile Regression (arXiv:1710.10044), eq. 11.
    Differs from the latter: the next action is the online network's choice.
    """
    if next_values_target.shape[:-1] != next_q_online.shape or discounts.shape != rewards.shape:
        raise ValueError(
            f"next_values_target wants (..., B, A, N) and discounts (B,): found {tuple(next_values_target.shape)} and "
            f"{tuple(discounts.shape)} beside next_q_online {tuple(next_q_online.shape)} and rewards "
            f"{tuple(rewards.shape)}"
        )
    _check_shapes(rewards, next_q_online, next_available)
    next_actions = next_q_online.masked_fill(~next_available, -torch.inf).argmax(dim=-1)
    following = of_action(next_values_target, next_actions)
    return rewards[:, None] + discounts[:, None] * following


def expected_target(rewards: Tensor, discounts: Tensor, next_probs: Tensor, next_values_target: Tensor) -> Tensor:
    """Reward plus the discounted target-network value of the next observation under a given policy.

    Args:
        rewards: (B,) float.
        discounts: (B,) float, 0 where nothing follows.
        next_probs: (B, A) float, the policy's probabilities at the next observation.
        next_values_target: (..., B, A, 1) float, the target network there.

    Returns:
        (..., B, 1) float, in the units of the rewards.

    Source: Le et al. 2019, Batch Policy Learning under Constraints (arXiv:1903.08738), algorithm 3.
    """
    following = (next_probs[..., None] * next_values_target).sum(dim=-2)
    return rewards[:, None] + discounts[:, None] * following


def conservative_penalty(q_values: Tensor, q_logged: Tensor, available: Tensor) -> Tensor:
    """logsumexp_a Q(s, a) - Q(s, logged action) of each row, over the available actions.

    Grows when actions the log never took look better than the one it took. Of logits it is the cross-entropy of the
    logged action: what behavior cloning minimises.

    Args:
        q_values: (..., B, A) float, value of each action, in the units the network is trained in.
        q_logged: (..., B) float, that of the logged action (`of_action`), which must be available.
        available: (B, A) bool; an unavailable action takes no part.

    Returns:
        (..., B), each >= 0; ln(number of available actions) where every action looks equal.

    Raises:
        ValueError: the shapes do not agree.

    Source: Kumar et al. 2020, Conservative Q-Learning (arXiv:2006.04779), eq. 4.
    Differs from it: temperature fixed at 1; unavailable actions are masked out.
    """
    _check_shapes(q_logged, q_values, available)
    masked = q_values.masked_fill(~available, -torch.inf)
    return masked.logsumexp(dim=-1) - q_logged


def td_loss(q_logged: Tensor, td_target: Tensor, kind: Literal["mse", "huber"]) -> Tensor:
    """Loss of each Q(s, logged action) against its target, shapes alike.

    The squared loss estimates the mean, which is what a value is. The Huber loss (threshold 1, Mnih et al. 2015)
    withstands outliers by moving towards the median: rare large rewards or costs are then undervalued.
    """
    if kind == "mse":
        return F.mse_loss(q_logged, td_target, reduction="none")
    return F.smooth_l1_loss(q_logged, td_target, reduction="none")


def quantile_huber_loss(quantiles: Tensor, td_target: Tensor) -> Tensor:
    """Loss of each row's predicted quantiles against samples of its target's distribution.

    Args:
        quantiles: (..., B, N) predicted at the shares (i + 1/2) / N.
        td_target: (..., B, M) equally likely values.

    Returns:
        (..., B): sum over the N quantiles of the mean over the M targets.

    Source: Dabney et al. 2018 (arXiv:1710.10044), eq. 10, with the Huber threshold at 1.
    """
    n = quantiles.shape[-1]
    shares = (torch.arange(n, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / n
    errors = td_target.unsqueeze(-2) - quantiles.unsqueeze(-1)  # (..., B, N, M)
    huber = F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")
    tilted = (shares[:, None] - (errors.detach() < 0).to(errors.dtype)).abs() * huber
    return tilted.mean(dim=-1).sum(dim=-1)


def action_values(quantiles: Tensor, cvar_share: float = 1.0) -> Tensor:
    """(..., A) of (..., A, N): the score by which actions are chosen, as `choice.score` makes it when acting.

    Source: Dabney et al. 2018, Implicit Quantile Networks (arXiv:1806.06923), section 3.1, acting by a distorted
    expectation; here CVaR. Differs from it: fixed quantiles.
    """
    if quantiles.shape[-1] == 1:
        return quantiles.squeeze(-1)
    weights = torch.from_numpy(quantile_weights(quantiles.shape[-1], cvar_share)).to(quantiles)
    return quantiles @ weights


def supported_actions(logits: Tensor, available: Tensor, threshold: float | Tensor) -> Tensor:
    """Available actions whose cloned probability is more than `threshold` of the favourite's.

    Args:
        logits: (B, A) float, of the cloned logger.
        available: (B, A) bool.
        threshold: in [0, 1), or one for each of K members as (K, 1, 1); 0 admits every available action.

    Returns:
        (B, A) bool, or (K, B, A).

    Source: Fujimoto et al. 2019, Benchmarking Batch Deep RL Algorithms (arXiv:1910.01708), eq. 5 (discrete BCQ).
    """
    masked = logits.masked_fill(~available, -torch.inf)
    relative: Tensor = (masked - masked.amax(dim=-1, keepdim=True)).exp()  # pi_a / max pi
    limit = torch.as_tensor(threshold, device=logits.device)
    return available & ((relative > limit) | (limit <= 0))


def of_action(values: Tensor, actions: Tensor) -> Tensor:
    """(..., B, N) of (..., B, A, N): the quantiles of each row's action, given as (B,) or (..., B) int64 in [0, A)."""
    index = actions.expand(values.shape[:-2])[..., None, None].expand(*values.shape[:-2], 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)


def _check_shapes(per_row: Tensor, q_values: Tensor, available: Tensor) -> None:
    if q_values.ndim < 2 or per_row.shape[-1:] != q_values.shape[-2:-1] or available.shape[-2:] != q_values.shape[-2:]:
        raise ValueError(
            f"Q-values want (..., B, A), per-row values (B,) and availability (B, A); found {tuple(q_values.shape)}, "
            f"{tuple(per_row.shape)} and {tuple(available.shape)}"
        )
