"""Whether the log covers what a policy does, judged by several numbers, none of which is enough alone."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from datasets.settings import Settings
from reports.estimators import Floats, effective_sample_size
from reports.formatting import apart
from reports.records import Interval, Overlap

_FEWEST_TAIL_VALUES = 5

PRODUCTS, MARGINALIZED = "products of ratios", "marginalized"
"""Kinds of weights, as records name them."""


class OverlapBounds(Settings):
    """What still counts as overlap."""

    mean_weight_level: float = Field(0.95, gt=0, le=0.99)
    """Level of the mean weight's interval; overlap is refused where that interval excludes 1."""
    largest_imbalance: float = Field(0.1, ge=0, lt=1)
    """How far from 1 the mean of modelled weights (marginalized ones, or of estimated propensities) may lie, beyond its
    interval, which knows nothing of the model's own error. An action that the log never takes shows in marginalized
    weights once for every time that it is wanted in an episode."""
    largest_tail_index: float = Field(0.7, gt=0, lt=1)
    """Pareto tail index of the influence terms above which their mean is not trusted."""
    largest_share: float = Field(0.10, gt=0, le=1)
    """Largest share of one episode in the squared influence."""
    fewest_events: float = Field(28.0, ge=1)
    """How many equal rare events the influence terms must be worth where they are skewed: with fewer, a log that
    happens to hold few of them looks better and surer than it is. Cochran's rule, n > 28 skewness^2."""
    smallest_sample_size: float = Field(30.0, ge=1)
    """Smallest effective sample size, in episodes."""


def measure_overlap(
    policy: str,
    log_weights: Floats,
    influence: Floats,
    mean_weight: float,
    mean_weight_interval: Interval | None,
    bounds: OverlapBounds,
    *,
    decides: bool = True,
    weights: str = PRODUCTS,
    modelled: bool = False,
) -> Overlap:
    """Every number on the overlap of one policy, and every cause to distrust its weights.

    Args:
        policy: its role, for the record.
        log_weights: (N,) log weight of each whole episode.
        influence: (N,) centered per-episode terms of the deciding estimate, in reward units.
        mean_weight: mean of the N weights; inf where it overflowed.
        mean_weight_interval: its confidence interval; None where it has none.
        bounds: what still counts as overlap.
        decides: whether the gate rests on these weights.
        weights: what they are, for the record.
        modelled: whether a model made them, of visits or of behavior probabilities: their mean may lie somewhat off 1.
    """
    tolerance = bounds.largest_imbalance if modelled else 0.0
    overflowed = not np.isfinite(mean_weight) or not np.all(np.isfinite(influence))
    size = effective_sample_size(log_weights)
    tail = None if overflowed else pareto_tail_index(np.abs(influence))
    share = None if overflowed else largest_influence_share(influence)
    # What decides is the candidate's difference; the others' terms are their values, skewed as returns are.
    judged = policy == "candidate" and decides and not overflowed
    events = effective_events(influence) if judged else None
    causes = []
    if overflowed or mean_weight_interval is None:
        causes.append("the weights overflow, or have no interval")
    elif not is_balanced(mean_weight_interval, tolerance):
        causes.append(
            f"the mean weight's interval [{apart(mean_weight_interval.low, 1.0)}, "
            f"{apart(mean_weight_interval.high, 1.0)}] excludes 1, "
            "so the log misses part of what the policy does"
        )
    if size < bounds.smallest_sample_size:
        causes.append(f"the effective sample size is {size:.1f} episodes, under {bounds.smallest_sample_size:g}")
    if not overflowed and tail is None:
        causes.append("too few episodes to fit the tail of the influence terms")
    elif tail is not None and tail > bounds.largest_tail_index:
        causes.append(f"the tail index of the influence terms is {tail:.2f}, above {bounds.largest_tail_index:g}")
    if share is not None and share > bounds.largest_share:
        causes.append(f"one episode carries {share:.0%} of the squared influence, more than {bounds.largest_share:.0%}")
    if events is not None and events < bounds.fewest_events:
        causes.append(
            f"the influence terms are worth {events:.3g} rare events, under {bounds.fewest_events:g}: another log may "
            "as well hold more or fewer of them"
        )
    return Overlap(
        policy=policy,
        mean_weight=None if overflowed else mean_weight,
        mean_weight_interval=None if overflowed else mean_weight_interval,
        effective_sample_size=size,
        tail_index=tail,
        largest_share=share,
        refused="; ".join(causes) or None,
        decides=decides,
        weights=weights,
        tolerance=tolerance,
        effective_events=events,
    )


def is_balanced(mean_weight: Interval, tolerance: float) -> bool:
    """Whether the interval of a mean weight comes within `tolerance` of 1."""
    return mean_weight.low <= 1.0 + tolerance and mean_weight.high >= 1.0 - tolerance


def largest_influence_share(influence: Floats) -> float:
    """Share of the largest of (N,) squared influence terms in their sum; 0 where all are zero."""
    squared = influence**2
    total = float(squared.sum())
    return float(squared.max()) / total if total > 0 else 0.0


def effective_events(influence: Floats) -> float | None:
    """How many equal rare events would skew a mean as much as (N,) centered influence terms; None where nothing does.

    (sum u^2)^3 / (sum u^3)^2, which is n over the squared skewness, and k for k equal terms among many of about 0. The
    error of a one-sided bound is of order 1 / sqrt of this. Skew in either direction counts: a log that happens to hold
    none of the rare losses is skewed upwards by what is left.

    Source: Hall 1988, Theoretical comparison of bootstrap confidence intervals, section 3 (one-sided percentile
    intervals); Sugden, Smith and Jones 2000, Cochran's rule for simple random sampling (n > 28 skewness^2).
    """
    largest = float(np.abs(influence).max())
    if largest == 0:
        return None
    scaled = influence / largest  # cubes of the terms themselves may overflow
    third = float((scaled**3).sum()) ** 2
    events = float((scaled**2).sum()) ** 3 / third if third > 0 else math.inf
    return events if events <= len(influence) else None


def pareto_tail_index(values: Floats) -> float | None:
    """Shape of a generalized Pareto distribution fitted to the upper tail of (N,) non-negative values.

    Moments of order 1 / index and above do not exist: at .5 and above the variance is infinite. The tail holds the
    largest min(N / 5, 3 sqrt(N)) values; values tied with the cut are left to the body.

    Returns:
        The index; 0 where all values are equal (there is no tail); None for too few values to tell.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto smoothed importance sampling (arXiv:1507.02646).
    """
    ordered = np.sort(values)
    if len(ordered) < 5 * _FEWEST_TAIL_VALUES:
        return None
    if ordered[0] == ordered[-1]:
        return 0.0
    n_tail = int(np.ceil(min(0.2 * len(ordered), 3 * np.sqrt(len(ordered)))))
    cut = ordered[-n_tail - 1]
    if int((ordered > cut).sum()) < _FEWEST_TAIL_VALUES:  # ties at the cut: go down to the next smaller value
        below = ordered[ordered < cut]
        if len(below) == 0:
            return None
        cut = below[-1]
    return generalized_pareto_shape(ordered[ordered > cut] - cut)


def generalized_pareto_shape(excesses: Floats) -> float:
    """Shape of a generalized Pareto distribution with location 0, from ascending positive excesses (M,).

    Source: Zhang and Stephens 2009, A new and efficient estimation method for the generalized Pareto distribution;
    with the weak prior at .5, worth 10 observations, of Vehtari et al. 2024, appendix C.
    """
    n = len(excesses)
    n_grid = 30 + int(np.sqrt(n))
    quartile = excesses[max(0, int(n / 4 + 0.5) - 1)]
    grid = 1 / excesses[-1] + (1 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5))) / (3 * quartile)  # (G,)
    shapes = np.log1p(-grid[:, None] * excesses[None, :]).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_likelihood = n * (np.log(-grid / shapes) - shapes - 1)
    log_likelihood = np.where(np.isfinite(log_likelihood), log_likelihood, -np.inf)
    weights = np.exp(log_likelihood - log_likelihood.max())
    theta = float((grid * weights).sum() / weights.sum())
    shape = float(np.log1p(-theta * excesses).mean())
    return (n * shape + 10 * 0.5) / (n + 10)
