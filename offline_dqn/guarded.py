"""A learned policy that leaves what it was not trained for to version 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from offline_dqn.guard import Guard, choice_spread, reasons_of
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import RulePolicy

if TYPE_CHECKING:
    from offline_dqn.mixture import MixturePolicy


@dataclass(frozen=True)
class GuardedPolicy:
    """Acts as `own` does, and as `fallback` where the guard fires and the fallback knows an available action.

    What is evaluated is what acts: its probabilities are those of the two together, so that evaluation, gate and server
    see policy and guard as one.

    Attributes:
        own: what was learned.
        fallback: version 0, whole: the artifact holds it.
        guard: when it takes over.
        digest: of the artifact it was loaded from, "" before it was saved.

    Raises:
        ValueError: the two speak of different actions.
    """

    own: QPolicy | RulePolicy | MixturePolicy
    fallback: QPolicy | RulePolicy
    guard: Guard
    digest: str = ""

    def __post_init__(self) -> None:
        if self.own.actions != self.fallback.actions:
            raise ValueError(
                f"own and fallback of a guarded policy must name the same actions in the same order; found "
                f"{self.own.actions} and {self.fallback.actions}. Load the fallback with `actions` of the own policy."
            )

    @property
    def contract(self) -> Contract:
        """The one that `own` was trained under."""
        return self.own.contract

    @property
    def actions(self) -> tuple[str, ...]:
        """Labels of every action axis here."""
        return self.own.actions

    @property
    def config(self) -> Mapping[str, Any]:
        """What `own` was trained with."""
        return getattr(self.own, "config", {})

    @property
    def snapshot_digest(self) -> str:
        """What `own` was trained from."""
        return getattr(self.own, "snapshot_digest", "")

    def q_values(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, A) float64 of `own`, in reward units: not the value of both together."""
        return self.own.q_values(observations)

    def disagreement(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, A) float64 of `own`, in reward units."""
        return self.own.disagreement(observations)

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) probabilities with which it acts, exploration and masks of whichever acts included.

        Raises:
            NoAvailableActionError: a row allows no action that `own` knows, or none that whichever acts knows.
        """
        falls_back = self.falls_back(observations, available)
        if not falls_back.any():
            return self.own.action_probs(observations, available)
        probs = np.zeros(available.shape)
        for policy, chosen in ((self.own, ~falls_back), (self.fallback, falls_back)):
            if chosen.any():
                rows = np.flatnonzero(chosen)
                probs[rows] = policy.action_probs(observations.take(rows), available[rows])
        return probs

    def falls_back(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(n,) where the fallback acts: the guard fires, and the fallback knows an action that is available."""
        known = _known(self.fallback)
        fires: NDArray[np.bool_] = self.guard_reasons(observations) != ""
        if available.shape != (len(observations), len(known)):
            return np.zeros(len(observations), dtype=bool)  # `own` says what is wrong with it
        return fires & (available & known).any(axis=1)

    def guard_reasons(self, observations: Observations) -> NDArray[np.str_]:
        """(n,) why the guard fires: "missing", "strange" or "disagreement"; "" where it does not."""
        return reasons_of(self.guard_excess(observations))

    def guard_excess(self, observations: Observations) -> NDArray[np.float64]:
        """(n, 3) each cause's score over its threshold, in the order of `guard.CAUSES`: above 1 it fires."""
        learned, spread = learned_part(self), None
        if self.guard.watches_disagreement and isinstance(learned, QPolicy):
            spread = choice_spread(learned, observations)
        return self.guard.excess(observations, spread)


def learned_part(policy: QPolicy | RulePolicy | MixturePolicy | GuardedPolicy) -> QPolicy | RulePolicy:
    """The policy behind guard and mixture: what was learned, or rules."""
    while not isinstance(policy, QPolicy | RulePolicy):
        policy = policy.own
    return policy


def with_learned_part(policy: Any, learned: QPolicy) -> Any:
    """The same guard and mixture around another learned policy."""
    if isinstance(policy, QPolicy | RulePolicy):
        return learned
    return replace(policy, own=with_learned_part(policy.own, learned))


def fallback_reasons(policy: object, observations: Observations, available: NDArray[np.bool_]) -> list[str] | None:
    """(n,) why the fallback acts in a policy's place, "" where it does not; None for a policy without a guard."""
    if not isinstance(policy, GuardedPolicy):
        return None
    able = (available & _known(policy.fallback)).any(axis=1)
    found: list[str] = np.where(able, policy.guard_reasons(observations), "").tolist()
    return found


def _known(policy: QPolicy | RulePolicy) -> NDArray[np.bool_]:
    """(A,) which actions its contract has."""
    return np.isin(policy.actions, policy.contract.actions.names)
