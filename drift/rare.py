"""Slots that the reference hardly holds: what chance puts there in the live window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEW = 5
"""Units of the reference from which on a slot is known well enough for the null to know it too."""


def has_a_say(
    live_units: NDArray[np.int64],
    reference_units: NDArray[np.int64],
    *,
    n_live: int,
    n_reference: int,
    rate: float,
) -> NDArray[np.bool_]:
    """(K,) of each slot whether it counts in a column's verdict.

    A slot that the reference never filled has no spread in a null that is drawn from it, and the first flag of a kind
    that comes once in a thousand episodes would be beyond it. So a slot that fewer than five units of the reference
    hold counts only where more live units hold it than chance brings at `rate`, with one unit more in the reference
    than there is: a Poisson number with mean n_live (r + 1) / (n_reference + 1).

    Args:
        live_units, reference_units: (K,) cells, clusters of a night, with any entry in each slot.
        n_live, n_reference: cells of each side.
        rate: in (0, 1).

    Source: Laplace's rule of succession for what was never seen.
    """
    from scipy.special import pdtrc

    expected = n_live * (reference_units + 1.0) / (n_reference + 1.0)
    chance = np.where(live_units > 0, pdtrc(np.maximum(live_units, 1) - 1, expected), 1.0)
    known: NDArray[np.bool_] = (reference_units >= FEW) | (chance <= rate)
    return known
