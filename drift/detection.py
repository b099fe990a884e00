"""Live nights against the reference: how far each column moved, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.binning import CategoryBins, category_bins, histogram, numeric_bins
from drift.config import DriftConfig
from drift.divergence import js_divergence, kl_divergence, population_stability_index, wasserstein_distance
from drift.null import BinnedColumn, PsiNull, cluster_null, night_null
from drift.records import ColumnDrift, DriftReport, Status
from drift.windows import DriftColumn, DriftWindow, scalar_columns

MIN_CLUSTERS = 10
"""Fewer clusters than this say too little about how clusters vary."""

_BOOLEAN_LABELS = ("false", "true")


def measure_drift(reference: DriftWindow, live: DriftWindow, config: DriftConfig) -> DriftReport:
    """Compares every column of the live window with the reference, and judges all of them together.

    A column drifted if its PSI is above its share of the null (so that at most `false_alarm_rate` of unchanged nights
    show any drifted column) and at least `min_psi`. The windows must not share episodes.

    Raises:
        ValueError: the live window is weighted, or a column's kind differs between the windows.
    """
    if live.weights is not None:
        raise ValueError("only the reference is weighted (to the policy that acted in the live window)")
    pairs = _pairs(reference, live)
    problem = _too_little(reference, live, config)
    judged = {} if problem else {n: pair for n, pair in pairs.items() if pair[0] is not None and pair[1] is not None}
    compared = [
        _compare(name, before, now, reference, config)
        for name, (before, now) in judged.items()
        if before is not None and now is not None
    ]
    null = _null([binned for _, binned in compared], reference, live, config) if compared else None
    verdicts = _verdicts([numbers for numbers, _ in compared], null, config)
    columns = tuple(verdicts.get(name) or _unjudged(name, *pair, problem) for name, pair in pairs.items())
    status: Status = "not enough data"
    if null is not None:
        status = "drifted" if any(column.drifted for column in columns) else "stable"
    return DriftReport(
        columns=columns,
        status=status,
        sentence=_sentence(columns, null, problem, config),
        unit=null.unit if null else None,
        n_units=null.n_units if null else None,
        optimistic=null is not None and null.unit == "cluster",
        false_alarm_rate=config.false_alarm_rate,
        min_psi=config.min_psi,
        reference_episodes=reference.n_episodes,
        effective_reference_episodes=reference.effective_episodes,
        reference_nights=reference.n_nights,
        live_episodes=live.n_episodes,
        live_nights=live.n_nights,
    )


_Pair = tuple[DriftColumn | None, DriftColumn | None]


def _pairs(reference: DriftWindow, live: DriftWindow) -> dict[str, _Pair]:
    """The scalar columns of either window by name, in the reference's order; None where a window lacks one."""
    before = _scalars(reference.columns)
    now = _scalars(live.columns)
    for name in before.keys() & now.keys():
        if before[name].kind != now[name].kind:
            raise ValueError(f"column '{name}' is {before[name].kind} in the reference and {now[name].kind} in live")
    return {name: (before.get(name), now.get(name)) for name in {**before, **now}}


def _scalars(columns: Mapping[str, DriftColumn]) -> dict[str, DriftColumn]:
    return {part: scalar for name, column in columns.items() for part, scalar in scalar_columns(name, column).items()}


def _too_little(reference: DriftWindow, live: DriftWindow, config: DriftConfig) -> str:
    """Why the windows as a whole cannot be judged; empty if they can."""
    wanted = config.min_live_episodes
    if live.n_episodes < wanted or not live.n_rows:
        return f"the live window holds {live.n_episodes} episodes, and it takes {wanted}"
    if reference.n_episodes < wanted or not reference.n_rows:
        return f"the reference holds {reference.n_episodes} episodes, and it takes {wanted}"
    if reference.effective_episodes < wanted:
        return (
            f"weighted to the acting policy, the reference's {reference.n_episodes} episodes are worth "
            f"{reference.effective_episodes:.1f}, and it takes {wanted}"
        )
    if reference.n_nights < config.min_nights and reference.n_clusters < MIN_CLUSTERS:
        return (
            f"the reference holds {reference.n_clusters} clusters of {reference.n_nights} nights, and it takes "
            f"{MIN_CLUSTERS} clusters or {config.min_nights} nights"
        )
    return ""


def _compare(
    name: str, before: DriftColumn, now: DriftColumn, reference: DriftWindow, config: DriftConfig
) -> tuple[dict[str, Any], BinnedColumn]:
    """A column's numbers, as keyword arguments of `ColumnDrift`, and its binned reference."""
    weights = None if before.exogenous else reference.weights
    groups = reference.clusters[reference.episode_of_row]
    labels, slots, live_slots = column_slots(before, now, groups=groups, weights=weights, n_bins=config.n_bins)
    numeric = before.kind == "numeric"
    distance = _distance(before.values, now.values, weights) if numeric else None
    unseen = None if numeric else float((live_slots == len(labels) - 2).mean())
    counts, live_counts = histogram(slots, len(labels), weights), histogram(live_slots, len(labels))
    probs, live_probs = counts / counts.sum(), live_counts / live_counts.sum()
    numbers = {
        "name": name,
        "kind": before.kind,
        "exogenous": before.exogenous,
        "role": before.role,
        "reference_rows": len(slots),
        "live_rows": len(live_slots),
        "psi": population_stability_index(probs, live_probs, floor=config.floor),
        "kl": kl_divergence(probs, live_probs, floor=config.floor),
        "js": js_divergence(probs, live_probs),
        "wasserstein": distance,
        "reference_missing_share": float(probs[-1]),
        "live_missing_share": float(live_probs[-1]),
        "unseen_share": unseen,
        "bins": labels,
        "reference_probs": tuple(probs.tolist()),
        "live_probs": tuple(live_probs.tolist()),
    }
    return numbers, BinnedColumn(slots, len(labels), weights)


def column_slots(
    before: DriftColumn,
    now: DriftColumn,
    *,
    groups: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    n_bins: int,
) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int64]]:
    """Both sides of a scalar column on bins that are cut on `before`.

    Args:
        before, now: the same column of two windows.
        groups: (rows of `before`,) what makes its rows dependent.
        weights: (rows of `before`,) not negative; None counts every row alike.
        n_bins: of a numeric column.

    Returns:
        (K,) what each slot holds, the missing one last (and before it, of labels, the rare or unseen one); slot of
        each row of `before`; slot of each row of `now`.
    """
    if before.kind == "numeric":
        bins = numeric_bins(before.values, n_bins=n_bins, weights=weights, groups=groups)
        return bins.labels, bins.assign(before.values), bins.assign(now.values)
    (codes, vocabulary), (live_codes, live_vocabulary) = _labelled(before), _labelled(now)
    boolean = before.kind == "boolean"
    categories = CategoryBins(vocabulary) if boolean else category_bins(codes, vocabulary, weights=weights)
    return categories.labels, categories.assign(codes, vocabulary), categories.assign(live_codes, live_vocabulary)


def _labelled(column: DriftColumn) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Codes and vocabulary of a categorical or boolean column."""
    if column.kind == "categorical":
        return column.values, column.vocabulary
    return np.where(np.isnan(column.values), -1, column.values).astype(np.int64), _BOOLEAN_LABELS


def _distance(
    before: NDArray[np.float64], now: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> float | None:
    """Wasserstein-1 over the values that are there; None where a side has none."""
    seen, live_seen = ~np.isnan(before), ~np.isnan(now)
    if weights is not None:
        seen &= weights > 0
    if not seen.any() or not live_seen.any():
        return None
    kept = None if weights is None else weights[seen]
    return wasserstein_distance(before[seen], now[live_seen], reference_weights=kept)


def _null(binned: list[BinnedColumn], reference: DriftWindow, live: DriftWindow, config: DriftConfig) -> PsiNull:
    """The null from the reference's nights if there are enough, else from its clusters."""
    clusters, nights = reference.clusters[reference.episode_of_row], reference.day_numbers[reference.episode_of_row]
    n_nights, n_replicates, floor = live.n_nights, config.n_replicates, config.floor
    rng = np.random.default_rng(config.seed)
    if reference.n_nights >= config.min_nights:
        per_night = len(np.unique(np.stack([live.day_numbers, live.clusters]), axis=1).T) / n_nights
        return night_null(
            binned, clusters, nights, live_clusters_per_night=per_night, n_live_nights=n_nights,
            n_replicates=n_replicates, floor=floor, rng=rng,
        )  # fmt: skip
    return cluster_null(
        binned, clusters, nights, n_live_clusters=live.n_clusters, n_live_nights=n_nights,
        n_replicates=n_replicates, floor=floor, rng=rng,
    )  # fmt: skip


def _verdicts(numbers: list[dict[str, Any]], null: PsiNull | None, config: DriftConfig) -> dict[str, ColumnDrift]:
    """The judged columns by name."""
    if null is None:
        return {}
    p_values = null.p_values(np.array([column["psi"] for column in numbers]))
    bounds = null.thresholds(config.false_alarm_rate)
    verdicts = {}
    for column, p_value, bound, typical in zip(numbers, p_values, bounds, null.typical_psi, strict=True):
        beyond, matters = p_value <= config.false_alarm_rate, column["psi"] >= config.min_psi
        verdicts[column["name"]] = ColumnDrift(
            **column,
            status="drifted" if beyond and matters else "stable",
            reason=f"beyond chance, but PSI is below {config.min_psi:g}" if beyond and not matters else "",
            typical_psi=float(typical),
            threshold=float(bound),
            p_value=float(p_value),
        )
    return verdicts


def _unjudged(name: str, before: DriftColumn | None, now: DriftColumn | None, problem: str) -> ColumnDrift:
    known = before if before is not None else now
    assert known is not None
    return ColumnDrift(
        name=name,
        kind=known.kind,
        exogenous=known.exogenous,
        role=known.role,
        status="not enough data",
        reason=problem or f"only the {'live window' if before is None else 'reference'} has this column",
        reference_rows=0 if before is None else len(before.values),
        live_rows=0 if now is None else len(now.values),
    )


def _sentence(columns: tuple[ColumnDrift, ...], null: PsiNull | None, problem: str, config: DriftConfig) -> str:
    """The report in one sentence."""
    if null is None:
        return f"Not enough data: {problem or 'the two windows have no column in common'}."
    judged = [column for column in columns if column.status != "not enough data"]
    shown = [
        f"{c.name} (PSI {c.psi:.3f}, {max(c.threshold or 0.0, config.min_psi):.3f} allowed)"
        for c in sorted((c for c in judged if c.drifted), key=lambda c: -(c.psi or 0.0))
    ]
    basis = f"{null.n_units} reference {null.unit}s"
    if null.unit == "cluster":
        basis += f", optimistic before {config.min_nights} nights"
    if not shown:
        return f"None of {len(judged)} columns drifted (false-alarm rate {config.false_alarm_rate:.2g}, {basis})."
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return (
        f"{len(shown)} of {len(judged)} columns drifted: {', '.join(shown[:5])}{more} "
        f"(false-alarm rate {config.false_alarm_rate:.2g}, {basis})."
    )
