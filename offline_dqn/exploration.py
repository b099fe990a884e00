"""From what a policy chooses to the probabilities with which it acts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.errors import OfflineDqnError


class NoAvailableActionError(OfflineDqnError):
    """A row in which no action that the policy knows may be taken."""


def allowed_actions(available: NDArray[np.bool_], known: NDArray[np.bool_], n_rows: int) -> NDArray[np.bool_]:
    """(n, A) which actions may be taken: available, and known to the policy.

    Args:
        available: (n, A) bool.
        known: (A,) bool.
        n_rows: n.

    Raises:
        ValueError: `available` has another shape.
        NoAvailableActionError: a row allows nothing.
    """
    if available.shape != (n_rows, len(known)):
        raise ValueError(f"available wants the shape (n, A) = {(n_rows, len(known))}, found {available.shape}")
    allowed = available & known
    empty = np.flatnonzero(~allowed.any(axis=1))
    if len(empty):
        raise NoAvailableActionError(
            f"{len(empty)} of {n_rows} rows (first row {empty[0]}) allow no action that the policy knows. "
            "Correct available_actions there, or train on logs that hold the added actions."
        )
    return allowed


def explore(chosen: NDArray[np.float64], allowed: NDArray[np.bool_], exploration: float) -> NDArray[np.float64]:
    """The policy's choice, mixed with uniform over all allowed actions.

    Args:
        chosen: (n, A) probabilities, 0 where not allowed; rows sum to 1.
        allowed: (n, A) bool, at least one per row.
        exploration: share of decisions that are uniform over the allowed actions, in [0, 1].

    Returns:
        (n, A) float64; rows sum to 1, and what is not allowed has 0.
    """
    floor = exploration * (allowed / allowed.sum(axis=1, keepdims=True))
    probs: NDArray[np.float64] = (1.0 - exploration) * chosen + floor
    return probs
