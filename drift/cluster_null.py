"""The null of PSI from a reference's clusters: two pseudo windows drawn with replacement, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.cells import Cells, dense
from drift.divergence import psi_of_rows
from drift.null import BinnedColumn, PsiNull, psi_null

MAX_UNITS = 2048
"""Larger pools are put together into this many bundles by chance, which leaves the variance of a sum as it is."""

MAX_DRAWS = 500
"""Draws from a pool too large to resample whole, for a live window too small to be drawn in bundles. More than that
are drawn as this many, and their deviation scaled down: the error of a mean falls with the root of its size."""


def cluster_null(
    columns: Sequence[BinnedColumn],
    cells: Cells,
    *,
    n_live_clusters: int,
    n_live_nights: int,
    n_replicates: int,
    floor: float,
    rng: np.random.Generator,
) -> PsiNull:
    """The null from the reference's clusters, for a live window of `n_live_clusters` clusters over `n_live_nights`.

    A cluster that the reference saw for a month gives a live window of one night only a night's worth of rows, so the
    pseudo live window draws blocks: a cluster's rows within as many consecutive nights as the live window has. In a
    weighted column it draws them in proportion to their weight, since the live window itself is not weighted.

    Clusters that live on in both windows are taken as drawn anew, which makes alarms rarer than promised.

    Args:
        columns: J reference columns over the same cells.
        cells: of the reference.
        n_live_clusters: distinct clusters of the live window.
        floor: as in `population_stability_index`.
    """
    clusters = dense(cells.clusters)
    first_night = int(cells.nights.min())
    n_stretches = (int(cells.nights.max()) - first_night) // n_live_nights + 1
    blocks = dense(clusters * n_stretches + (cells.nights - first_night) // n_live_nights)
    n_codes, n_blocks = int(clusters.max()) + 1, int(blocks.max()) + 1
    bundles, n_bundles = _bundled(clusters, n_codes, rng)
    reference_draws = _draw(np.ones(n_bundles), n_bundles, n_replicates, rng)
    n_live_draws = max(1, round(n_live_clusters / cells.clusters_per_code))
    if n_blocks > MAX_UNITS and n_live_draws * MAX_UNITS >= MAX_DRAWS * n_blocks:
        n_live_draws = round(n_live_draws * MAX_UNITS / n_blocks)
        blocks, n_blocks = _bundled(blocks, n_blocks, rng)
    live_draws: dict[bool, _Draws] = {}  # weighted columns share their draws, and so do the others
    psi = np.empty((n_replicates, len(columns)))
    for j, column in enumerate(columns):
        by_bundle = _summed(column.by_cell, bundles, n_bundles)
        by_block = _summed(column.by_cell, blocks, n_blocks)
        n_entries = np.bincount(blocks, column.n_entries, minlength=n_blocks)
        mean_weight = by_block.sum(axis=1) / np.where(n_entries > 0, n_entries, 1.0)
        if column.weighted not in live_draws:
            live_draws[column.weighted] = _draw(mean_weight, n_live_draws, n_replicates, rng)
        by_block /= np.where(mean_weight > 0, mean_weight, 1.0)[:, None]
        live_shares = live_draws[column.weighted].shares(by_block)
        psi[:, j] = psi_of_rows(reference_draws.shares(by_bundle), live_shares, floor=floor)
    return psi_null("cluster", cells.n_clusters, psi)


def _summed(by_cell: NDArray[np.float64], unit_of_cell: NDArray[np.int64], n_units: int) -> NDArray[np.float64]:
    sums = np.zeros((n_units, by_cell.shape[1]))
    np.add.at(sums, unit_of_cell, by_cell)
    return sums


def _bundled(unit_of_cell: NDArray[np.int64], n_units: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """Each cell's bundle of units, and the number of bundles: the units themselves where they are few."""
    if n_units <= MAX_UNITS:
        return unit_of_cell, n_units
    return (rng.permutation(n_units) % MAX_UNITS)[unit_of_cell], MAX_UNITS


@dataclass(frozen=True)
class _Draws:
    """R replicates of drawing units with replacement from a pool of P.

    Attributes:
        chances: (P,) chance of each unit in a draw.
        counts: (R, P) how often each unit was drawn, or, for large pools,
        indices: (R, draws) which units were drawn.
        stretch: what to multiply the deviation from the pool's own shares by.
    """

    chances: NDArray[np.float64]
    counts: NDArray[np.float64] | None
    indices: NDArray[np.int64] | None
    stretch: float

    def shares(self, by_unit: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R, K) shares of each replicate, from (P, K) histograms."""
        if self.counts is not None:
            sums = self.counts @ by_unit
        else:
            assert self.indices is not None
            sums = np.stack([by_unit[drawn].sum(axis=0) for drawn in self.indices])
        expected = self.chances @ by_unit
        pooled = expected / expected.sum()
        total = sums.sum(axis=1, keepdims=True)  # a replicate without any weight tells nothing
        drawn_shares = np.where(total > 0, sums / np.where(total > 0, total, 1.0), pooled)
        shares: NDArray[np.float64] = np.maximum(pooled + self.stretch * (drawn_shares - pooled), 0.0)
        return shares


def _draw(weights: NDArray[np.float64], n_draws: int, n_replicates: int, rng: np.random.Generator) -> _Draws:
    chances = weights / weights.sum()
    n_units = len(weights)
    # Drawing from P units instead of from the population behind them understates variance by (P - 1) / P.
    stretch = float(np.sqrt(n_units / max(1, n_units - 1)))
    if n_units <= MAX_UNITS:
        counts = rng.multinomial(n_draws, chances, size=n_replicates).astype(np.float64)
        return _Draws(chances, counts, None, stretch)
    drawn = min(n_draws, MAX_DRAWS)
    indices = np.searchsorted(np.cumsum(chances), rng.random((n_replicates, drawn))).clip(max=n_units - 1)
    return _Draws(chances, None, indices, stretch * float(np.sqrt(drawn / n_draws)))
