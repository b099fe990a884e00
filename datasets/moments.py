"""Mean and standard deviation of columns that come block by block, the same as of all rows at once to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_HUGE = 1e150
_SHRINK = 2.0**-600
"""Squares of huge values would overflow; a power of two loses no bit."""


@dataclass(frozen=True)
class Moments:
    """Of L columns, missing values (NaN) left out.

    Attributes:
        n_present: (L,) float64, values that are there.
        shrink: (L,) 1, or what the values of a column with huge ones are multiplied by in `shrunk_mean` and `squares`.
        shrunk_mean: (L,) of what is there, 0 where nothing is.
        squares: (L,) sum of squared deviations from that mean.
        any_missing: whether a value is missing in any column.
    """

    n_present: Floats
    shrink: Floats
    shrunk_mean: Floats
    squares: Floats
    any_missing: bool

    @staticmethod
    def of(table: NDArray[Any]) -> Moments:
        """Of the rows of an (n, L) table, n >= 1."""
        missing = np.isnan(table)
        n_present = (~missing).sum(axis=0)
        shrink = np.where(np.where(missing, 0.0, np.abs(table)).max(axis=0) > _HUGE, _SHRINK, 1.0)
        small = np.where(missing, 0.0, table * shrink)
        mean = small.sum(axis=0) / np.maximum(n_present, 1)
        squares = np.where(missing, 0.0, (small - mean) ** 2).sum(axis=0)
        return Moments(n_present.astype(np.float64), shrink, mean, squares, any_missing=bool(missing.any()))

    def merged(self, other: Moments) -> Moments:
        """Of the rows of both.

        Source: Chan, Golub, LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances,
        eq. 2.1.
        """
        shrink = np.minimum(self.shrink, other.shrink)
        own, others = shrink / self.shrink, shrink / other.shrink
        n_present = self.n_present + other.n_present
        share = other.n_present / np.maximum(n_present, 1)
        apart = other.shrunk_mean * others - self.shrunk_mean * own
        return Moments(
            n_present=n_present,
            shrink=shrink,
            shrunk_mean=self.shrunk_mean * own + apart * share,
            squares=self.squares * own**2 + other.squares * others**2 + apart**2 * self.n_present * share,
            any_missing=self.any_missing or other.any_missing,
        )

    @property
    def mean(self) -> Floats:
        """(L,) of the values that are there, 0 where none is."""
        return self.shrunk_mean / self.shrink

    @property
    def deviation(self) -> Floats:
        """(L,) standard deviation (divided by n) of the values that are there, 0 where none is."""
        return np.asarray(np.sqrt(self.squares / np.maximum(self.n_present, 1)) / self.shrink)
