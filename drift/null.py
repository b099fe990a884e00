"""What PSI looks like when nothing has changed, for windows of the sizes at hand.

Rows of an episode depend on each other, episodes of a cluster and of a night too, so the null is never drawn from rows:

* From the reference's nights, each against the others, where there are enough of them. Nights share shocks (weather,
  a sale, an incident), and only whole nights carry them.
* Before that from its clusters: two pseudo windows drawn with replacement, one as large as the reference and one as
  large as the live window. It knows nothing of night shocks, so it alarms too often where there are any, and its
  result is called optimistic.

All columns are judged together by the largest of their scores. A column's score is the cube root of its PSI,
standardized by the null: PSI behaves like a multiple of a chi-square, whose cube root is nearly normal (Wilson and
Hilferty 1931), so columns with two bins and with twelve become comparable. The null of the largest score needs no tiny
p-values, holds however columns depend on each other, and bounds the share of unchanged nights with any alarm at all.
When nothing has changed every discovery is false, so this is also what controlling false discovery comes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drift.binning import histograms_by_unit
from drift.divergence import psi_of_rows

MAX_UNITS = 2048
"""Larger pools are put together into this many bundles by chance, which leaves the variance of a sum as it is."""

MAX_DRAWS = 500
"""Draws from a pool too large to resample whole, for a live window too small to be drawn in bundles. More than that
are drawn as this many, and their deviation scaled down: the error of a mean falls with the root of its size."""

_TINY = 1e-9  # scale of a column that never moves in the reference: any move of the live window is beyond its null


@dataclass(frozen=True)
class BinnedColumn:
    """A reference column after binning: (rows,) slots below `n_slots`, and (rows,) weights or None for all alike."""

    slots: NDArray[np.int64]
    n_slots: int
    weights: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class PsiNull:
    """The joint null of the PSI of J columns.

    Attributes:
        unit: what was taken as independent.
        n_units: how many of them the reference holds.
        center, scale: (J,) mean and standard deviation of each column's cube root of PSI.
        max_scores: (R,) ascending, the largest standardized score of any column, in R unchanged worlds.
    """

    unit: Literal["night", "cluster"]
    n_units: int
    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    max_scores: NDArray[np.float64]

    def p_values(self, psi: NDArray[np.float64]) -> NDArray[np.float64]:
        """(J,) chance that an unchanged night shows any column this far out: adjusted for all columns together."""
        scores = (np.cbrt(psi) - self.center) / self.scale
        n_beyond = len(self.max_scores) - np.searchsorted(self.max_scores, scores, side="left")
        return np.asarray((1.0 + n_beyond) / (1.0 + len(self.max_scores)), dtype=np.float64)

    def thresholds(self, false_alarm_rate: float) -> NDArray[np.float64]:
        """(J,) PSI above which `p_values` is at most the rate. All columns share the rate."""
        n_allowed = int(false_alarm_rate * (1.0 + len(self.max_scores)) + 1e-9)
        if n_allowed < 1:
            raise ValueError(f"{len(self.max_scores)} replicates cannot resolve a rate of {false_alarm_rate}")
        bounds: NDArray[np.float64] = (self.center + self.max_scores[-n_allowed] * self.scale).clip(min=0.0) ** 3
        return bounds

    @property
    def typical_psi(self) -> NDArray[np.float64]:
        """(J,) about the median PSI of an unchanged night."""
        typical: NDArray[np.float64] = self.center.clip(min=0.0) ** 3
        return typical


def cluster_null(
    columns: Sequence[BinnedColumn],
    cluster_of_row: NDArray[np.int64],
    night_of_row: NDArray[np.int64],
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
        columns: J reference columns over the same rows.
        cluster_of_row: (rows,) code of the row's cluster.
        night_of_row: (rows,) day number.
        floor: as in `population_stability_index`.
    """
    clusters = _dense(cluster_of_row)
    first_night = night_of_row.min()
    n_stretches = (int(night_of_row.max()) - int(first_night)) // n_live_nights + 1
    blocks = _dense(clusters * n_stretches + (night_of_row - first_night) // n_live_nights)
    n_clusters, n_blocks = int(clusters.max()) + 1, int(blocks.max()) + 1
    bundles, n_bundles = _bundled(clusters, n_clusters, rng)
    reference_draws = _draw(np.ones(n_bundles), n_bundles, n_replicates, rng)
    n_live_draws = n_live_clusters
    if n_blocks > MAX_UNITS and n_live_clusters * MAX_UNITS >= MAX_DRAWS * n_blocks:
        n_live_draws = round(n_live_clusters * MAX_UNITS / n_blocks)
        blocks, n_blocks = _bundled(blocks, n_blocks, rng)
    live_draws: dict[bool, _Draws] = {}  # weighted columns share their draws, and so do the others
    psi = np.empty((n_replicates, len(columns)))
    for j, column in enumerate(columns):
        by_bundle = histograms_by_unit(column.slots, column.n_slots, bundles, n_bundles, column.weights)
        by_block = histograms_by_unit(column.slots, column.n_slots, blocks, n_blocks, column.weights)
        mean_weight = by_block.sum(axis=1) / np.bincount(blocks, minlength=n_blocks)
        weighted = column.weights is not None
        if weighted not in live_draws:
            live_draws[weighted] = _draw(mean_weight, n_live_draws, n_replicates, rng)
        by_block /= np.where(mean_weight > 0, mean_weight, 1.0)[:, None]
        psi[:, j] = psi_of_rows(reference_draws.shares(by_bundle), live_draws[weighted].shares(by_block), floor=floor)
    return psi_null("cluster", n_clusters, psi)


def _bundled(unit_of_row: NDArray[np.int64], n_units: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """Each row's bundle of units, and the number of bundles: the units themselves where they are few."""
    if n_units <= MAX_UNITS:
        return unit_of_row, n_units
    return (rng.permutation(n_units) % MAX_UNITS)[unit_of_row], MAX_UNITS


def night_null(
    columns: Sequence[BinnedColumn],
    cluster_of_row: NDArray[np.int64],
    night_of_row: NDArray[np.int64],
    *,
    live_clusters_per_night: float,
    n_live_nights: int,
    n_replicates: int,
    floor: float,
    rng: np.random.Generator,
) -> PsiNull:
    """The null from the reference's nights, each against the others.

    N nights give N values of PSI, and no 1 % tail. But PSI is close to the squared length of the night's deviation in
    shares (each over the root of its bin's), and the deviations' covariance, in a column and between columns, is there
    to be used: a replicate adds the nights' deviations with normal multipliers, the same ones for all columns, which
    draws from just that covariance. What N nights leave uncertain about a column's overall size goes in as an F
    statistic's denominator, with (N - 1) sqrt(f) degrees of freedom for nights that move in f directions. N - 1 would
    be right if only the largest direction mattered in the tail, (N - 1) f if all did alike; simulated nights with
    shocks alarm almost never with the first and too often with the second.

    Nights with more clusters than live ones are thinned to their number; nights with fewer are used whole, which makes
    alarms rarer than promised.

    Args:
        columns: J reference columns over the same rows.
        cluster_of_row: (rows,) code of the row's cluster.
        night_of_row: (rows,) day number.
        live_clusters_per_night: clusters of a live night, on average.
        n_live_nights: nights that the live window joins.
        floor: as in `population_stability_index`.

    Source: Wu 1986 for the multiplier bootstrap; Chen and Qin 2010 for the trace of a squared covariance.
    """
    nights = _dense(night_of_row)
    n_nights = int(nights.max()) + 1
    cells = _dense(nights * (int(cluster_of_row.max()) + 1) + cluster_of_row)  # a cluster's rows of one night
    n_cells = int(cells.max()) + 1
    night_of_cell = np.empty(n_cells, dtype=np.int64)
    night_of_cell[cells] = nights
    kept = _thinned(night_of_cell, max(1, round(live_clusters_per_night)), rng)
    starts = np.searchsorted(night_of_cell[kept], np.arange(n_nights))
    multipliers = rng.standard_normal((n_replicates, n_nights))
    # The mean of the live nights against N nights, where the reference only shows one against N - 1.
    size = (1.0 / n_live_nights + 1.0 / n_nights) / (1.0 + 1.0 / (n_nights - 1))
    psi = np.zeros((n_replicates, len(columns)))
    for j, column in enumerate(columns):
        by_cell = histograms_by_unit(column.slots, column.n_slots, cells, n_cells, column.weights)
        by_night = histograms_by_unit(column.slots, column.n_slots, nights, n_nights, column.weights)
        pooled = by_night.sum(axis=0) / by_night.sum()
        others = _shares(by_night.sum(axis=0) - by_night, otherwise=pooled)
        thinned = np.add.reduceat(by_cell[kept], starts, axis=0)
        alone = _shares(thinned, otherwise=others)
        deviations = (alone - others) / np.sqrt(np.maximum(pooled, floor))
        total = float((deviations**2).sum())
        if total > 0.0:
            draws = ((multipliers @ deviations) ** 2).sum(axis=1) / total
            freedom = (n_nights - 1) * float(np.sqrt(_directions(deviations)))
            draws *= freedom / rng.chisquare(freedom, n_replicates)
            psi[:, j] = size * psi_of_rows(others, alone, floor=floor).mean() * draws
    return psi_null("night", n_nights, psi)


def _thinned(night_of_cell: NDArray[np.int64], n_wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Cells kept: at most `n_wanted` of each night, by chance."""
    shuffled = rng.permutation(len(night_of_cell))
    by_night = shuffled[np.argsort(night_of_cell[shuffled], kind="stable")]
    nights = night_of_cell[by_night]
    rank_in_night = np.arange(len(nights)) - np.searchsorted(nights, nights)
    return by_night[rank_in_night < n_wanted]


def _directions(deviations: NDArray[np.float64]) -> float:
    """In how many directions (N, K) deviations vary, from 1 to K: trace(S)^2 / trace(S^2) of their covariance S.

    The squares of a night's product with itself are left out: with few nights they would hide how many there are.
    """
    n, n_slots = deviations.shape
    products = deviations @ deviations.T
    trace = np.trace(products) / n
    trace_of_square = ((products**2).sum() - (np.diag(products) ** 2).sum()) / (n * (n - 1))
    return float(np.clip(trace**2 / trace_of_square, 1.0, n_slots)) if trace_of_square > 0.0 else float(n_slots)


def psi_null(unit: Literal["night", "cluster"], n_units: int, psi: NDArray[np.float64]) -> PsiNull:
    """The null that (R, J) PSI values of R unchanged worlds make."""
    roots = np.cbrt(psi)
    center, scale = roots.mean(axis=0), np.maximum(roots.std(axis=0, ddof=1), _TINY)
    return PsiNull(unit, n_units, center, scale, np.sort(((roots - center) / scale).max(axis=1)))


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
        stretched = pooled + self.stretch * (_shares(sums, otherwise=pooled) - pooled)
        shares: NDArray[np.float64] = np.maximum(stretched, 0.0)
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


def _shares(sums: NDArray[np.float64], *, otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, K) sums as shares of their row; a row without any weight tells nothing and takes `otherwise`."""
    total = sums.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.where(total > 0, sums / np.where(total > 0, total, 1.0), otherwise)
    return shares


def _dense(codes: NDArray[Any]) -> NDArray[np.int64]:
    """The codes renumbered from 0 without gaps."""
    numbers: NDArray[np.int64] = np.unique(codes, return_inverse=True)[1]
    return numbers
