"""A policy that follows another one in a fixed share of its decisions, so that it can be shown to be no worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from offline_dqn.guarded import GuardedPolicy
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import RulePolicy

MOST_POLICIES = 4
"""Policies that a mixture may consist of, counting those within its partner: each of them acts on every decision."""


@dataclass(frozen=True)
class MixturePolicy:
    """Acts as `own` in a share of the decisions, and as `partner`, which wrote the log or could have, in the others.

    Against a log that the partner wrote, the density ratio of a step is at least 1 - share and at most
    1 - share + share / p, where p is the partner's probability of the logged action: whatever `own` does, importance
    weights stay bounded over the steps where it differs. Both explore, so the mixture does.

    Attributes:
        own: what was learned.
        partner: the champion or version 0, whole: the artifact holds it.
        share: of decisions, in (0, 1), that `own` makes.
        digest: of the artifact it was loaded from, "" before it was saved.

    Raises:
        ValueError: the two speak of different actions, the share is none, or there would be more than `MOST_POLICIES`.

    Source: in the spirit of Laroche et al. 2019, Safe Policy Improvement with Baseline Bootstrapping
    (arXiv:1712.06924). Differs from it: the partner acts in a fixed share of all decisions, not only where the log
    holds too few of a state-action pair; for that, see `Choice.support_threshold`.
    """

    own: QPolicy
    partner: QPolicy | RulePolicy | MixturePolicy | GuardedPolicy
    share: float
    digest: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share wants a number between 0 and 1, found {self.share}")
        if self.own.actions != self.partner.actions:
            raise ValueError(
                f"own and partner of a mixture must name the same actions in the same order; found {self.own.actions} "
                f"and {self.partner.actions}. Load the partner with `actions` of the own policy."
            )
        if n_policies(self) > MOST_POLICIES:
            raise ValueError(
                f"a mixture of {n_policies(self)} policies would act on every decision; at most {MOST_POLICIES} may. "
                "The partner is a mixture itself: mix with version 0, or with one of its parts."
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
        return self.own.config

    @property
    def snapshot_digest(self) -> str:
        """What `own` was trained from."""
        return self.own.snapshot_digest

    def q_values(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, A) float64 of `own`, in reward units: not the value of the mixture."""
        return self.own.q_values(observations)

    def disagreement(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, A) float64 of `own`, in reward units."""
        return self.own.disagreement(observations)

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) probabilities with which it acts: share * own + (1 - share) * partner.

        Raises:
            NoAvailableActionError: a row allows no action that own or partner knows.
        """
        own = self.own.action_probs(observations, available)
        partner = self.partner.action_probs(observations, available)
        probs: NDArray[np.float64] = self.share * own + (1.0 - self.share) * partner
        return probs


def n_policies(policy: QPolicy | RulePolicy | MixturePolicy | GuardedPolicy) -> int:
    """How many policies act on each decision; what a guard falls back on acts on few."""
    if isinstance(policy, GuardedPolicy):
        return n_policies(policy.own)
    return 1 + n_policies(policy.partner) if isinstance(policy, MixturePolicy) else 1
