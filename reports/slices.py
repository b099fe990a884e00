"""The difference to the baseline slice by slice, with bounds that hold for all slices at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reports.estimators import Floats, Ints, RatioSum
from reports.intervals import bootstrap
from reports.outcomes import SliceMembers
from reports.records import ActionShares, Slices, SliceValue
from reports.resampling import Replicates

FEWEST_CLUSTERS = 20
"""Clusters below which a slice has no bound: the bootstrap's standard errors are then a matter of luck."""


def assess_slices(
    slices: Sequence[SliceMembers],
    differences: Floats | None,
    clusters: NDArray[np.generic],
    shares: Mapping[int, tuple[ActionShares, ...]],
    *,
    refused: str | None,
    notes: tuple[str, ...],
    alpha: float,
    n_replicates: int,
    rng: np.random.Generator,
) -> Slices:
    """Each slice's mean difference with simultaneous bounds.

    Args:
        slices: with their (N,) members; every one holds an episode.
        differences: (N,) per-episode terms of value(candidate) - value(baseline); None where there are none.
        clusters: (N,).
        shares: actions of log and candidate, by the slice's place.
        refused: why the difference as a whole is not trusted; None where it is.
        notes: of the columns.
        alpha: one-sided, of all slices together.
        n_replicates: at least; raised to 100 / alpha.
        rng: draws the bootstrap.
    """
    if differences is None or not np.all(np.isfinite(differences)):
        refused = refused or "the difference has no per-episode terms"
    counts = [(int(part.members.sum()), len(np.unique(clusters[part.members]))) for part in slices]
    if refused is not None or differences is None:
        found = [
            _slice(part, n, shares[i], refused=refused) for i, (part, n) in enumerate(zip(slices, counts, strict=True))
        ]
        return Slices(tuple(found), alpha, refused, notes)
    bounded = [i for i, (_, n_clusters) in enumerate(counts) if n_clusters >= FEWEST_CLUSTERS]
    sums = {str(i): slice_mean(differences, slices[i].members) for i in bounded}
    drawn: dict[str, Replicates] = {}
    if sums:
        drawn = bootstrap(
            sums, clusters, n_replicates=max(n_replicates, int(np.ceil(100 / alpha))), rng=rng, with_errors=list(sums)
        )
    bounds = simultaneous_bounds(drawn, alpha)
    shrunk = _shrunk_by_column(slices, drawn)
    found = []
    for i, part in enumerate(slices):
        key = str(i)
        if key in drawn:
            low, high = bounds[key]
            error = drawn[key].error
            found.append(_slice(part, counts[i], shares[i], drawn[key].value, error, low, high, shrunk[key]))
        else:
            n_clusters = counts[i][1]
            cause = f"{n_clusters} {'cluster' if n_clusters == 1 else 'clusters'}; {FEWEST_CLUSTERS} give a bound"
            found.append(_slice(part, counts[i], shares[i], float(differences[part.members].mean()), refused=cause))
    return Slices(tuple(found), alpha, None, notes)


def slice_mean(terms: Floats, members: NDArray[np.bool_]) -> RatioSum:
    """The mean of (N,) terms over the members, whose number varies with the draw."""
    return RatioSum((terms * members)[:, None], members.astype(np.float64)[:, None])


def simultaneous_bounds(
    replicates: Mapping[str, Replicates], alpha: float
) -> dict[str, tuple[float | None, float | None]]:
    """Lower and upper bound of each estimator; all lower ones hold at once at 1 - alpha, and so do all upper ones.

    value - error * q, with q the quantile over the draws of the largest (for the upper bounds the smallest) studentized
    deviation (value* - value) / error* of all estimators on the same draw.

    Args:
        replicates: by name, with standard errors, on the same draws.
        alpha: one-sided, of all together.

    Source: Romano and Wolf 2005, Exact and approximate stepdown methods for multiple hypothesis testing, section 4.2
    (the studentized max statistic; single step here). Differs from it: clusters are drawn.
    """
    varying = {
        name: r
        for name, r in replicates.items()
        if r.error is not None and r.errors is not None and r.error > 1e-12 * abs(r.value)
    }
    bounds: dict[str, tuple[float | None, float | None]] = {n: (r.value, r.value) for n, r in replicates.items()}
    if not varying:
        return bounds
    pivots = np.array([_pivots(r) for r in varying.values()])  # (S, R)
    highest = float(np.quantile(pivots.max(axis=0), 1 - alpha, method="higher"))
    lowest = float(np.quantile(pivots.min(axis=0), alpha, method="lower"))
    for name, r in varying.items():
        assert r.error is not None
        low, high = r.value - r.error * highest, r.value - r.error * lowest
        bounds[name] = (low if np.isfinite(low) else None, high if np.isfinite(high) else None)
    return bounds


def _pivots(r: Replicates) -> Floats:
    """(R,) studentized deviations; infinite toward the side on which a draw has no spread, or no member."""
    assert r.errors is not None
    away = r.values - r.value
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = away / r.errors
    return np.where(np.isnan(pivots), np.inf * np.sign(np.nan_to_num(away)), pivots)


def shrink(values: Floats, errors: Floats) -> Floats:
    """(S,) values drawn toward their weighted mean, each by the share of its spread that is noise.

    Source: Morris 1983, Parametric empirical Bayes inference; the variance between slices by DerSimonian and Laird
    1986, Meta-analysis in clinical trials, eq. 8.
    """
    if len(values) < 2 or not np.all(errors > 0):
        return values
    weights = 1 / errors**2
    mean = (weights * values).sum() / weights.sum()
    excess = (weights * (values - mean) ** 2).sum() - (len(values) - 1)
    between = max(0.0, excess / (weights.sum() - (weights**2).sum() / weights.sum()))
    toward = 1 / (errors**2 + between)
    center = (toward * values).sum() / toward.sum()
    return np.asarray(center + between / (between + errors**2) * (values - center))


def _shrunk_by_column(slices: Sequence[SliceMembers], drawn: Mapping[str, Replicates]) -> dict[str, float]:
    found: dict[str, float] = {}
    for column in dict.fromkeys(part.column for part in slices):
        keys = [key for key in drawn if slices[int(key)].column == column]
        values = np.array([drawn[key].value for key in keys])
        errors = np.array([drawn[key].error for key in keys], dtype=np.float64)
        found |= dict(zip(keys, shrink(values, errors).tolist(), strict=True))
    return found


def slice_action_shares(
    members: NDArray[np.bool_], offsets: Ints, actions: Ints, probs: Floats, names: tuple[str, ...]
) -> tuple[ActionShares, ...]:
    """Of the log and the candidate over the steps of the slice's episodes."""
    steps = np.repeat(members, np.diff(offsets))
    logged = np.bincount(actions[steps], minlength=len(names)) / steps.sum()
    return tuple(
        ActionShares(policy, dict(zip(names, values.tolist(), strict=True)))
        for policy, values in (("log", logged), ("candidate", probs[steps].mean(axis=0)))
    )


def _slice(
    part: SliceMembers,
    counts: tuple[int, int],
    shares: tuple[ActionShares, ...],
    value: float | None = None,
    error: float | None = None,
    low: float | None = None,
    high: float | None = None,
    shrunk: float | None = None,
    refused: str | None = None,
) -> SliceValue:
    return SliceValue(part.column, part.label, part.kind, *counts, value, error, low, high, shrunk, shares, refused)
