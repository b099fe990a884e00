"""A reference and what its nights or clusters say of chance, for the columns that are compared with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from drift.cells import Cells, cells_of
from drift.cluster_null import cluster_null
from drift.comparison import ColumnBins, column_bins
from drift.config import DriftConfig
from drift.night_null import Stretch, night_nulls
from drift.null import BinnedColumn, PsiNull, binned_column
from drift.seasons import N_HOURS, N_STRATA, by_hour, night_kinds, strata
from drift.standardizing import by_stratum, standardized_shares, without_hours
from drift.windows import DriftColumn, DriftWindow, scalar_columns

MIN_CLUSTERS = 10
"""Fewer clusters than this say too little about how clusters vary."""

_WEEKDAYS = ("Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays")


@dataclass(frozen=True)
class Known:
    """A column of a reference by cell, and (strata, K) by season; None where seasons are not told apart."""

    binned: BinnedColumn
    by_stratum: NDArray[np.float64] | None

    def shares(self, mixture: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """(K,) shares, the strata in the proportions of (strata,) `mixture`.

        Raises:
            ValueError: it holds no entry in any stratum of the mixture.
        """
        if self.by_stratum is None or mixture is None:
            return self.binned.shares
        return standardized_shares(self.by_stratum, mixture)

    def holds(self, mixture: NDArray[np.float64] | None) -> bool:
        """Whether it holds an entry in any stratum of the mixture."""
        return self.by_stratum is None or mixture is None or bool((self.by_stratum[mixture > 0] > 0).any())


@dataclass(frozen=True)
class Reference:
    """A window that live columns are compared with, with its cells, and the season of each."""

    window: DriftWindow
    cells: Cells
    config: DriftConfig

    @classmethod
    def of(cls, window: DriftWindow, config: DriftConfig) -> Reference:
        """The window's cells are made once."""
        return cls(window, cells_of(window, by_hour=by_hour(config.seasonality)), config)

    @property
    def by_nights(self) -> bool:
        """Whether nights are the unit of its null."""
        return self.window.n_nights >= self.config.min_nights

    @cached_property
    def stratum_of_cell(self) -> NDArray[np.int64]:
        """(C,) season of each cell."""
        return strata(self.cells.nights, self.cells.hours, self.config.seasonality)

    @property
    def kind_of_cell(self) -> NDArray[np.int64]:
        """(C,) kind of each cell's night."""
        return self.stratum_of_cell // N_HOURS

    def too_little(self, live_kinds: NDArray[np.int64]) -> str:
        """Why nothing can be compared with it; "" if something can.

        Args:
            live_kinds: kinds of the live nights.
        """
        window, config = self.window, self.config
        if window.n_episodes < config.min_live_episodes or not window.n_rows:
            return f"the reference holds {window.n_episodes} episodes, and it takes {config.min_live_episodes}"
        if not self.by_nights and window.n_clusters < MIN_CLUSTERS:
            return (
                f"the reference holds {window.n_clusters} clusters of {_nights(window.n_nights)}, and it takes "
                f"{MIN_CLUSTERS} clusters or {config.min_nights} nights"
            )
        missing = np.unique(live_kinds)[~self.knows(np.unique(live_kinds))]
        alone = f"seasonality = '{config.seasonality}' compares a night with the same day of the week alone"
        if len(missing):
            there, wanted = self._nights_by_kind[missing[0]], self._nights_wanted
            return f"the reference holds {there} {_WEEKDAYS[missing[0]]}, it takes {wanted}, and {alone}"
        if not self.by_nights:
            used = np.isin(self.kind_of_cell, live_kinds)
            n_clusters = len(np.unique(self.cells.clusters[used]))
            if n_clusters < MIN_CLUSTERS:
                return (
                    f"the reference holds {n_clusters} clusters on days like the live ones, it takes {MIN_CLUSTERS} "
                    f"(or {config.min_nights} nights), and {alone}"
                )
        return ""

    @cached_property
    def _nights_by_kind(self) -> NDArray[np.int64]:
        return np.bincount(night_kinds(np.unique(self.window.day_numbers), self.config.seasonality), minlength=7)

    @property
    def _nights_wanted(self) -> int:
        return 2 if self.by_nights else 1  # a night of its own to be compared with another one

    def knows(self, kinds: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of each kind of night whether it holds enough of them to say what chance does there."""
        enough: NDArray[np.bool_] = self._nights_by_kind[kinds] >= self._nights_wanted
        return enough

    def has_entries(self, column: DriftColumn, live_strata: NDArray[np.int64]) -> bool:
        """Whether any entry of a column that counts lies in such seasons."""
        counts = np.isin(self.stratum_of_cell[self.cells.of_episode[self.window.episodes_of(column)]], live_strata)
        weights = self.window.weights_of(column)
        return bool((counts if weights is None else counts & (weights > 0)).any())

    def too_light(self, column: DriftColumn) -> str:
        """Why a column cannot be compared with it as weighted; "" if it can."""
        wanted, worth = self.config.min_live_episodes, self.window.effective_episodes
        if self.window.weights_of(column) is None or worth >= wanted:
            return ""
        return (
            f"weighted to the acting policy, the reference's {self.window.n_episodes} episodes are worth {worth:.1f}, "
            f"and it takes {wanted}"
        )

    def bins(self, column: DriftColumn) -> ColumnBins:
        """Bins cut on one of its scalar columns."""
        groups = self.window.clusters[self.window.episodes_of(column)]
        return column_bins(column, groups=groups, weights=self.window.weights_of(column), n_bins=self.config.n_bins)

    def known(self, column: DriftColumn, bins: ColumnBins) -> Known:
        """One of its scalar columns by cell and season."""
        cell_of_entry = self.cells.of_episode[self.window.episodes_of(column)]
        weights = self.window.weights_of(column)
        binned = binned_column(bins.assign(column), len(bins.labels), cell_of_entry, self.cells, weights)
        seasonal = self.config.seasonality != "none"
        return Known(binned, by_stratum(binned, self.stratum_of_cell) if seasonal else None)

    def entry_weights(self, column: DriftColumn, mixture: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """(entries,) what each entry of a column counts, the strata in the proportions of (strata,) `mixture`."""
        weights = self.window.weights_of(column)
        if mixture is None:
            return weights
        entry_strata = self.stratum_of_cell[self.cells.of_episode[self.window.episodes_of(column)]]
        weights = np.ones(len(entry_strata)) if weights is None else weights
        totals = np.bincount(entry_strata, weights, minlength=N_STRATA)
        factors: NDArray[np.float64] = mixture / np.where(totals > 0, totals, 1.0)
        return weights * factors[entry_strata]

    def nulls(
        self,
        columns: Sequence[BinnedColumn],
        stretches: Sequence[Stretch],
        n_live_clusters: Sequence[int],
        live_clusters_per_night: float,
        mixtures: Sequence[Sequence[NDArray[np.float64] | None]],
        rng: np.random.Generator,
    ) -> list[PsiNull]:
        """The null of each stretch: from nights if there are enough of them, else from clusters.

        Args:
            columns: J columns of this reference.
            stretches: S of them, the live window first.
            n_live_clusters: (S,) distinct clusters of each.
            live_clusters_per_night: of the live window, on average.
            mixtures: (S, J) of (strata,) share of each column's live entries; None where seasons are not told apart.
        """
        if not by_hour(self.config.seasonality):
            return self._nulls(columns, self.cells, stretches, n_live_clusters, live_clusters_per_night, rng)
        # Each stretch has hours of its own. Drawn with the same numbers, the stretches stay alike.
        seed = int(rng.integers(2**63))
        found = []
        for s, stretch in enumerate(stretches):
            own = [
                without_hours(column, self.stratum_of_cell, mixture)
                for column, mixture in zip(columns, mixtures[s], strict=True)
                if mixture is not None
            ]
            kept = np.any([column.by_cell.any(axis=1) for column in own], axis=0)
            found += self._nulls(
                [_of(column, kept) for column in own], self.cells.of_seasons(kept), [stretch], n_live_clusters[s:][:1],
                live_clusters_per_night, np.random.default_rng(seed),
            )  # fmt: skip
        return found

    def _nulls(
        self,
        columns: Sequence[BinnedColumn],
        cells: Cells,
        stretches: Sequence[Stretch],
        n_live_clusters: Sequence[int],
        live_clusters_per_night: float,
        rng: np.random.Generator,
    ) -> list[PsiNull]:
        config = self.config
        if self.by_nights:
            return night_nulls(
                columns, cells, stretches, seasonality=config.seasonality,
                live_clusters_per_night=live_clusters_per_night,
                n_replicates=config.n_replicates, floor=config.floor, rng=rng,
            )  # fmt: skip
        kept = np.isin(night_kinds(cells.nights, config.seasonality), stretches[0].kinds)
        kept_columns = [_of(column, kept) for column in columns]
        return [
            cluster_null(
                kept_columns, cells.of_seasons(kept), n_live_clusters=n_clusters, n_live_nights=stretch.n_nights,
                n_replicates=config.n_replicates, floor=config.floor, rng=rng,
            )
            for stretch, n_clusters in zip(stretches, n_live_clusters, strict=True)
        ]  # fmt: skip


def _nights(n: int) -> str:
    return f"{n} night" if n == 1 else f"{n} nights"


def _of(column: BinnedColumn, cells: NDArray[np.bool_]) -> BinnedColumn:
    """The column in some cells alone."""
    return BinnedColumn(column.by_cell[cells], column.n_entries[cells], column.weighted)


def scalars(columns: Mapping[str, DriftColumn]) -> dict[str, DriftColumn]:
    """The columns that are compared, by name, vectors taken apart."""
    return {part: scalar for name, column in columns.items() for part, scalar in scalar_columns(name, column).items()}
