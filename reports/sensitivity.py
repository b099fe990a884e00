"""How wrong the behavior probabilities would have to be to turn the verdict.

The model of wrongness is the marginal sensitivity model on odds: at every step the odds p / (1 - p) of the logged
action are off by at most a factor F >= 1, in whichever direction does most harm, differently at every step and free to
hang on anything that was not logged. Then p / p* lies within

    [p + (1 - p) / F, p + (1 - p) F],

so that p* never exceeds 1, and a step that was certain stays certain. The bounds below are sharp for these ranges: some
probabilities within them attain the bound. They leave out that the probabilities of all actions add up to 1 in every
state, and so are rather too wide than too narrow.

Source: Tan 2006, A distributional approach for causal inference using propensity scores (the model); Zhao, Small,
Bhattacharya 2019, Sensitivity analysis for inverse probability weighting estimators via the percentile bootstrap
(arXiv:1711.11286; the fractional program); Kallus and Zhou 2020, Confounding-robust policy evaluation in
infinite-horizon reinforcement learning (arXiv:2002.04518), and Bruns-Smith and Zhou 2023, Robust fitted-Q-evaluation
and iteration under sequentially exogenous unobserved confounders (arXiv:2302.00662; ranges at every step).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.estimators import Floats, Ints, model_corrections, on_policy_returns
from reports.intervals import cluster_codes, variance_of_mean
from reports.records import Comparison, Sensitivity, SensitivityPoint
from reports.trial import Role, Trial

LARGEST_FACTOR = 20.0
"""Odds that are wrong by more than this are no probabilities at all."""
FACTORS = (1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Factors at which the curve is shown."""
_N_GRID = 30


@dataclass(frozen=True, kw_only=True)
class SteppedDifference:
    """A difference of values as mean over episodes of base + sum over steps of `moved`, at the probabilities as logged.

    Attributes:
        base: (N,) what no probability touches.
        moved: (T,) each step's weighted correction, of the candidate minus that of the baseline.
        weights: (T,) each step's weight, of the candidate minus that of the baseline; its expectation is known.
        behavior_probs: (T,) in (0, 1].
        offsets: (N + 1,).
        products: whether a step's weight is the product of the ratios up to it; else of its own ratio only.
    """

    base: Floats
    moved: Floats
    weights: Floats
    behavior_probs: Floats
    offsets: Ints
    products: bool


def stepped_difference(
    trial: Trial, log_weights: Mapping[str, Floats], against: Role | None, *, products: bool
) -> SteppedDifference:
    """The doubly robust value of the candidate minus that of `against`, or minus the log's own return where None.

    Args:
        trial: episodes and policies.
        log_weights: (T,) of each step, of the candidate and of `against`, as the deciding estimator uses them.
        against: a role among the trial's arms.
        products: whether those weights are products over the episode so far.
    """
    base, moved, weights = _stepped(trial, "candidate", log_weights["candidate"])
    if against is None:
        base = base - on_policy_returns(trial.rewards, trial.offsets, trial.gamma)
    else:
        their_base, their_moved, their_weights = _stepped(trial, against, log_weights[against])
        base, moved, weights = base - their_base, moved - their_moved, weights - their_weights
    return SteppedDifference(
        base=base,
        moved=moved,
        weights=weights,
        behavior_probs=trial.behavior_probs,
        offsets=trial.offsets,
        products=products,
    )


def _stepped(trial: Trial, role: Role, log_weights: Floats) -> tuple[Floats, Floats, Floats]:
    """(N,) value of the first state by the model; (T,) weighted corrections; (T,) weights."""
    arm = trial.arms[role]
    assert arm.q is not None  # as in every arm whose value is estimated
    values = (arm.probs * arm.q).sum(axis=1)
    taken = arm.q[np.arange(len(trial.actions)), trial.actions]
    weights = np.exp(log_weights)
    errors = model_corrections(trial.rewards, taken, values, trial.offsets, trial.gamma)
    return values[trial.offsets[:-1]], np.where(weights > 0, weights * errors, 0.0), weights


def odds_range(behavior_probs: Floats, factor: float) -> tuple[Floats, Floats]:
    """(T,) smallest and largest p / p* where the odds of p are off by at most `factor`.

    Raises:
        ValueError: if factor is below 1.
    """
    if not factor >= 1:
        raise ValueError(f"factor is {factor}: odds are off by a factor of at least 1.")
    rest = 1 - behavior_probs
    return behavior_probs + rest / factor, behavior_probs + rest * factor


def worst_terms(difference: SteppedDifference, factor: float) -> Floats:
    """(N,) per-episode terms whose mean is the smallest difference that the factor allows; at 1 those of the estimate.

    Where weights are products, the worst of an episode comes from its end: with s_t = p_t / p*_t,

        M_t = min over s_t of s_t (moved_t + M_{t+1}),

    exact because s_t > 0 multiplies all that follows. Bounds of long episodes therefore grow like factor^steps. Where
    a weight holds its own step's ratio only, each step is bounded by itself, and how often the policy visits the state
    is taken as estimated.

    Where every episode is one step, the weights must keep their mean besides, which true ones have in expectation:
    a linear program with one constraint, solved by sorting.
    """
    low, high = odds_range(difference.behavior_probs, factor)
    if np.all(np.diff(difference.offsets) == 1):
        price = balancing_price(difference.moved, difference.weights, low, high) if factor > 1 else 0.0
        kept = price * difference.weights
        return np.asarray(difference.base + _smaller(difference.moved - kept, low, high) + kept)
    if not difference.products:
        worst = _smaller(difference.moved, low, high)
        return np.asarray(difference.base + np.add.reduceat(worst, difference.offsets[:-1]))
    return np.asarray(difference.base + _worst_from_the_end(difference.moved, low, high, difference.offsets))


def best_terms(difference: SteppedDifference, factor: float) -> Floats:
    """(N,) per-episode terms whose mean is the largest difference that the factor allows."""
    mirrored = SteppedDifference(
        base=-difference.base,
        moved=-difference.moved,
        weights=difference.weights,
        behavior_probs=difference.behavior_probs,
        offsets=difference.offsets,
        products=difference.products,
    )
    return -worst_terms(mirrored, factor)


def balancing_price(moved: Floats, weights: Floats, low: Floats, high: Floats) -> float:
    """The multiplier of sum s w = sum w in: minimize sum s m over s within [low, high], all (T,).

    Its dual, sum min over s of s (m - price w) + price sum w, is concave and bends where price = m / w; the maximum is
    at the first bend behind which it falls. O(T log T).

    Source: Dantzig 1957, Discrete-variable extremum problems (the continuous knapsack).
    """
    counted = np.flatnonzero(weights != 0)
    if not len(counted):
        return 0.0
    w, lows, highs = weights[counted], low[counted], high[counted]
    bends = moved[counted] / w
    order = np.argsort(bends, kind="stable")
    rise = float(np.where(w > 0, w * (1 - lows), -w * (highs - 1)).sum())
    fallen = np.cumsum((np.abs(w) * (highs - lows))[order])
    return float(bends[order][min(int(np.searchsorted(fallen, rise)), len(order) - 1)])


def sensitivity_of(
    trial: Trial, log_weights: Mapping[str, Floats], comparison: Comparison, margin: float, *, products: bool
) -> Sensitivity:
    """How wrong the probabilities would have to be to turn what the gate says of the comparison with the baseline.

    Refused where the comparison is: there is no verdict to turn.
    """
    if comparison.refused is not None or comparison.lower_bound is None:
        longest = int(np.diff(trial.offsets).max())
        cause = comparison.refused or "the difference has no bound"
        return Sensitivity(False, None, LARGEST_FACTOR, (), longest, "", refused=cause)
    against: Role | None = "baseline" if "baseline" in trial.arms else None
    difference = stepped_difference(trial, log_weights, against, products=products)
    return measure_sensitivity(difference, trial.clusters, comparison.lower_bound, margin)


def measure_sensitivity(
    difference: SteppedDifference, clusters: NDArray[np.generic], lower_bound: float, margin: float
) -> Sensitivity:
    """The bounds at every factor, and the factor at which the verdict on the value turns.

    The confidence bound at a factor is the mean of the worst terms, less the distance of the gate's own bound from its
    estimate, that distance scaled by the standard error of the worst terms over that of the estimate's. At factor 1
    it is the gate's bound itself.

    Args:
        difference: the deciding one.
        clusters: (N,).
        lower_bound: the gate's, of the same difference.
        margin: of the gate; the check on the value passes where the bound is above -margin.
    """
    codes = cluster_codes(clusters)
    estimate = difference.base + np.add.reduceat(difference.moved, difference.offsets[:-1])
    distance, error = float(estimate.mean()) - lower_bound, math.sqrt(variance_of_mean(estimate, codes))

    def bounded(terms: Floats) -> tuple[float, float]:
        with np.errstate(over="ignore", invalid="ignore"):
            value = float(terms.mean())
            scale = math.sqrt(variance_of_mean(terms, codes)) / error if error > 0 else 1.0
        return value, value - distance * scale

    def point(factor: float) -> SensitivityPoint | None:
        with np.errstate(over="ignore", invalid="ignore"):
            found = (*bounded(worst_terms(difference, factor)), *bounded(best_terms(difference, factor)))
        return SensitivityPoint(factor, *found) if all(math.isfinite(value) for value in found) else None

    def worst_fails(factor: float) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            return not bounded(worst_terms(difference, factor))[1] > -margin

    def best_passes(factor: float) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            return bounded(best_terms(difference, factor))[1] > -margin

    passes = lower_bound > -margin
    return Sensitivity(
        passes=passes,
        turns_at=_first(worst_fails if passes else best_passes),
        largest_factor=LARGEST_FACTOR,
        points=tuple(found for factor in FACTORS if (found := point(factor)) is not None),
        longest=int(np.diff(difference.offsets).max()),
        model=_model(difference),
    )


def _first(turned: Callable[[float], bool]) -> float | None:
    """The smallest factor, to a thousandth, that turns it; None where none up to `LARGEST_FACTOR` does.

    Looked for on a grid first: an interval widens with the factor too, so what one factor turned a larger one may not.
    """
    grid = np.linspace(0.0, math.log(LARGEST_FACTOR), _N_GRID + 1).tolist()
    for low, high in itertools.pairwise(grid):
        if turned(math.exp(high)):
            while high - low > 5e-4:
                middle = (low + high) / 2
                low, high = (low, middle) if turned(math.exp(middle)) else (middle, high)
            return math.exp(high)
    return None


def _smaller(moved: Floats, low: Floats, high: Floats) -> Floats:
    return np.where(moved > 0, moved * low, moved * high)


def _worst_from_the_end(moved: Floats, low: Floats, high: Floats, offsets: Ints) -> Floats:
    """(N,) M_0 of each episode; episodes walk back together, step by step from their ends."""
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    ends, behind = offsets[1:][order] - 1, np.zeros(len(lengths))
    n_living = np.searchsorted(-lengths[order], -np.arange(int(lengths.max())), side="left")  # longer than k steps
    for back, n in enumerate(n_living.tolist()):
        steps = ends[:n] - back
        behind[:n] = _smaller(moved[steps] + behind[:n], low[steps], high[steps])
    found = np.empty(len(lengths))
    found[order] = behind
    return found


def _model(difference: SteppedDifference) -> str:
    odds = "the odds of every logged action are off by at most the factor, each in the direction that does most harm"
    if np.all(np.diff(difference.offsets) == 1):
        return f"{odds}, while the weights keep their mean"
    if difference.products:
        return f"{odds}; over an episode the errors multiply"
    return f"{odds} in its own step; how often the policy visits each state is taken as estimated"
