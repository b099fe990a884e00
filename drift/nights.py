"""Night by night: how far each column of a window moved from a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.binning import histogram, histograms_by_unit
from drift.comparison import column_bins
from drift.config import DriftConfig
from drift.divergence import psi_of_rows
from drift.windows import DriftWindow, scalar_columns

_CHANCE = 2.326347874
"""Standard normal quantile at 99 %."""


@dataclass(frozen=True)
class NightlyPsi:
    """C columns that both windows have, M nights of the window.

    Attributes:
        columns: (C,) names, in the reference's order.
        nights: (M,) datetime64[D], ascending; n_episodes: (M,) that started in each.
        psi: (C, M) of the night against the whole reference, in nats.
        allowed: (C, M) PSI that chance explains 99 times in 100, and at least the smallest that matters.
    """

    columns: tuple[str, ...]
    nights: NDArray[np.datetime64]
    n_episodes: NDArray[np.int64]
    psi: NDArray[np.float64]
    allowed: NDArray[np.float64]


def psi_by_night(reference: DriftWindow, window: DriftWindow, config: DriftConfig) -> NightlyPsi:
    """PSI of each column in each night of `window`, on bins cut on the reference.

    What chance allows takes each cluster as one row, so it is generous where a cluster's rows differ. It knows nothing
    of shocks that a night's episodes share: this is a picture, and `measure_drift` decides.

    Raises:
        ValueError: a window is empty, or has weights.
    """
    if not reference.n_rows or not window.n_rows or reference.weights is not None or window.weights is not None:
        raise ValueError(
            f"wants two windows with rows and no weights, found {reference.n_rows} and {window.n_rows} rows"
        )
    nights, night_of_episode = np.unique(window.nights, return_inverse=True)
    n_clusters = np.array([len(np.unique(window.clusters[night_of_episode == m])) for m in range(len(nights))])
    spread = 1.0 / n_clusters + 1.0 / reference.n_clusters
    groups, night_of_row = reference.clusters[reference.episode_of_row], night_of_episode[window.episode_of_row]
    names: list[str] = []
    psi: list[NDArray[Any]] = []
    allowed: list[NDArray[Any]] = []
    for column, before in reference.columns.items():
        now = window.columns.get(column)
        if now is None or now.kind != before.kind:
            continue
        parts = scalar_columns(column, now)
        for name, part in scalar_columns(column, before).items():
            bins = column_bins(part, groups=groups, weights=None, n_bins=config.n_bins)
            counts = histogram(bins.assign(part), len(bins.labels))
            by_night = histograms_by_unit(bins.assign(parts[name]), len(bins.labels), night_of_row, len(nights))
            shares = by_night / by_night.sum(axis=1, keepdims=True)
            names.append(name)
            psi.append(psi_of_rows(counts / counts.sum(), shares, floor=config.floor))
            n_used = int((counts > 0).sum())
            allowed.append(np.maximum(config.min_psi, _chi_square_quantile(max(1, n_used - 1)) * spread))
    return NightlyPsi(
        tuple(names), nights, np.bincount(night_of_episode), np.array(psi).reshape(-1, len(nights)),
        np.array(allowed).reshape(-1, len(nights)),
    )  # fmt: skip


def _chi_square_quantile(freedom: int) -> float:
    """99 % quantile of chi-square, to within a few percent. Source: Wilson and Hilferty 1931."""
    part = 2.0 / (9.0 * freedom)
    return float(freedom * (1.0 - part + _CHANCE * part**0.5) ** 3)
