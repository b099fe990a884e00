"""From the values of the actions to the one that is chosen: by mean or by risk, greedily or softly, within support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from datasets.settings import Settings
from offline_dqn.architecture import Architecture, Weights, forward


class Choice(Settings):
    """How a policy chooses among the actions' values, before exploration is added."""

    rule: Literal["greedy", "softmax"] = "greedy"
    """The best action, or each in proportion to exp(score / temperature)."""
    temperature: float = Field(1.0, gt=0)
    """Of softmax, in reward units; of logits, without unit. Small is nearly greedy."""
    cvar_share: float = Field(1.0, gt=0, le=1)
    """Actions are scored by the mean of the lowest quantiles of this share; 1 is the mean of all."""
    support_threshold: float = Field(0.0, ge=0, lt=1)
    """An action that the behavior model gives at most this share of its favourite's probability is not taken; 0 takes
    any."""


@dataclass(frozen=True)
class BehaviorModel:
    """Networks that say how likely the log takes each action, from the same encoded observations as the values.

    Attributes:
        architecture: with one value per action, a logit.
        weights: of its K members, whose logits are averaged.
    """

    architecture: Architecture
    weights: Weights

    def logits(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, A) float64 of encoded observations (n, D)."""
        return score(forward(self.architecture, self.weights, encoded))


def quantile_weights(n_quantiles: int, cvar_share: float) -> NDArray[np.float64]:
    """(N,) weight of each quantile, from the lowest, in the mean of the lowest `cvar_share` of a return; sum 1.

    The network's outputs are taken in their order, lowest level first, and not sorted anew where they cross, so that
    the score stays linear in them.

    Source: CVaR of a return made of N equally likely values (Rockafellar & Uryasev 2000, eq. 3); the last value that
    belongs to the share may belong to it in part.
    """
    covered = np.clip(cvar_share * n_quantiles - np.arange(n_quantiles), 0.0, 1.0)
    weights: NDArray[np.float64] = covered / covered.sum()
    return weights


def score(values: NDArray[np.float32], cvar_share: float = 1.0) -> NDArray[np.float64]:
    """(n, A) float64 of network outputs (K, n, A, N): mean over members, mean of the lowest quantiles."""
    weights = quantile_weights(values.shape[3], cvar_share)
    scores: NDArray[np.float64] = values.mean(axis=0, dtype=np.float64) @ weights
    return scores


def supported(logits: NDArray[np.float64], allowed: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """(n, A) which allowed actions the behavior model takes often enough.

    Args:
        logits: (n, A) of the behavior model.
        allowed: (n, A) bool, at least one per row.
        threshold: in [0, 1); the favourite among the allowed ones always has support.

    Source: Fujimoto et al. 2019, Benchmarking Batch Deep RL (arXiv:1910.01708), discrete BCQ: pi_b(a|s) / max
    pi_b(.|s) > threshold. Differs from it: the maximum is taken over the actions that are available.
    """
    if threshold == 0.0:
        return allowed
    # exp(a - b) is the ratio of two probabilities of one softmax, whatever else it holds.
    favourite = np.where(allowed, logits, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    enough: NDArray[np.bool_] = allowed & (logits > favourite + np.log(threshold))
    return enough


def choose(scores: NDArray[np.float64], candidates: NDArray[np.bool_], choice: Choice) -> NDArray[np.float64]:
    """Probabilities (n, A) of the rule's choice among the candidates of each row; equal scores share.

    Args:
        scores: (n, A), in the unit of `choice.temperature`.
        candidates: (n, A) bool, at least one per row.
        choice: its rule and temperature; support and quantiles were seen to before.
    """
    possible = np.where(candidates, scores, -np.inf)
    best = possible.max(axis=1, keepdims=True)
    preferred = possible == best
    weights = np.exp((possible - best) / choice.temperature) if choice.rule == "softmax" else preferred.astype(float)
    probs: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return probs
