"""How far two distributions are apart: PSI, KL and JS on shared bins, Wasserstein-1 on values. Everything in nats.

An empty bin makes PSI and KL infinite, so each takes a `floor`: the smallest share that a bin is given. Raised shares
are scaled to sum to 1 again; without that a floored KL could fall below zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.binning import in_order


def population_stability_index(reference_probs: ArrayLike, live_probs: ArrayLike, *, floor: float) -> float:
    """Sum over bins of (live - reference) * ln(live / reference): KL both ways, added.

    Args:
        reference_probs: (K,) share of the reference in each bin; sums to 1.
        live_probs: (K,) share of the live window in the same bins; sums to 1.
        floor: smallest share given to a bin, in [0, 1 / K]. With 0, a bin empty on one side gives infinity.

    Returns:
        Nats, at least 0; 0 for equal shares. Between equal populations it is not 0 but about (1 / n + 1 / m) times a
        chi-square with K - 1 degrees of freedom, for n and m independent rows.

    Raises:
        ValueError: the shares differ in shape, are negative, or do not sum to 1; or the floor is out of range.

    Source: Lewis 1994, An Introduction to Credit Scoring; Jeffreys 1946 for the symmetric divergence.
    """
    reference, live = _checked(reference_probs, live_probs, floor)
    return float(psi_of_rows(reference, live, floor=floor))


def psi_of_rows(
    reference_probs: NDArray[np.float64], live_probs: NDArray[np.float64], *, floor: float
) -> NDArray[np.float64]:
    """`population_stability_index` along the last axis of (..., K) arrays, unchecked: for many replicates at once."""
    reference, live = _floored(reference_probs, floor), _floored(live_probs, floor)
    psi: NDArray[np.float64] = (_relative_entropy(live, reference) + _relative_entropy(reference, live)).clip(min=0.0)
    return psi


def kl_divergence(reference_probs: ArrayLike, live_probs: ArrayLike, *, floor: float) -> float:
    """KL(live || reference): sum over bins of live * ln(live / reference).

    Args:
        reference_probs: (K,) share of the reference in each bin; sums to 1.
        live_probs: (K,) share of the live window in the same bins; sums to 1.
        floor: smallest share given to a bin, in [0, 1 / K]. With 0, a bin that only the live window fills gives
            infinity.

    Returns:
        Nats, at least 0.

    Raises:
        ValueError: as for `population_stability_index`.

    Source: Kullback and Leibler 1951.
    """
    reference, live = _checked(reference_probs, live_probs, floor)
    return max(0.0, float(_relative_entropy(_floored(live, floor), _floored(reference, floor))))


def js_divergence(reference_probs: ArrayLike, live_probs: ArrayLike) -> float:
    """Mean KL of the two to their midpoint: symmetric, in [0, ln 2] nats, finite without a floor.

    Args:
        reference_probs: (K,) share of the reference in each bin; sums to 1.
        live_probs: (K,) share of the live window in the same bins; sums to 1.

    Raises:
        ValueError: as for `population_stability_index`.

    Source: Lin 1991, Divergence measures based on the Shannon entropy. The divergence, not its square root.
    """
    reference, live = _checked(reference_probs, live_probs, 0.0)
    middle = (reference + live) / 2.0
    return max(0.0, float(_relative_entropy(live, middle) + _relative_entropy(reference, middle)) / 2.0)


def wasserstein_distance(
    reference: NDArray[np.float64],
    live: NDArray[np.float64],
    *,
    reference_weights: NDArray[np.float64] | None = None,
) -> float:
    """Wasserstein-1: the area between the two cumulative distributions, in the unit of the values.

    Args:
        reference: (n,) finite values.
        live: (m,) finite values.
        reference_weights: (n,) not negative, not all zero; None counts every reference row alike.

    Raises:
        ValueError: a side is empty, holds a value that is not finite, or the weights do not fit.

    Source: Vallender 1974, for the one-dimensional form.
    """
    if not len(reference) or not len(live):
        raise ValueError(f"Wasserstein wants values on both sides, found {len(reference)} and {len(live)}")
    if not (np.isfinite(reference).all() and np.isfinite(live).all()):
        raise ValueError("Wasserstein wants finite values; leave missing ones out, and infinite ones refused upstream")
    if reference_weights is None:
        ordered, weights = in_order(reference), np.full(len(reference), 1.0 / len(reference))
    else:
        if reference_weights.shape != reference.shape or (reference_weights < 0).any() or not reference_weights.any():
            raise ValueError("reference_weights wants one weight per value, none negative and not all zero")
        order = np.argsort(reference, kind="stable")
        ordered, weights = reference[order], reference_weights[order] / reference_weights.sum()
    values = np.concatenate([ordered, in_order(live)])
    steps = np.concatenate([weights, np.full(len(live), -1.0 / len(live))])
    order = np.argsort(values, kind="stable")  # merges two sorted runs
    half_gaps = np.diff(values[order] / 2.0)  # the whole gap between two wild values may be no float
    half = float(np.abs(np.cumsum(steps[order])[:-1]) @ half_gaps)
    return min(2.0 * half, float(np.finfo(np.float64).max))


def _checked(
    reference_probs: ArrayLike, live_probs: ArrayLike, floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reference, live = np.asarray(reference_probs, dtype=np.float64), np.asarray(live_probs, dtype=np.float64)
    if reference.ndim != 1 or reference.shape != live.shape or not len(reference):
        raise ValueError(f"wants two (K,) arrays over the same bins, found shapes {reference.shape} and {live.shape}")
    for side, probs in (("reference_probs", reference), ("live_probs", live)):
        if not (probs >= 0).all() or abs(probs.sum() - 1.0) > 1e-6:
            raise ValueError(f"{side} wants shares of at least 0 that sum to 1, found {probs} with sum {probs.sum()}")
    if not 0.0 <= floor <= 1.0 / len(reference):
        raise ValueError(f"floor = {floor} is outside [0, 1 / {len(reference)} bins]")
    return reference, live


def _floored(probs: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    raised = np.maximum(probs, floor)
    floored: NDArray[np.float64] = raised / raised.sum(axis=-1, keepdims=True)
    return floored


def _relative_entropy(probs: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the last axis of probs * ln(probs / base), where 0 * ln 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probs > 0, probs * np.log(probs / base), 0.0)
    entropy: NDArray[np.float64] = np.asarray(terms.sum(axis=-1))
    return entropy
