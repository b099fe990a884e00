"""How often each of C clusters is drawn when C are drawn with replacement, for many replicates at once.

Drawing C numbers and counting them costs a scattered write per draw. Counts that are Poisson given their sum S are
multinomial(S) exactly, and multinomial(S) plus C - S clusters drawn one by one is multinomial(C). So counts come from
a table, a random 16-bit number giving two of them, with a rate a little below 1; a replicate whose sum is above C is
drawn again, which leaves the counts given their sum as they are, and the rest is drawn one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_CELLS = 2**16
_UNDECIDED = np.uint16(2**16 - 1)
_LARGEST = 24
"""Largest count in the table: a Poisson count of rate 1 lies above it with chance 3e-26."""
_CHUNK = 200
"""Replicates of `counts_in_chunks` drawn at once."""
_DEVIATIONS = 2.0
"""By how many standard deviations of the sum the rate lies below 1: 2 % of the replicates are drawn again."""


def cluster_counts(n_clusters: int, n_replicates: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(n_replicates, n_clusters) counts, each row multinomial(n_clusters) with equal chances.

    Single precision holds counts exactly, and is what the matrix product with the totals takes.

    Source: the conditional distribution of independent Poisson variables given their sum (Steel 1953).
    """
    rate = 1.0 - _DEVIATIONS / np.sqrt(n_clusters)
    missing = np.full(n_replicates, n_clusters)
    if rate <= 0.5:  # then drawing one by one is as quick
        counts = np.zeros((n_replicates, n_clusters), dtype=np.float32)
    else:
        table = _pair_table(rate)
        counts = table.draw(n_clusters, n_replicates, rng).astype(np.float32)
        missing -= _row_sums(counts)
        while len(again := np.flatnonzero(missing < 0)):
            drawn = table.draw(n_clusters, len(again), rng).astype(np.float32)
            counts[again], missing[again] = drawn, n_clusters - _row_sums(drawn)
    rows = np.repeat(np.arange(n_replicates) * n_clusters, missing)
    np.add.at(counts.reshape(-1), rows + rng.integers(n_clusters, size=len(rows)), np.float32(1))
    return counts


def counts_in_chunks(n_clusters: int, n_replicates: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """(R, n_clusters) counts of the same distribution in double precision, some replicates at a time, drawn one by one.

    For a few hundred replicates, where drawing costs next to nothing beside what is done with each.
    """
    for start in range(0, n_replicates, _CHUNK):
        size = min(_CHUNK, n_replicates - start)
        places = rng.integers(n_clusters, size=(size, n_clusters)) + np.arange(size)[:, None] * n_clusters
        yield np.bincount(places.ravel(), minlength=size * n_clusters).reshape(size, n_clusters).astype(np.float64)


def _row_sums(counts: NDArray[np.float32]) -> NDArray[np.int64]:
    """Exact while a sum is below 2^24, the whole numbers of single precision; beyond it in double precision."""
    if counts.shape[1] < 2**23:
        return np.asarray(counts @ np.ones(counts.shape[1], dtype=np.float32), dtype=np.int64)
    return np.asarray(counts.sum(axis=1, dtype=np.float64), dtype=np.int64)


@dataclass(frozen=True)
class _PairTable:
    """Two independent Poisson counts by inversion of their joint distribution."""

    pairs: NDArray[np.uint16]
    """(2^16,) both counts as the bytes of one number, by the leading 16 bits of a uniform; where those do not decide,
    `_UNDECIDED`."""
    cumulative: NDArray[np.float64]
    """(M,) distribution over pairs, the likeliest first."""
    outcomes: NDArray[np.uint16]
    """(M,) those pairs."""

    def draw(self, n_clusters: int, n_replicates: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(n_replicates, n_clusters) Poisson counts."""
        width = (n_clusters + 1) // 2
        size = n_replicates * width
        leading = rng.integers(0, 2**64, size=(size + 3) // 4, dtype=np.uint64).view(np.uint16)[:size]
        found = self.pairs.take(leading)  # indexing would do the same at half the speed
        undecided = np.flatnonzero(found == _UNDECIDED)
        uniform = (leading[undecided] + rng.random(len(undecided))) / _CELLS
        at = np.minimum(np.searchsorted(self.cumulative, uniform, side="right"), len(self.outcomes) - 1)
        found[undecided] = self.outcomes[at]
        return found.view(np.uint8).reshape(n_replicates, 2 * width)[:, :n_clusters]


@lru_cache(maxsize=4)
def _pair_table(rate: float) -> _PairTable:
    counts = np.arange(_LARGEST + 1)
    probs = stats.poisson.pmf(counts, rate)
    joint = np.outer(probs, probs).ravel()
    likeliest = np.argsort(-joint, kind="stable")
    outcomes = np.add.outer(counts * 256, counts).ravel()[likeliest].astype(np.uint16)
    cumulative = np.cumsum(joint[likeliest])
    first = np.searchsorted(cumulative, np.arange(_CELLS) / _CELLS, side="right")
    last = np.searchsorted(cumulative, np.arange(1, _CELLS + 1) / _CELLS, side="left")
    decided = (first == last) & (last < len(outcomes))
    pairs = np.where(decided, outcomes[np.minimum(first, len(outcomes) - 1)], _UNDECIDED).astype(np.uint16)
    return _PairTable(pairs, cumulative, outcomes)
