"""A reference column as if it had been logged in the same seasons as the live entries: direct standardization.

What a reference shows in each stratum (kind of night, hour of the day) counts as much as the live entries that lie in
it, so a log of other hours or weekdays is compared with its like. Source: Miettinen 1972, Standardization of risk
ratios; Cochran 1977, Sampling Techniques, 5A, for the variance of a poststratified mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drift.null import BinnedColumn
from drift.seasons import N_HOURS, N_KINDS, N_STRATA

Floats = NDArray[np.float64]


def by_stratum(column: BinnedColumn, stratum_of_cell: NDArray[np.int64]) -> Floats:
    """(strata, K) summed cells."""
    sums = np.zeros((N_STRATA, column.by_cell.shape[1]))
    np.add.at(sums, stratum_of_cell, column.by_cell)
    return sums


def standardized_shares(sums: Floats, mixture: Floats) -> Floats:
    """(K,) shares with the strata in the proportions of `mixture`; strata without an entry are left out.

    Args:
        sums: (strata, K) of a reference column.
        mixture: (strata,) not negative; sums to 1.

    Raises:
        ValueError: the reference holds no entry in any stratum that the mixture has.
    """
    totals = sums.sum(axis=1)
    held = np.where(totals > 0, mixture, 0.0)
    if not held.any():
        raise ValueError("the reference holds no entry in any season that the live window has")
    shares: Floats = (held / held.sum()) @ (sums / np.where(totals > 0, totals, 1.0)[:, None])
    return shares


def without_hours(column: BinnedColumn, stratum_of_cell: NDArray[np.int64], mixture: Floats) -> BinnedColumn:
    """The column's cells as if the hour made no difference, each hour weighing what it does in the live entries.

    A null that drew the cells as they are would take for chance that one cell lies at noon and another at midnight,
    though the comparison knows it. So each cell shows its nights' standardized shares plus what it differs by from the
    shares of its own stratum: the linear part of the error of standardized shares. What differs from an estimate that
    it is part of is too small by (m - 1) / m in a stratum of m cells, and is made larger by that.

    Args:
        stratum_of_cell: (C,).
        mixture: (strata,) share of the live entries; its hours are used, of all kinds of nights together.
    """
    sums = by_stratum(column, stratum_of_cell)
    totals = sums.sum(axis=1)
    held = totals > 0
    shares = sums / np.where(held, totals, 1.0)[:, None]
    hours = np.where(held.reshape(N_KINDS, N_HOURS), mixture.reshape(N_KINDS, N_HOURS).sum(axis=0), 0.0)
    of_kind = hours.sum(axis=1, keepdims=True)
    hours = hours / np.where(of_kind > 0, of_kind, 1.0)
    level = np.einsum("dh,dhk->dk", hours, shares.reshape(N_KINDS, N_HOURS, -1))
    kind_totals = totals.reshape(N_KINDS, N_HOURS).sum(axis=1, keepdims=True)
    weights = (hours * kind_totals).ravel() / np.where(held, totals, 1.0)
    n_units = np.bincount(stratum_of_cell[column.n_entries > 0], minlength=N_STRATA)
    widened = np.sqrt(n_units / np.maximum(n_units - 1, 1))
    total = column.by_cell.sum(axis=1, keepdims=True)
    residuals = (column.by_cell - total * shares[stratum_of_cell]) * widened[stratum_of_cell][:, None]
    by_cell = weights[stratum_of_cell][:, None] * (total * level[stratum_of_cell // N_HOURS] + residuals)
    return BinnedColumn(by_cell, column.n_entries, weighted=True)
