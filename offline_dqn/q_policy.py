"""The policy that acts on learned values or on a cloned logger's logits, always with an exploration floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.encoding import Encoder
from datasets.observations import Observations
from offline_dqn.architecture import Architecture, Weights, forward
from offline_dqn.choice import BehaviorModel, Choice, choose, score, supported
from offline_dqn.exploration import allowed_actions, explore
from offline_dqn.potential import Potential


@dataclass(frozen=True)
class QPolicy:
    """Chooses among the available actions by what its networks say, or any of them with probability `exploration`.

    Attributes:
        contract: the one it was trained under; its actions are the networks' outputs.
        encoder, architecture, weights: from a raw observation to what K networks say of each action.
        reward_scale: reward units per unit of the networks' output; of logits 1.
        exploration: share of decisions that are uniform over the available actions it knows, supported or not.
        kind: "values" are expected returns; "logits" those of a cloned logger, which promise nothing.
        choice: greedy or softmax, mean or CVaR, and how much support an action needs.
        behavior: what says how much support an action has; needed where `choice.support_threshold` is above 0.
        potential: SQL whose value was taken off what the networks say (`Potential`); None: nothing was. It is the same
            for every action, so that the choice does not need it.
        snapshot_digest, config: what it was trained from.
        actions: the labels that every action axis here follows; those the contract lacks are never taken.
        digest: of the artifact it was loaded from, "" before it was saved.

    Raises:
        ValueError: parts that do not fit together.
    """

    contract: Contract
    encoder: Encoder
    architecture: Architecture
    weights: Weights
    reward_scale: float
    exploration: float
    kind: Literal["values", "logits"] = "values"
    choice: Choice = field(default_factory=Choice)
    behavior: BehaviorModel | None = None
    potential: str | None = None
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
        if not 0.0 <= self.exploration <= 1.0:
            raise ValueError(f"exploration wants a share in [0, 1], found {self.exploration}")
        if self.choice.support_threshold > 0 and self.behavior is None:
            raise ValueError(
                f"support_threshold = {self.choice.support_threshold:g} needs a behavior model that says what has "
                "support; give `behavior`, or set it to 0"
            )
        if self.choice.cvar_share < 1 and self.architecture.n_quantiles == 1:
            raise ValueError(f"cvar_share = {self.choice.cvar_share:g} needs networks with n_quantiles > 1")

    def q_values(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, A) float64 expected return in reward units; -inf for an action the policy does not know; None of logits.

        The mean over members and quantiles, whatever share of them the choice looks at.
        """
        if self.kind == "logits":
            return None
        values = score(self._outputs(self.encoder.encode(observations))) * self.reward_scale
        if self.potential is not None:
            values = values + Potential(self.contract, self.potential)(observations)[:, None]
        return self._along_actions(values)

    def disagreement(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, A) float64 standard deviation of each action's value over the networks, in reward units.

        NaN for an action the policy does not know; None of logits and of a single network.
        """
        if self.kind == "logits" or self.architecture.n_members == 1:
            return None
        return self._along_actions(self.member_values(observations).std(axis=0, ddof=1), unknown=np.nan)

    def member_values(self, observations: Observations) -> NDArray[np.float64]:
        """(K, n, own actions) float64 what each network says, in reward units or of logits, less any potential."""
        outputs = self._outputs(self.encoder.encode(observations))
        values: NDArray[np.float64] = outputs.mean(axis=3, dtype=np.float64) * self.reward_scale
        return values

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) probabilities with which it acts, exploration and masks included; equal scores share.

        Args:
            observations: n rows.
            available: (n, A) bool.

        Raises:
            NoAvailableActionError: a row allows no action that the policy knows.
        """
        allowed = allowed_actions(available, self._known(), len(observations))
        scores, logits = self.scores(observations)
        candidates = supported(logits, allowed, self.choice.support_threshold)
        return explore(choose(scores, candidates, self.choice), allowed, self.exploration)

    def scores(self, observations: Observations) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n, A) float64 what the choice compares, in reward units or of logits, and (n, A) behavior logits.

        Both are -inf for an action the policy does not know; without a behavior model its logits are 0.
        """
        encoded = self.encoder.encode(observations)
        scores = self._along_actions(score(self._outputs(encoded), self.choice.cvar_share) * self.reward_scale)
        if self.behavior is None:
            return scores, np.where(self._known(), 0.0, np.full(scores.shape, -np.inf))
        return scores, self._along_actions(self.behavior.logits(encoded))

    def _known(self) -> NDArray[np.bool_]:
        """(A,) which of `actions` are the contract's."""
        return np.isin(self.actions, self.contract.actions.names)

    def _outputs(self, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
        """(K, n, own actions, N)."""
        return forward(self.architecture, self.weights, encoded)

    def _along_actions(self, own: NDArray[np.float64], unknown: float = -np.inf) -> NDArray[np.float64]:
        """(n, A) along `actions`, of columns along the contract's."""
        spread = np.full((len(own), len(self.actions)), unknown)
        spread[:, [self.actions.index(name) for name in self.contract.actions.names]] = own
        return spread
