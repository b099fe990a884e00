"""Whether a policy's own Q-values keep their word: own values against own values corrected by the log."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.change_records import QBin, QCalibration
from reports.estimators import Floats, Ints, effective_size
from reports.intervals import cluster_codes, student_t_interval

FEWEST_EFFECTIVE = 100.0
"""Steps that the weighted log must be worth at a distance ahead for that distance to correct anything."""
MOST_AHEAD = 50
N_BINS = 8
FEWEST_IN_BIN = 30


def corrected_values(
    values: Floats,
    q_taken: Floats,
    rewards: Floats,
    ratios: Floats,
    next_values: Floats,
    offsets: Ints,
    gamma: float,
) -> tuple[Floats, int]:
    """Each step's value, corrected by the weighted errors of the next steps' predictions.

    With d_t = r_t + gamma V(next) - Q(s_t, a_t) and w the product of the ratios of the k + 1 steps from t on,
    corrected_t = V(s_t) + sum_k gamma^k w d_{t+k}. That is doubly robust estimation from each step on, with the
    policy's own values as the model: unbiased for what they predict as far ahead as it looks, whatever they are.
    It looks ahead as long as the weighted log is worth `FEWEST_EFFECTIVE` steps, and at most `MOST_AHEAD`.

    Args:
        values: (T,) V(s_t), the policy's own value.
        q_taken: (T,) its own Q(s_t, a_t) of the logged action.
        rewards: (T,).
        ratios: (T,) evaluation_prob / behavior_prob of the logged action.
        next_values: (T,) V of the observation that followed, 0 after a terminated step; NaN where none is known,
            which then corrects nothing.
        offsets: (N + 1,).
        gamma: per step, in (0, 1].

    Returns:
        (T,) corrected values, and the number of steps looked ahead; 0 where nothing could be corrected.

    Source: Jiang and Li 2016, Doubly Robust Off-policy Value Evaluation (arXiv:1511.03722), eq. 10, cut after n steps.
    """
    errors = np.where(np.isnan(next_values), 0.0, rewards + gamma * np.nan_to_num(next_values) - q_taken)
    left = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(values))  # steps from here to the episode's end
    corrected, weights = values.astype(np.float64), np.ones(len(values))
    furthest = min(MOST_AHEAD, int(left.max()))
    for ahead in range(furthest):
        alive = np.flatnonzero(left > ahead)
        weights[alive] *= ratios[alive + ahead]
        if not effective_size(weights[alive]) >= FEWEST_EFFECTIVE:
            return corrected, ahead
        corrected[alive] += gamma**ahead * weights[alive] * errors[alive + ahead]
    return corrected, furthest


def calibrate_q(
    own_q: Floats,
    allowed: NDArray[np.bool_],
    actions: Ints,
    rewards: Floats,
    behavior_probs: Floats | None,
    next_values: Floats,
    offsets: Ints,
    clusters: NDArray[Any],
    gamma: float,
    *,
    disagreement: Floats | None = None,
    level: float = 0.95,
    refused: str = "",
) -> QCalibration:
    """Own Q-values of the greedy action in bins of equal size, beside what the log says of them.

    Args:
        own_q: (T, A) finite, the policy's own values; allowed: (T, A) which actions it may take.
        actions: (T,) logged; rewards: (T,).
        behavior_probs: (T,) in (0, 1]; None where nothing may be weighted, and `refused` says why.
        next_values: (T,) as for `corrected_values`.
        offsets: (N + 1,); clusters: (N,) what makes episodes dependent.
        gamma: per step.
        disagreement: (T, A) standard deviation of each action's value over an ensemble.
        level: of the intervals.
    """
    rows = np.arange(len(actions))
    possible = np.where(allowed, own_q, -np.inf)
    greedy = possible.argmax(axis=1)
    values = possible[rows, greedy]
    spread = None if disagreement is None else disagreement[rows, greedy]
    evaluated: Floats | None = None
    n_ahead = 0
    if behavior_probs is not None:
        ratios = (actions == greedy) / behavior_probs
        q_taken = own_q[rows, actions]
        evaluated, n_ahead = corrected_values(values, q_taken, rewards, ratios, next_values, offsets, gamma)
        if n_ahead == 0:
            evaluated, refused = None, "the log follows the greedy action too rarely to correct even one step"
    step_clusters = np.repeat(cluster_codes(clusters), np.diff(offsets))
    bins = tuple(
        _bin(values, evaluated, spread, chosen, step_clusters, level) for chosen in _equal_bins(values) if len(chosen)
    )
    excess = None if evaluated is None else float((values - evaluated).mean())
    return QCalibration(bins, n_ahead, level, excess, refused or None)


def _bin(
    values: Floats, evaluated: Floats | None, spread: Floats | None, chosen: Ints, clusters: Ints, level: float
) -> QBin:
    low = high = mean = None
    if evaluated is not None:
        mean = float(evaluated[chosen].mean())
        if np.ptp(clusters[chosen]) > 0:  # one cluster has no interval
            interval = student_t_interval(evaluated[chosen], clusters[chosen], level)
            low, high = interval.low, interval.high
    return QBin(
        n_steps=len(chosen),
        own=float(values[chosen].mean()),
        evaluated=mean,
        low=low,
        high=high,
        disagreement=None if spread is None else float(spread[chosen].mean()),
    )


def _equal_bins(values: Floats) -> list[Ints]:
    """Steps of each bin, low values first; equal values stay together."""
    n_bins = max(1, min(N_BINS, len(values) // FEWEST_IN_BIN))
    edges = np.unique(np.quantile(values, np.arange(1, n_bins) / n_bins))
    place = np.searchsorted(edges, values, side="left")
    return [np.flatnonzero(place == i) for i in range(len(edges) + 1)]
