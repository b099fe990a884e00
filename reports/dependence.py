"""Do larger units, such as nights, share something that the intervals leave out?"""

from __future__ import annotations

import numpy as np
from scipy import stats

from reports.estimators import Floats, Ints
from reports.intervals import cluster_codes, variance_of_mean
from reports.records import DesignEffect

_N_SHUFFLES = 999
_LARGEST_SHUFFLED = 20_000
"""Clusters beyond which sums over units are normal enough for the chi-square."""


def design_effect(
    unit: str,
    units: Ints,
    compared_with: str,
    others: Ints,
    terms: Floats,
    *,
    ignored: bool,
    rng: np.random.Generator,
) -> DesignEffect:
    """Variance of the mean of (N,) terms with `units` as independent, over that with `others`.

    The chance of so large a ratio comes from dealing the smaller units anew over the larger ones: exact for any number
    and size of units and any tail of the terms. Where a smaller unit lies in several larger ones nothing can be dealt,
    and the chance is that of a chi-square with one degree of freedom less than there are units, which holds for units
    of one size and is too cautious for others.

    Args:
        unit, compared_with: what the larger and the smaller units are called.
        units, others: (N,) code of each episode's larger and smaller unit; at least two of each.
        terms: (N,) in reward units, not all equal.
        ignored: whether the intervals leave this dependence out.
        rng: deals the units.

    Source: Kish 1965, Survey Sampling, section 5.4 (design effect); Fisher 1935, The Design of Experiments, section 21
    (the permutation test).
    """
    units, others = cluster_codes(units), cluster_codes(others)
    n_units, n_others = int(units.max()) + 1, int(others.max()) + 1
    ratio = variance_of_mean(terms, units) / variance_of_mean(terms, others)
    unit_of = np.zeros(n_others, dtype=np.int64)
    unit_of[others] = units
    nested = bool(np.all(unit_of[others] == units))
    if nested and n_others <= _LARGEST_SHUFFLED:
        residuals: Floats = np.bincount(others, weights=terms - terms.mean()).astype(np.float64)
        p_value = _shuffled_chance(residuals, unit_of, rng)
    else:
        p_value = float(stats.chi2.sf(ratio * (n_units - 1), n_units - 1))
    return DesignEffect(unit, compared_with, ratio, n_units, p_value, ignored)


def _shuffled_chance(residuals: Floats, unit_of: Ints, rng: np.random.Generator) -> float:
    """Share of deals whose sum of squared unit totals is at least that of the log, the log counted as one of them."""
    seen = float((np.bincount(unit_of, weights=residuals) ** 2).sum())
    slack = 1e-12 * seen  # a deal that only reorders equal sums must count as equal
    deals = ((np.bincount(unit_of, weights=rng.permutation(residuals)) ** 2).sum() for _ in range(_N_SHUFFLES))
    return (1 + sum(float(deal) >= seen - slack for deal in deals)) / (1 + _N_SHUFFLES)
