"""The policy that acts on learned values: greedy, with an exploration floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.encoding import Encoder
from datasets.observations import Observations
from offline_dqn.architecture import Architecture, Weights, forward
from offline_dqn.exploration import explore


@dataclass(frozen=True)
class QPolicy:
    """Takes the available action of the highest value, or any available one with probability `exploration`.

    Attributes:
        contract: the one it was trained under; its actions are the network's outputs.
        encoder, architecture, weights: from a raw observation to values.
        reward_scale: reward units per unit of the network's output.
        exploration: share of decisions that are uniform over the available actions it knows.
        snapshot_digest, config: what it was trained from.
        actions: the labels that every action axis here follows; those the contract lacks are never taken.
        digest: of the artifact it was loaded from, "" before it was saved.
    """

    contract: Contract
    encoder: Encoder
    architecture: Architecture
    weights: Weights
    reward_scale: float
    exploration: float
    snapshot_digest: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    actions: tuple[str, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.actions:
            object.__setattr__(self, "actions", self.contract.actions.names)
        lost = [name for name in self.contract.actions.names if name not in self.actions]
        if lost:
            raise ValueError(f"the policy's actions {', '.join(lost)} are missing from the asked ones {self.actions}")

    def q_values(self, observations: Observations) -> NDArray[np.float64]:
        """(n, A) float64 in reward units; -inf for an action the policy does not know."""
        scaled = forward(self.architecture, self.weights, self.encoder.encode(observations))
        q_values = np.full((len(scaled), len(self.actions)), -np.inf)
        q_values[:, [self.actions.index(name) for name in self.contract.actions.names]] = scaled * self.reward_scale
        return q_values

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) probabilities with which it acts, exploration and masks included; equal values share.

        Args:
            observations: n rows.
            available: (n, A) bool.

        Raises:
            NoAvailableActionError: a row allows no action that the policy knows.
        """
        q_values = self.q_values(observations)
        if available.shape != q_values.shape:
            raise ValueError(f"available wants the shape (n, A) = {q_values.shape}, found {available.shape}")
        allowed = available & np.isfinite(q_values)
        best = np.where(allowed, q_values, -np.inf)
        return explore(best == best.max(axis=1, keepdims=True, initial=-np.inf), allowed, self.exploration)
