"""The difference to the baseline slice by slice, with bounds that hold for all slices at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reports.estimators import Floats, Ints, RatioSum
from reports.intervals import bootstrap, cluster_codes
from reports.outcomes import SliceMembers
from reports.records import ActionShares, Bounds, Slices, SliceValue
from reports.resampling import Replicates
from reports.studentized import studentized_bounds

FEWEST_CLUSTERS = 20
"""Clusters that differ from the commonest below which a slice has no bound: the bootstrap's standard errors are then a
matter of luck."""

_ROUNDING = 1e-9
"""Differences between clusters below this share of the largest are rounding."""


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

    Each slice is bounded by itself, from draws of its own clusters, at alpha over the number of slices that have a
    bound: one in which next to nothing is known takes nothing from the others.

    Args:
        slices: with their (N,) members; every one holds an episode.
        differences: (N,) per-episode terms of value(candidate) - value(baseline); None where there are none.
        clusters: (N,).
        shares: actions of log and candidate, by the slice's place.
        refused: why the difference as a whole is not trusted; None where it is.
        notes: of the columns.
        alpha: one-sided, of all slices together.
        n_replicates: at least; raised to 50 / (alpha of one slice).
        rng: draws the bootstrap.

    Source: Bonferroni's inequality. The largest studentized deviation of any slice in a draw (Romano and Wolf 2005)
    would be tighter by little where slices share few clusters, and is ruled by the slice with the heaviest tail.
    """
    if differences is None or not np.all(np.isfinite(differences)):
        refused = refused or "the difference has no per-episode terms"
    counts = [(int(part.members.sum()), len(np.unique(clusters[part.members]))) for part in slices]
    if refused is not None or differences is None:
        found = [
            _slice(part, n, shares[i], refused=refused) for i, (part, n) in enumerate(zip(slices, counts, strict=True))
        ]
        return Slices(tuple(found), alpha, refused, notes)
    parts = [(differences[part.members], clusters[part.members]) for part in slices]
    varying = [varying_clusters(*part) for part in parts]
    causes = [_too_few(n_clusters, n) for (_, n_clusters), n in zip(counts, varying, strict=True)]
    each = alpha / max(1, causes.count(None))
    drawn = [
        None if cause else _drawn(*part, n_replicates=max(n_replicates, int(np.ceil(50 / each))), rng=draws)
        for part, cause, draws in zip(parts, causes, rng.spawn(len(parts)), strict=True)
    ]
    shrunk = _shrunk_by_column(slices, drawn)
    found = []
    for i, (part, replicates) in enumerate(zip(slices, drawn, strict=True)):
        if replicates is None:
            found.append(_slice(part, counts[i], shares[i], float(parts[i][0].mean()), refused=causes[i]))
            continue
        bounds = slice_bounds(replicates, varying[i], each)
        value, error = replicates.value, replicates.error
        found.append(
            _slice(part, counts[i], shares[i], value, error, bounds.lower, bounds.upper, shrunk[i], bounds.refused)
        )
    return Slices(tuple(found), alpha, None, notes)


def varying_clusters(terms: Floats, clusters: NDArray[np.generic]) -> int:
    """In how many clusters of a slice the mean differs from the commonest one; in all of them where none is common.

    Where the candidate acts like the baseline nearly everywhere, most clusters say 0, and the few others are all that
    the spread is known from. A slice whose clusters all say the same varies nowhere, and its value is its bound.

    Args:
        terms: (n,) of the slice's episodes.
        clusters: (n,) of them.
    """
    codes = cluster_codes(clusters)
    means = np.bincount(codes, weights=terms) / np.bincount(codes)
    steps = np.diff(np.sort(means)) > _ROUNDING * np.abs(means).max()
    alike = int(np.bincount(np.concatenate([[0], np.cumsum(steps)])).max())
    return len(means) - (alike if alike > 1 else 0)


def slice_bounds(replicates: Replicates, n_varying: int, alpha: float) -> Bounds:
    """Studentized bootstrap bounds, on no side tighter than Student's t with n_varying - 1 degrees of freedom.

    Where few clusters differ, a slice that missed its own rare large differences is taken for one with a short tail;
    t knows at least how few they are.

    Args:
        replicates: of the slice's mean, with standard errors.
        n_varying: from `varying_clusters`.
        alpha: one-sided.
    """
    found = studentized_bounds(replicates, alpha)
    if n_varying < 2 or replicates.error is None:
        return found
    half = float(stats.t.ppf(1 - alpha, n_varying - 1)) * replicates.error
    low = None if found.lower is None else min(found.lower, replicates.value - half)
    high = None if found.upper is None else max(found.upper, replicates.value + half)
    return replace(found, lower=low, upper=high)


def _too_few(n_clusters: int, n_varying: int) -> str | None:
    if n_clusters < FEWEST_CLUSTERS:
        return f"{n_clusters} {'cluster' if n_clusters == 1 else 'clusters'}; {FEWEST_CLUSTERS} give a bound"
    if 0 < n_varying < FEWEST_CLUSTERS:
        return (
            f"the difference varies in {n_varying} of {n_clusters} clusters, and is the same in all others; "
            f"{FEWEST_CLUSTERS} give a bound"
        )
    return None


def slice_mean(terms: Floats) -> RatioSum:
    """The mean of a slice's (n,) terms, as a ratio whose denominator varies with the clusters drawn."""
    return RatioSum(terms[:, None], np.ones((len(terms), 1)))


def _drawn(terms: Floats, clusters: NDArray[np.generic], *, n_replicates: int, rng: np.random.Generator) -> Replicates:
    sums = {"slice": slice_mean(terms)}
    return bootstrap(sums, clusters, n_replicates=n_replicates, rng=rng, with_errors=list(sums))["slice"]


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


def _shrunk_by_column(slices: Sequence[SliceMembers], drawn: Sequence[Replicates | None]) -> dict[int, float]:
    found: dict[int, float] = {}
    for column in dict.fromkeys(part.column for part in slices):
        known = {i: r for i, r in enumerate(drawn) if r is not None and slices[i].column == column}
        values = np.array([r.value for r in known.values()])
        errors = np.array([r.error for r in known.values()], dtype=np.float64)
        found |= dict(zip(known, shrink(values, errors).tolist(), strict=True))
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
