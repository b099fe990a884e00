"""From the action a policy prefers to the probabilities with which it acts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.errors import OfflineDqnError


class NoAvailableActionError(OfflineDqnError):
    """A row in which no action that the policy knows may be taken."""


def explore(preferred: NDArray[np.bool_], allowed: NDArray[np.bool_], exploration: float) -> NDArray[np.float64]:
    """Uniform over the preferred actions, mixed with uniform over all allowed ones.

    Args:
        preferred: (n, A) bool, at least one allowed action per row.
        allowed: (n, A) bool.
        exploration: share of decisions that are uniform over the allowed actions, in [0, 1].

    Returns:
        (n, A) float64; rows sum to 1, and what is not allowed has 0.

    Raises:
        NoAvailableActionError: a row allows nothing.
    """
    n_allowed = allowed.sum(axis=1, keepdims=True)
    empty = np.flatnonzero(n_allowed[:, 0] == 0)
    if len(empty):
        raise NoAvailableActionError(
            f"{len(empty)} of {len(allowed)} rows (first row {empty[0]}) allow no action that the policy knows. "
            "Correct available_actions there, or train on logs that hold the added actions."
        )
    preferred = preferred & allowed
    greedy = preferred / preferred.sum(axis=1, keepdims=True)
    probs: NDArray[np.float64] = (1.0 - exploration) * greedy + exploration * (allowed / n_allowed)
    return probs
