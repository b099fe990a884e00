"""Whether chance explains how far two streams of rows are apart.

Where each row's night and cluster are known, the null is that of the nightly check. Without them there is none to
draw. Only where rows are independent does theory give one: PSI between equal populations is then about
(1 / n + 1 / m) times a chi-square with one degree of freedom less than there are bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drift.cells import Cells
from drift.cluster_null import cluster_null
from drift.config import DriftConfig
from drift.divergence import population_stability_index
from drift.night_null import Stretch, night_nulls
from drift.null import BinnedColumn, PsiNull
from drift.records import ColumnDrift, Status
from drift.reference import MIN_CLUSTERS
from drift.row_comparison import NO_VERDICT, RowComparison

MIN_EXPECTED = 5.0
"""Rows that a bin must expect on the smaller side to have a say of its own in the chi-square approximation."""


@dataclass(frozen=True)
class LiveCells:
    """How much chance the live side holds.

    Attributes:
        nights: (M,) day numbers, ascending.
        n_clusters: distinct clusters.
        n_clusters_by_night: distinct clusters of each night, added up.
    """

    nights: NDArray[np.int64]
    n_clusters: int
    n_clusters_by_night: int


def judged_by_cells(
    comparison: RowComparison,
    counts: Mapping[str, NDArray[np.float64]],
    cells: Cells,
    live: LiveCells,
    config: DriftConfig,
) -> RowComparison:
    """The same comparison with a verdict on each column, from the reference's nights or, of few, its clusters.

    Nights of all weekdays are taken alike.

    Args:
        counts: (C, K) rows of the reference by cell and slot, of each compared column.
        cells: C of them, each with at least one row; those of no night of `live`.
        config: its rate (all of it for the columns), smallest PSI, replicates and seed; the floor is the comparison's.
    """
    n_nights = len(np.unique(cells.nights))
    if n_nights < config.min_nights and cells.n_clusters < MIN_CLUSTERS:
        nights = f"{n_nights} night" if n_nights == 1 else f"{n_nights} nights"
        problem = (
            f"no verdict: the reference holds {cells.n_clusters} clusters of {nights}, and it takes "
            f"{MIN_CLUSTERS} clusters or {config.min_nights} nights"
        )
        return replace(comparison, columns=tuple(_because(column, problem) for column in comparison.columns))
    judged = [column for column in comparison.columns if column.psi is not None]
    if not judged:
        return comparison
    binned = [BinnedColumn(counts[column.name], counts[column.name].sum(axis=1)) for column in judged]
    null = _null(binned, cells, n_nights, live, config, comparison.floor)
    p_values = null.p_values(np.array([column.psi for column in judged]))
    numbers = zip(p_values, null.thresholds(config.false_alarm_rate), null.typical_psi, strict=True)
    found = {
        column.name: _with_verdict(
            column, float(p_value), float(threshold), float(typical), config.false_alarm_rate, config.min_psi
        )
        for column, (p_value, threshold, typical) in zip(judged, numbers, strict=True)
    }
    basis = f"{null.n_units} reference {null.unit}s"
    if null.unit == "cluster":
        basis += f", optimistic before {config.min_nights} nights"
    return replace(comparison, columns=tuple(found.get(c.name, c) for c in comparison.columns), basis=basis)


def _null(
    binned: list[BinnedColumn], cells: Cells, n_nights: int, live: LiveCells, config: DriftConfig, floor: float
) -> PsiNull:
    rng = np.random.default_rng(config.seed)
    if n_nights < config.min_nights:
        return cluster_null(
            binned, cells, n_live_clusters=live.n_clusters, n_live_nights=len(live.nights),
            n_replicates=config.n_replicates, floor=floor, rng=rng,
        )  # fmt: skip
    return night_nulls(
        binned, cells, [Stretch(np.zeros_like(live.nights))], seasonality="none",
        live_clusters_per_night=live.n_clusters_by_night / len(live.nights),
        n_replicates=config.n_replicates, floor=floor, rng=rng,
    )[0]  # fmt: skip


def judged_as_independent(comparison: RowComparison, *, rate: float, min_psi: float) -> RowComparison:
    """The same comparison with a verdict on each column, for rows that are drawn one by one.

    Steps of an episode are not, nor are rows that share a night. Of equal populations at most a share `rate` of
    comparisons name any column: columns share it alike (Bonferroni). Bins that expect fewer than five rows on the
    smaller side are put together for the verdict: the approximation does not hold in them.

    Args:
        rate: in (0, 1).
        min_psi: smallest PSI (nats) of a drifted column.

    Source: Yurdakul and Naranjo 2020, Statistical properties of the population stability index.
    """
    from scipy.special import chdtrc, chdtri

    n_judged = sum(column.psi is not None for column in comparison.columns)
    spread = 1.0 / comparison.reference_rows + 1.0 / comparison.live_rows
    columns = []
    for column in comparison.columns:
        if column.psi is None:
            columns.append(column)
            continue
        probs, live_probs = _frequent(column, comparison)
        freedom = len(probs) - 1
        if freedom < 1:
            columns.append(_because(column, "both sides hold one and the same bin"))
            continue
        psi = population_stability_index(probs, live_probs, floor=min(comparison.floor, 1.0 / len(probs)))
        p_value = min(1.0, n_judged * float(chdtrc(freedom, psi / spread)))
        threshold = spread * float(chdtri(freedom, rate / n_judged))
        columns.append(_with_verdict(column, p_value, threshold, spread * freedom, rate, min_psi))
    return replace(comparison, columns=tuple(columns), basis="rows taken as independent")


def _with_verdict(
    column: ColumnDrift, p_value: float, threshold: float, typical: float, rate: float, min_psi: float
) -> ColumnDrift:
    beyond, matters = p_value <= rate, (column.psi or 0.0) >= min_psi
    status: Status = "drifted" if beyond and matters else "stable"
    known = column.reason if column.reason != NO_VERDICT else ""
    small = f"beyond chance, but PSI is below {min_psi:g}" if beyond and not matters else ""
    return replace(
        column, status=status, reason=small or known, typical_psi=typical, threshold=threshold, p_value=p_value
    )


def _because(column: ColumnDrift, reason: str) -> ColumnDrift:
    return replace(column, reason=reason) if column.reason == NO_VERDICT else column


def _frequent(column: ColumnDrift, comparison: RowComparison) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sides' shares of the bins that expect enough rows, and of the others together."""
    n, m = comparison.reference_rows, comparison.live_rows
    probs, live_probs = np.array(column.reference_probs), np.array(column.live_probs)
    pooled = (n * probs + m * live_probs) / (n + m)
    order = np.argsort(pooled, kind="stable")
    # Put together from the rarest on, until together they expect enough.
    n_rare = int(np.count_nonzero(min(n, m) * pooled < MIN_EXPECTED))
    while n_rare < len(order) and 0.0 < min(n, m) * pooled[order[:n_rare]].sum() < MIN_EXPECTED:
        n_rare += 1
    rare, frequent = order[:n_rare], np.sort(order[n_rare:])
    sides = [np.append(side[frequent], side[rare].sum()) for side in (probs, live_probs)]
    held = (sides[0] > 0) | (sides[1] > 0)
    return sides[0][held], sides[1][held]
