"""When a learned policy should not act: too much is missing, the observation is strange, or its networks disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.observations import Observations
from offline_dqn.familiarity import Familiarity, Floats
from offline_dqn.q_policy import QPolicy

MISSING, STRANGE, DISAGREEMENT = "missing", "strange", "disagreement"
CAUSES = (MISSING, STRANGE, DISAGREEMENT)
"""In the order in which one is named where several fire."""

NEVER = float("inf")

SAME_EXCESS = 1e-3
"""Part of a threshold by which engines may differ about a score: a graph that differs by more is not written."""


@dataclass(frozen=True)
class Calibration:
    """How the thresholds were set.

    Attributes:
        false_alarm_share: of ordinary decisions, all causes together, that was asked for.
        shares: of it, by cause.
        n_rows, n_clusters: of `select` that they were set on.
        held: whether these were enough to hold the asked share; where they are too few, a threshold lies at the largest
            score on `select`, and nothing is promised.
    """

    false_alarm_share: float
    shares: Mapping[str, float]
    n_rows: int
    n_clusters: int
    held: bool


@dataclass(frozen=True)
class Guard:
    """What is ordinary, and how far from it version 0 takes over.

    Attributes:
        familiarity: what observations looked like in training.
        thresholds: of each cause's score, above which it fires; infinite for a cause that never does.
        calibration: how they were set.

    Raises:
        ValueError: a threshold is missing or not positive.
    """

    familiarity: Familiarity
    thresholds: Mapping[str, float]
    calibration: Calibration

    def __post_init__(self) -> None:
        if set(self.thresholds) != set(CAUSES) or not all(value > 0 for value in self.thresholds.values()):
            raise ValueError(f"thresholds wants a positive number for each of {', '.join(CAUSES)}: {self.thresholds}")

    def excess(self, observations: Observations, spread: Floats | None) -> Floats:
        """(n, 3) each cause's score over its threshold: above 1 it fires.

        Args:
            observations: n rows.
            spread: (n,) from `choice_spread`; None where there is no ensemble.
        """
        excess = np.zeros((len(observations), len(CAUSES)))
        excess[:, 0] = self.familiarity.absence(observations) / self.thresholds[MISSING]
        if np.isfinite(self.thresholds[STRANGE]):
            excess[:, 1] = self.familiarity.distance(observations) / self.thresholds[STRANGE]
        if spread is not None:
            excess[:, 2] = spread / self.thresholds[DISAGREEMENT]
        return excess

    @property
    def watches_disagreement(self) -> bool:
        """Whether disagreement can fire."""
        return bool(np.isfinite(self.thresholds[DISAGREEMENT]))


def reasons_of(excess: Floats) -> NDArray[np.str_]:
    """(n,) the first cause that fires, "" where none does."""
    fires = excess > 1.0
    first = fires.argmax(axis=1)
    reasons: NDArray[np.str_] = np.where(fires.any(axis=1), np.array(CAUSES)[first], "")
    return reasons


def choice_spread(policy: QPolicy, observations: Observations) -> Floats | None:
    """(n,) by how much the networks of an ensemble disagree about the choice, in reward units; None of a single one.

    The largest standard deviation, over the networks, of what an action is worth above the mean of all actions: where
    they disagree about the level alone, they choose alike.
    """
    if policy.kind == "logits" or policy.architecture.n_members == 1:
        return None
    values = policy.member_values(observations)  # (K, n, A)
    above = values - values.mean(axis=2, keepdims=True)
    spread: Floats = above.std(axis=0, ddof=1).max(axis=1)
    return spread
