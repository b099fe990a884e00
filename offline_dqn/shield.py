"""The shield: a policy acts only with what the contract's constraints permit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from datasets.replay import Replay
from datasets.step_rules import permitted_actions
from offline_dqn.policy import Policy


@dataclass(frozen=True)
class Shielded:
    """A policy as it acts under the current contract."""

    policy: Policy
    contract: Contract

    @property
    def actions(self) -> tuple[str, ...]:
        """Labels of the action axis."""
        return self.policy.actions

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) probabilities; `available` (n, A) is what the world allows, before the shield.

        Raises:
            ConstraintError: a constraint fails on an observation.
        """
        permitted = permitted_actions(self.contract, observations, available)
        return shielded_probs(self.policy, self.contract, observations, permitted)


def shielded_probs(
    policy: Policy, contract: Contract, observations: Observations, permitted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(n, A) float64 probabilities with which a policy acts behind the shield; 0 for what is not permitted.

    The policy chooses, and explores, among what is permitted. Where it knows none of that, the contract's safe action
    acts.

    Args:
        policy: its action axis is the contract's.
        contract: the current one, whose constraints hold.
        observations: n rows.
        permitted: (n, A) bool, from `datasets.step_rules.permitted_actions`.

    Raises:
        NoAvailableActionError: a row allows no action that the policy knows, and the contract has no constraint.
    """
    safe = contract.actions.safe
    if not contract.forbids or safe is None:
        return np.asarray(policy.action_probs(observations, permitted), dtype=np.float64)
    stuck = ~(permitted & np.isin(policy.actions, policy.contract.actions.names)).any(axis=1)
    probs = np.zeros(permitted.shape)
    probs[stuck, policy.actions.index(safe)] = 1.0
    if not stuck.all():
        free = np.flatnonzero(~stuck)
        probs[free] = policy.action_probs(observations.take(free), permitted[free])
    return probs


def acting_probs(policy: Policy, replay: Replay, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, A) probabilities with which a policy acts at some rows of a replay dataset, behind the shield."""
    return shielded_probs(policy, replay.contract, replay.observations.take(rows), replay.permitted[rows])
