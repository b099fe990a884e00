"""The deciding difference under every method of bounding it: the same question asked seven times.

One method decides (`[gate]`); the others say how much hangs on the choice. The bootstrap and Student t are right for
many episodes; Hoeffding, empirical Bernstein and clipped weights are right for any number and pay for it in width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.concentration import (
    CLIPPED,
    EMPIRICAL_BERNSTEIN,
    HOEFFDING,
    WeightedReturns,
    clipped_bounds,
    empirical_bernstein_bounds,
    hoeffding_bounds,
)
from reports.estimators import RatioSum, episode_log_weights, on_policy_returns
from reports.evaluate_config import IntervalMethod
from reports.intervals import PERCENTILE, STUDENT_T, percentile_bounds, student_t_bounds
from reports.records import Bounds, Interval
from reports.resampling import Replicates
from reports.studentized import BCA, STUDENTIZED, bca_bounds, jackknife_acceleration, studentized_bounds
from reports.trial import Role, StepWeights, Trial

METHODS = (PERCENTILE, BCA, STUDENTIZED, STUDENT_T, HOEFFDING, EMPIRICAL_BERNSTEIN, CLIPPED)

TERMS = dict(
    zip(
        METHODS,
        ("interval", "bca", "studentized", "student_t", "hoeffding", "empirical_bernstein", "clipped_weights"),
        strict=True,
    )
)
"""Where the report's glossary defines each method."""


@dataclass(frozen=True)
class _Range:
    """What a term can be at all; infinite where nothing says, and then why."""

    low: float
    high: float
    cause: str | None = None


def interval_by(
    method: IntervalMethod, estimator: RatioSum, drawn: Replicates, clusters: NDArray[np.generic], level: float
) -> Interval | None:
    """The two-sided interval that is shown, by the method of `[evaluate] interval`; None where a side has no end.

    Args:
        method: as configured.
        estimator: any sum of ratios.
        drawn: its replicates, with standard errors where the method is studentized.
        clusters: (N,) cluster of each episode.
        level: two-sided.
    """
    tail = (1 - level) / 2
    if method == "studentized":
        bounds = studentized_bounds(drawn, tail)
    elif method == "bca":
        bounds = bca_bounds(drawn, jackknife_acceleration(estimator, clusters), tail)
    elif method == "student_t":
        bounds = student_t_bounds(estimator, clusters, tail)
    else:
        bounds = percentile_bounds(drawn, tail)
    if bounds.lower is None or bounds.upper is None:
        return None
    return Interval(bounds.lower, bounds.upper, level, bounds.method)


def refused_bounds(alpha: float, cause: str) -> tuple[Bounds, ...]:
    """No bound by any method, for one cause."""
    return tuple(Bounds(method, None, None, alpha, cause) for method in METHODS)


def bounds_by_method(
    trial: Trial,
    weights: StepWeights,
    difference: RatioSum,
    drawn: Replicates | None,
    *,
    alpha: float,
    smallest_behavior_prob: float | None,
    refused: str | None,
    rng: np.random.Generator,
) -> tuple[Bounds, ...]:
    """Bounds of value(candidate) - value(baseline) by each of `METHODS`, or the cause why there is none.

    Args:
        trial: episodes and policies.
        weights: of every arm.
        difference: the deciding estimator of the difference, a plain mean.
        drawn: its replicates, with standard errors; None with fewer than two clusters.
        alpha: one-sided.
        smallest_behavior_prob: below which the logger never takes an available action, by its design; None: unknown.
        refused: why the estimates are not trusted (overlap). It silences the methods for many episodes; those for any
            number hold all the same.
        rng: deals the clusters that choose the clipping threshold.
    """
    return (
        *_for_many_episodes(trial, difference, drawn, alpha, refused),
        *_by_range(trial, difference, alpha, smallest_behavior_prob),
        _clipped(trial, weights, alpha, rng),
    )


def _for_many_episodes(
    trial: Trial, difference: RatioSum, drawn: Replicates | None, alpha: float, refused: str | None
) -> tuple[Bounds, ...]:
    cause = refused or ("there are fewer than two clusters" if drawn is None else None)
    if cause is not None or drawn is None:
        return tuple(Bounds(method, None, None, alpha, cause) for method in METHODS[:4])
    acceleration = jackknife_acceleration(difference, trial.clusters)
    return (
        percentile_bounds(drawn, alpha),
        bca_bounds(drawn, acceleration, alpha),
        studentized_bounds(drawn, alpha),
        student_t_bounds(difference, trial.clusters, alpha),
    )


def _by_range(trial: Trial, difference: RatioSum, alpha: float, smallest: float | None) -> tuple[Bounds, ...]:
    """Hoeffding and empirical Bernstein on the terms of the deciding estimator."""
    methods = {HOEFFDING: hoeffding_bounds, EMPIRICAL_BERNSTEIN: empirical_bernstein_bounds}
    of_candidate, of_baseline = (_range_of(trial, role, smallest) for role in ("candidate", "baseline"))
    cause = of_candidate.cause or of_baseline.cause
    if cause is None and not np.all(np.isfinite(difference.terms)):
        cause = "the weights overflow"
    if cause is not None:
        return tuple(Bounds(method, None, None, alpha, cause) for method in methods)
    low, high = of_candidate.low - of_baseline.high, of_candidate.high - of_baseline.low
    found = [bounds(difference.terms, trial.clusters, low, high, alpha) for bounds in methods.values()]
    return tuple(_within_reach(trial, bounds, high - low) for bounds in found)


def _within_reach(trial: Trial, bounds: Bounds, width: float) -> Bounds:
    """The bounds, unless they say no more than that returns are feasible."""
    if bounds.lower is None or bounds.upper is None or trial.feasible.low is None or trial.feasible.high is None:
        return bounds
    reach = trial.feasible.high - trial.feasible.low
    if bounds.lower > -reach or bounds.upper < reach:
        return bounds
    cause = f"a term can be anywhere in a range of {width:.3g}, so the bounds lie beyond any feasible difference"
    return Bounds(bounds.method, None, None, bounds.alpha, cause)


def _range_of(trial: Trial, role: Role, smallest: float | None) -> _Range:
    """What one episode's term of the deciding estimator can be: from contract and policy, not from the log."""
    nothing = -np.inf, np.inf
    low, high = trial.feasible.low, trial.feasible.high
    if low is None or high is None:
        return _Range(*nothing, "the contract bounds no return: set reward.min and reward.max")
    arm = trial.arms.get(role)
    if arm is None:
        return _Range(low, high)
    if trial.deciding != "dr":
        return _Range(*nothing, "marginalized weights are estimated and have no largest possible value")
    if smallest is None:
        return _Range(
            *nothing,
            "the largest possible weight is unknown: set evaluate.smallest_behavior_prob if the logger's design says",
        )
    observed = float(trial.behavior_probs.min())
    if observed < smallest * (1 - 1e-9):
        return _Range(
            *nothing,
            f"the log holds a probability of {observed:.3g}, below evaluate.smallest_behavior_prob = {smallest:g}",
        )
    assert arm.q is not None
    possible, slack = arm.q[trial.available], 1e-9 * (1 + abs(low) + abs(high))
    if possible.min() < low - slack or possible.max() > high + slack:
        return _Range(*nothing, "the model of values leaves the feasible range")
    return _with_corrections(trial, low, high, smallest)


def _with_corrections(trial: Trial, low: float, high: float, smallest: float) -> _Range:
    """A value in [low, high], and at each step a weighted error r - Q + gamma V' of the model, with V' 0 at the end."""
    horizon, gamma = trial.feasible.longest_episode, trial.gamma
    steps = np.arange(horizon)
    with np.errstate(over="ignore"):
        scale = float(gamma**steps @ (1 / smallest) ** (steps + 1.0))
    discounted = float((gamma**steps).sum())
    least, most = (end / discounted if end * sign > 0 else end for end, sign in ((low, -1), (high, 1)))  # of a reward
    up = most - low + gamma * max(high, 0.0)
    down = least - high + gamma * min(low, 0.0)
    if not np.isfinite(scale):
        return _Range(-np.inf, np.inf, f"weights of {horizon} steps have no largest value that a number can hold")
    return _Range(low + scale * min(down, 0.0), high + scale * max(up, 0.0))


def _clipped(trial: Trial, weights: StepWeights, alpha: float, rng: np.random.Generator) -> Bounds:
    """Of whole-episode weighted returns, whatever decides: clipping needs terms that cannot be negative."""
    low, high = trial.feasible.low, trial.feasible.high
    if low is None or high is None:
        cause = "the contract bounds no return: set reward.min and reward.max"
        return Bounds(CLIPPED, None, None, alpha, cause)
    returns = on_policy_returns(trial.rewards, trial.offsets, trial.gamma)
    slack = 1e-9 * (1 + abs(low) + abs(high))
    if returns.min() < low - slack or returns.max() > high + slack:
        return Bounds(CLIPPED, None, None, alpha, "a logged return lies outside the feasible range")

    def side(role: Role) -> WeightedReturns:
        if role not in weights.product or role not in trial.arms:
            return WeightedReturns(returns, None)
        with np.errstate(over="ignore"):
            return WeightedReturns(returns, np.exp(episode_log_weights(weights.product[role], trial.offsets)))

    return clipped_bounds(side("candidate"), side("baseline"), trial.clusters, low, high, alpha, rng)
