"""Live nights one by one, and stretches of them up to the newest, for slow changes and to say since when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from drift.binning import histograms_by_unit
from drift.cells import dense
from drift.comparison import ColumnBins
from drift.config import DriftConfig
from drift.divergence import psi_of_rows
from drift.night_null import Stretch
from drift.rare import has_a_say
from drift.reference import Known, Reference
from drift.seasons import N_HOURS, N_KINDS, by_hour, night_kinds
from drift.windows import DriftColumn, DriftWindow

_LENGTHS = (2, 4, 7, 14, 28)
"""Nights of the stretches that are tested. A change that began between two of them shows in both, a little weaker."""


@dataclass(frozen=True)
class NightCounts:
    """M nights up to the newest live one.

    Attributes:
        nights: (M,) day numbers, ascending; days without an episode are left out.
        n_live: nights of the live window, the newest.
        n_episodes: (M,) that started in each.
        night_of_episode: (episodes,) index of each episode's night.
        clusters: (episodes,) code of its cluster.
        hours: (episodes,) hour of the day; None where hours are not told apart.
        seasonality: of the check.
    """

    nights: NDArray[np.int64]
    n_live: int
    n_episodes: NDArray[np.int64]
    night_of_episode: NDArray[np.int64]
    clusters: NDArray[np.int64]
    hours: NDArray[np.int64] | None
    seasonality: str

    @property
    def names(self) -> tuple[str, ...]:
        """(M,) ISO dates."""
        return tuple(str(night) for night in self.nights.astype("datetime64[D]"))

    def first_of(self, n_nights: int) -> str:
        """ISO date of the first of the newest `n_nights`."""
        return self.names[-n_nights]

    def n_clusters(self, n_nights: int) -> int:
        """Distinct clusters of the newest `n_nights`."""
        return len(np.unique(self.clusters[self.night_of_episode >= len(self.nights) - n_nights]))

    def n_cells(self, n_nights: int) -> int:
        """The same, a cluster counted once in each night, or in each hour of it where hours are told apart."""
        return len(np.unique(self._cells[self.night_of_episode >= len(self.nights) - n_nights]))

    def relative(self, n_reference: int) -> tuple[float, ...]:
        """(M,) how much larger chance makes PSI of each night than of the live window: 1 / n + 1 / n_reference of its
        cells over that of the live ones."""
        by_night = np.bincount(self._cell_nights, minlength=len(self.nights))
        spread = 1.0 / np.maximum(by_night, 1) + 1.0 / n_reference
        return tuple((spread / (1.0 / max(1, self.n_cells(self.n_live)) + 1.0 / n_reference)).tolist())

    @cached_property
    def _cell_nights(self) -> NDArray[np.int64]:
        nights = np.zeros(int(self._cells.max(initial=-1)) + 1, dtype=np.int64)
        nights[self._cells] = self.night_of_episode
        return nights

    @cached_property
    def _cells(self) -> NDArray[np.int64]:
        clusters = dense(self.clusters)
        times = self.night_of_episode if self.hours is None else self.night_of_episode * N_HOURS + self.hours
        return dense(times * (int(clusters.max(initial=0)) + 1) + clusters)

    def of_column(self, window: DriftWindow, column: DriftColumn, bins: ColumnBins) -> NightlyColumn:
        """A column of all the nights, by night."""
        episodes, slots, n_slots = window.episodes_of(column), bins.assign(column), len(bins.labels)
        nights = self.night_of_episode[episodes]
        filled = np.unique(self._cells[episodes] * n_slots + slots)  # each cell and slot once
        hours = None
        if self.hours is not None:
            hours = histograms_by_unit(self.hours[episodes], N_HOURS, nights, len(self.nights))
        return NightlyColumn(
            histograms_by_unit(slots, n_slots, nights, len(self.nights)),
            histograms_by_unit(filled % n_slots, n_slots, self._cell_nights[filled // n_slots], len(self.nights)),
            hours,
        )

    def mixture(self, column: NightlyColumn, nights: slice) -> NDArray[np.float64] | None:
        """(strata,) share of a column's entries in some nights that lie in each season; None where seasons are not
        told apart, all 0 where there is no entry."""
        if self.seasonality == "none":
            return None
        kinds = night_kinds(self.nights[nights], self.seasonality)
        mixture = np.zeros((N_KINDS, N_HOURS))
        if column.hours is None:
            np.add.at(mixture[:, 0], kinds, column.entries[nights].sum(axis=1))
        else:
            np.add.at(mixture, kinds, column.hours[nights])
        shares: NDArray[np.float64] = (mixture / max(1.0, mixture.sum())).ravel()
        return shares

    def judged_psi(
        self,
        column: NightlyColumn,
        known: Known,
        n_nights: int,
        *,
        floor: float,
        rate: float,
    ) -> float:
        """PSI of the newest `n_nights` together against the reference, without slots that chance fills at `rate`.

        0 where they hold no entry.
        """
        sums = column.entries[-n_nights:].sum(axis=0)
        heard = has_a_say(
            column.cells[-n_nights:].sum(axis=0).astype(np.int64),
            known.binned.cells_by_slot,
            n_live=self.n_cells(n_nights),
            n_reference=known.binned.n_cells,
            rate=rate,
        )
        sums = np.where(heard, sums, 0.0)
        mixture = self.mixture(column, slice(-n_nights, None))
        if not sums.sum() or not known.holds(mixture):
            return 0.0
        return float(psi_of_rows(known.shares(mixture), sums / sums.sum(), floor=floor))


@dataclass(frozen=True)
class NightlyColumn:
    """A column's entries in M nights and K slots.

    Attributes:
        entries: (M, K) how many.
        cells: (M, K) how many clusters hold any.
        hours: (M, 24) how many entries are of each hour; None where hours are not told apart.
    """

    entries: NDArray[np.float64]
    cells: NDArray[np.float64]
    hours: NDArray[np.float64] | None


def night_counts(live: DriftWindow, recent: DriftWindow, seasonality: str) -> NightCounts:
    """The nights of `recent`, of which those of `live` are the newest.

    Raises:
        ValueError: the live nights are not the newest ones of `recent`.
    """
    nights, night_of_episode = np.unique(recent.day_numbers, return_inverse=True)
    n_live = live.n_nights
    if n_live and not np.array_equal(nights[-n_live:], np.unique(live.day_numbers)):
        raise ValueError("the live nights must be the newest ones of the recent nights")
    return NightCounts(
        nights, n_live, np.bincount(night_of_episode, minlength=len(nights)), night_of_episode, recent.clusters,
        recent.hours if by_hour(seasonality) else None, seasonality,
    )  # fmt: skip


def stretches_of(counts: NightCounts, references: Sequence[Reference], config: DriftConfig) -> list[Stretch]:
    """The live window, then the longer stretches that are tested, as far as there are nights of kinds that every
    reference holds often enough."""
    kinds = night_kinds(counts.nights, config.seasonality)
    known = np.ones(len(kinds), dtype=bool)
    for reference in references:
        known &= reference.knows(kinds)
    unknown = np.flatnonzero(~known)
    most = min(config.slow_nights, len(kinds) - (int(unknown[-1]) + 1 if len(unknown) else 0))
    lengths = [n for n in sorted({*_LENGTHS, most}) if counts.n_live < n <= most]
    return [Stretch(kinds[-n:]) for n in (counts.n_live, *lengths) if n]


def nightly(known: Known, column: NightlyColumn, counts: NightCounts, config: DriftConfig) -> tuple[float | None, ...]:
    """(M,) PSI of each night against the reference in the same seasons; None where a side holds no entry."""
    return tuple(_psi(known, column, slice(m, m + 1), counts, config) for m in range(len(counts.nights)))


def furthest_since(
    known: Known, n_reference: int, column: NightlyColumn, counts: NightCounts, config: DriftConfig
) -> str:
    """The night, ISO date, from which on the nights up to the newest differ most from the reference.

    The stretch of L nights whose PSI is largest in units of what chance gives it, which falls as 1 / L + 1 / N: after a
    lasting shift it begins with the shift. Source: the likelihood ratio of a change point, as in window-limited
    sequential tests (Lai 1995).

    Args:
        n_reference: N, nights of the reference.
    """
    lengths = range(1, min(config.slow_nights, len(counts.nights)) + 1)
    relative = [
        (_psi(known, column, slice(-n, None), counts, config) or 0.0) / (1.0 / n + 1.0 / n_reference) for n in lengths
    ]
    return counts.first_of(lengths[int(np.argmax(relative))])


def _psi(known: Known, column: NightlyColumn, nights: slice, counts: NightCounts, config: DriftConfig) -> float | None:
    entries = column.entries[nights].sum(axis=0)
    mixture = counts.mixture(column, nights)
    if not entries.sum() or not known.holds(mixture):
        return None
    return float(psi_of_rows(known.shares(mixture), entries / entries.sum(), floor=config.floor))
