"""The null of PSI from a reference's nights, each against the others of its kind.

N nights give N values of PSI, and no 1 % tail. But the cube roots of those values have a mean and a standard deviation,
and the live night's distance from them is a score like Student's t. Its distribution is not quite t, because PSI adds
a shock that a night shares to the noise of its episodes, and their cube root leans. So it is simulated: nights and a
live stretch are drawn from a normal distribution with the covariance that the reference's nights show in their shares,
and their score is computed as the real one is, standard deviation and all. The uncertainty of that standard deviation,
the larger the fewer nights there are, is then in the null by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.cells import Cells, dense
from drift.divergence import psi_of_rows
from drift.null import BinnedColumn, PsiNull
from drift.seasons import night_kinds

_TINY = 1e-9
_CHUNK_VALUES = 2_000_000
"""Numbers of the simulated nights that are in memory at once."""
_UPPER = 0.99
"""Quantile by which columns of different shape become comparable."""
_MOST_CORRELATED = 0.8


@dataclass(frozen=True)
class Stretch:
    """Live nights that are put together.

    Attributes:
        kinds: (L,) kind of each night: its weekday, or 0 for all where nights of every kind are compared.
    """

    kinds: NDArray[np.int64]

    @property
    def n_nights(self) -> int:
        """L."""
        return len(self.kinds)

    def mixture(self, n_kinds: int) -> NDArray[np.float64]:
        """(n_kinds,) share of its nights that are of each kind."""
        return np.bincount(self.kinds, minlength=n_kinds) / self.n_nights


def night_nulls(
    columns: Sequence[BinnedColumn],
    cells: Cells,
    stretches: Sequence[Stretch],
    *,
    seasonality: str,
    live_clusters_per_night: float,
    n_replicates: int,
    floor: float,
    rng: np.random.Generator,
) -> list[PsiNull]:
    """The null of each stretch, for the PSI of its entries against the reference's in the same seasons.

    Columns are drawn apart from each other: with few nights their correlations are mostly chance, and taking them for
    true would make the largest score too small. Where columns do move together alarms are rarer than promised.

    Nights that follow each other may be alike. A stretch of L nights then says less than L nights: the variance of its
    mean is that of an autoregression with the correlation that the column's nights show, where it is positive.

    Nights with more clusters than live ones are thinned to their number; nights with fewer are used whole, which makes
    alarms rarer than promised.

    Args:
        columns: J reference columns over the same cells.
        cells: of the reference; every kind of night that a stretch has is there at least twice.
        seasonality: as in `night_kinds`.
        live_clusters_per_night: clusters of a live night, on average.
        floor: as in `population_stability_index`.

    Raises:
        ValueError: a kind of night that a stretch has is there less than twice.
    """
    nights = np.unique(cells.nights)
    kinds = night_kinds(nights, seasonality)
    n_kinds = int(max(kinds.max(), *(stretch.kinds.max() for stretch in stretches))) + 1
    of_kind = np.bincount(kinds, minlength=n_kinds)
    if any((of_kind[stretch.kinds] < 2).any() for stretch in stretches):
        raise ValueError("a kind of night that the live window has is there less than twice in the reference")
    used = of_kind[kinds] >= 2  # a kind that is there once has nothing to be compared with
    apart = _apart(kinds[used])
    against = [stretch.mixture(n_kinds)[kinds[used]] / of_kind[kinds[used]] for stretch in stretches]
    kept = _thinned(cells.night_codes, max(1, round(live_clusters_per_night / cells.clusters_per_code)), rng)
    found = [_of_column(column, cells, kept, used, apart, nights[used], floor) for column in columns]
    own = float((apart**2).sum(axis=1).mean())
    widths = np.array([[_variance_of_mean(s.n_nights, nightly.correlation) for nightly in found] for s in stretches])
    sizes = (widths + np.array([[(weights**2).sum()] for weights in against])) / own
    roots = np.array([[nightly.roots.mean(), nightly.roots.std(ddof=1)] for nightly in found])
    drawn = _scores([n.deviations for n in found], apart, np.array(against), np.sqrt(widths), sizes, n_replicates, rng)
    middle = np.median(drawn, axis=1)
    upper = np.maximum(np.quantile(drawn, _UPPER, axis=1) - middle, _TINY)
    root, spread = np.cbrt(sizes), np.maximum(roots[:, 1], _TINY)
    centers, scales = root * (roots[:, 0] + spread * middle), np.maximum(root * spread * upper, _TINY)
    comparable = rng.permuted((drawn - middle[:, None]) / upper[:, None], axis=1)  # each column in an order of its own
    return [
        PsiNull("night", len(nights), center, scale, scores)
        for center, scale, scores in zip(centers, scales, comparable, strict=True)
    ]


@dataclass(frozen=True)
class _Nightly:
    """A column's N nights: cube roots of their PSI against the others (N,); their shares' deviations, over the root of
    each slot's share (N, K); and the correlation of nights that follow each other."""

    roots: NDArray[np.float64]
    deviations: NDArray[np.float64]
    correlation: float


def _of_column(
    column: BinnedColumn,
    cells: Cells,
    kept: NDArray[np.int64],
    used: NDArray[np.bool_],
    apart: NDArray[np.float64],
    nights: NDArray[np.int64],
    floor: float,
) -> _Nightly:
    codes = cells.night_codes
    whole, thinned = np.zeros((2, int(codes.max()) + 1, column.by_cell.shape[1]))
    np.add.at(whole, codes, column.by_cell)
    np.add.at(thinned, codes[kept], column.by_cell[kept])
    pooled = column.shares
    shares, alone = _shares(whole, pooled)[used], _shares(thinned, pooled)[used]
    others = np.clip(shares - apart @ shares, 0.0, None)  # the mean of the others of its kind
    deviations = (alone - others) / np.sqrt(np.maximum(pooled, floor)) / np.sqrt((apart**2).sum(axis=1))[:, None]
    following = np.flatnonzero(np.diff(nights) == 1)
    total = float((deviations**2).mean(axis=0).sum())
    correlation = 0.0
    if total > 0 and len(following) >= 5:
        products = (deviations[following] * deviations[following + 1]).sum(axis=1)
        correlation = float(np.clip(products.mean() / total, 0.0, _MOST_CORRELATED))
    return _Nightly(np.cbrt(psi_of_rows(others, alone, floor=floor)), deviations, correlation)


def _scores(
    deviations: Sequence[NDArray[np.float64]],
    apart: NDArray[np.float64],
    against: NDArray[np.float64],
    widths: NDArray[np.float64],
    sizes: NDArray[np.float64],
    n_replicates: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """(S, n_replicates, J) scores of unchanged stretches, before they are made comparable.

    Args:
        deviations: J columns' (N, K) nights.
        against: (S, N) what of each night a stretch is compared with.
        widths, sizes: (S, J) standard deviation of a stretch's mean, and how much larger its PSI is than a night's.
    """
    n = len(apart)
    starts = np.cumsum([0, *(d.shape[1] for d in deviations[:-1])])
    # Normal multipliers times it have the deviations' covariance.
    root = np.concatenate(deviations, axis=1) / np.sqrt(n)
    scores = np.empty((len(against), n_replicates, len(deviations)))
    chunk = max(1, _CHUNK_VALUES // (n * root.shape[1]))
    for start in range(0, n_replicates, chunk):
        now = slice(start, min(start + chunk, n_replicates))
        multipliers = rng.standard_normal((now.stop - start, n, n))
        nights = np.cbrt(_squares((apart @ multipliers).reshape(-1, n) @ root, starts)).reshape(-1, n, len(starts))
        mean, spread = nights.mean(axis=1), np.maximum(nights.std(axis=1, ddof=1), _TINY)
        for s, weights in enumerate(against):
            live = np.repeat(widths[s], [d.shape[1] for d in deviations]) * (rng.standard_normal((len(mean), n)) @ root)
            squares = _squares(live - (weights @ multipliers) @ root, starts)
            scores[s, now] = (np.cbrt(squares / sizes[s]) - mean) / spread
    return scores


def _squares(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R, J) sums of squares of each column's slots, which begin at `starts`."""
    sums: NDArray[np.float64] = np.add.reduceat(values**2, starts, axis=1)
    return sums


def _apart(kinds: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, N) matrix that takes from each night the mean of the others of its kind."""
    same = (kinds[:, None] == kinds[None, :]) & ~np.eye(len(kinds), dtype=bool)
    matrix: NDArray[np.float64] = np.eye(len(kinds)) - same / same.sum(axis=1, keepdims=True)
    return matrix


def _variance_of_mean(n: int, correlation: float) -> float:
    """Of n values of variance 1 of a first-order autoregression: (1 + 2 sum_k (1 - k / n) r^k) / n."""
    k = np.arange(1, n)
    return float((1.0 + 2.0 * ((1.0 - k / n) * correlation**k).sum()) / n)


def _thinned(night_of_cell: NDArray[np.int64], n_wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Cells kept: at most `n_wanted` of each night, by chance."""
    shuffled = rng.permutation(len(night_of_cell))
    by_night = shuffled[np.argsort(night_of_cell[shuffled], kind="stable")]
    nights = dense(night_of_cell[by_night])
    rank_in_night = np.arange(len(nights)) - np.searchsorted(nights, nights)
    return by_night[rank_in_night < n_wanted]


def _shares(sums: NDArray[np.float64], otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K) sums as shares of their row; a row without any weight tells nothing and takes `otherwise`."""
    total = sums.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.where(total > 0, sums / np.where(total > 0, total, 1.0), otherwise)
    return shares
