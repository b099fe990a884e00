"""What weighting costs, in closed form, for a candidate that is imagined before any is trained.

A *decision* is a step with more than one available action. It is *open* unless the log gives its action probability 1;
in the other decisions nothing can be judged but what the log did.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from reports.estimators import Floats, Ints, step_in_episode

CANDIDATE_EXPLORATION = 0.05
"""Of an imagined candidate, where the log takes no action usually and so sets no example."""


@dataclass(frozen=True)
class Move:
    """What a candidate does in an open decision where it departs from the log, as the closed forms imagine it."""

    usual_prob: float
    """b0: logged probability of what it moves away from."""
    other_prob: float
    """b1: logged probability of the action it moves to."""
    moved: float
    """d: the probability it moves."""
    has_usual: bool
    """Whether the log takes one action with probability above 1/2 in most open decisions."""

    @property
    def cost(self) -> float:
        """d^2 (1/b0 + 1/b1), by which E[ratio^2] of the decision exceeds 1."""
        return self.moved**2 * (1 / self.usual_prob + 1 / self.other_prob)


@dataclass(frozen=True)
class Horizon:
    """How the steps of episodes and their open decisions lie, as far as variances need it.

    Attributes:
        reach: (K + 1,) share of the steps, each counted gamma^2t, up to which an episode had k open decisions.
        open_reach: share of the steps, counted likewise, that are open decisions.
        decisions: (N,) open decisions of each episode.
        one_step: whether every episode is one step.
    """

    reach: Floats
    open_reach: float
    decisions: Ints
    one_step: bool


def horizon_of(is_open: NDArray[np.bool_], offsets: Ints, gamma: float) -> Horizon:
    """From (T,) which steps are open decisions."""
    weights = gamma ** (2.0 * step_in_episode(offsets))
    total = np.concatenate([[0], np.cumsum(is_open)])
    so_far = total[1:] - np.repeat(total[offsets[:-1]], np.diff(offsets))
    reach = np.bincount(so_far, weights=weights)
    return Horizon(
        reach=np.asarray(reach / weights.sum()),
        open_reach=float(weights[is_open].sum() / weights.sum()),
        decisions=np.asarray(total[offsets[1:]] - total[offsets[:-1]]),
        one_step=bool(np.all(np.diff(offsets) == 1)),
    )


def candidate_move(behavior_prob: Floats, n_available: Ints) -> Move:
    """The typical b0, b1 and d of a candidate that acts differently, from logged-action probabilities alone.

    Where most open decisions have p above 1/2, b0 is the mean p of those, and b1 the mean probability of another
    action: K other actions, drawn with their own probabilities, have E[1/p] = K / their total, so the harmonic mean of
    the logged p is their arithmetic mean. The candidate swaps the two, exploring like the log: d = b0 - b1.

    Elsewhere no action is usual. b1 is then the harmonic mean over all open decisions, b0 the rest, 1 - b1, and the
    candidate takes its own choice but for a small exploration, scaling all other actions down alike.

    In both, b1 is at least what it is if the log tries every available action: one tiny p must not decide.

    Args:
        behavior_prob: (T,) logged, in (0, 1].
        n_available: (T,) actions that were available.

    Raises:
        ValueError: if no decision is open.
    """
    is_open = (n_available > 1) & (behavior_prob < 1)
    if not is_open.any():
        raise ValueError("No decision is open: every step has one available action or probability 1.")
    p, n = behavior_prob[is_open], n_available[is_open]
    usual = p > 0.5
    if usual.mean() > 0.5:
        b0 = float(p[usual].mean())
        spread = float(((1 - p[usual]) / (n[usual] - 1)).mean())
        b1 = spread if usual.all() else min(max(_harmonic_mean(p[~usual]), spread), 1 - b0)
        return Move(b0, b1, b0 - b1, has_usual=True)
    spread = float((1 / n).mean())
    b1 = max(_harmonic_mean(p), spread)
    chosen = 1 - CANDIDATE_EXPLORATION * (1 - spread)
    return Move(1 - b1, b1, max(chosen - b1, 0.0), has_usual=False)


def log_cost(excess: float, decisions: Ints) -> float:
    """ln of the episodes that one effective episode takes: ln mean_i (1 + excess)^(L_i), over (N,) counts L_i.

    `excess` is by how much E[ratio^2] of a decision exceeds 1. In log space, as the power overflows at long horizons.
    """
    return float(special.logsumexp(decisions * math.log1p(excess)) - math.log(len(decisions)))


def variance_of_products(excess: float, horizon: Horizon) -> float:
    """Variance of DR - the log's return over that of a return, by products of ratios; inf where it overflows.

    With c = 1 + excess the squared ratio's mean in an open decision, a step behind k of them carries weight w with
    E[(w - 1)^2] = c^k - 1: the log's own return is subtracted on the same episodes, which leaves w - 1 of each error.
    Errors of a model of the values are taken alike at all steps and uncorrelated along the episode.

    Source: Jiang and Li 2016 (arXiv:1511.03722), theorem 1 (the variance of DR step by step).
    """
    with np.errstate(over="ignore"):
        return float((horizon.reach * np.expm1(np.arange(len(horizon.reach)) * math.log1p(excess))).sum())


def variance_of_marginal(excess: float, horizon: Horizon) -> float:
    """The same with marginalized weights, where the candidate visits states about as often as the log does.

    A step then carries its own ratio only, however long the episode.

    Source: Kallus and Uehara 2020, Double reinforcement learning for efficient off-policy evaluation in Markov decision
    processes (arXiv:1908.08526), theorem 3 (its efficiency bound).
    """
    return excess * horizon.open_reach


def variance_ratio(excess: float, horizon: Horizon) -> float:
    """Mean squared weight of products over that of marginalized weights, by which the gate's rule chooses."""
    with np.errstate(over="ignore"):
        products = float((horizon.reach * np.exp(np.arange(len(horizon.reach)) * math.log1p(excess))).sum())
    return products / (1 + excess * horizon.open_reach)


def explored_move(exploration: float, n_actions: float) -> Move:
    """The move of a candidate where both policies act uniformly with probability e: b0 = 1 - e + e / A, b1 = e / A."""
    b1 = exploration / n_actions
    return Move(1 - exploration + b1, b1, 1 - exploration, has_usual=True)


def smallest_exploration(affordable: Callable[[float], bool]) -> float | None:
    """The smallest exploration e in [1e-6, 1] from which on `affordable` holds, to three digits; None where none does.

    The cost falls as e grows, and is 1 at e = 1.
    """
    if not affordable(1.0):
        return None
    low, high = math.log(1e-6), 0.0
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if affordable(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _harmonic_mean(values: Floats) -> float:
    return float(1 / (1 / values).mean())
