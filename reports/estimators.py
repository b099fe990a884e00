"""Off-policy estimators on ragged episodes, in float64 and log-space.

Every estimator here is a sum of ratios of sums over episodes,

    value = sum_k  (sum_i numerators[i, k]) / (sum_i denominators[i, k]),

with K = 1 and denominators of 1 for a plain mean, one column of weights for a self-normalized mean, and one column per
step for the weighted per-decision forms. `RatioSum` holds the two tables; a bootstrap replicate only counts each
episode more or less often, so one resampling serves all estimators and weights are normalized anew inside each.

Steps are flat arrays (T,) of N episodes; episode n is steps offsets[n]:offsets[n + 1], with offsets (N + 1,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EndedWeight = Literal["hold", "zero"]
"""What an ended episode weighs at later steps of the others: its last weight (Thomas 2015), or nothing."""


@dataclass(frozen=True)
class RatioSum:
    """An estimator as two (N, K) tables; see the module's formula."""

    numerators: Floats
    denominators: Floats

    @property
    def value(self) -> float:
        """The estimate, in reward units; NaN where a denominator is zero or a weight overflowed."""
        with np.errstate(invalid="ignore", over="ignore"):
            numerators, denominators = self.numerators.sum(axis=0), self.denominators.sum(axis=0)
        return float(sum_of_ratios(numerators[None, :], denominators[None, :])[0])

    @property
    def terms(self) -> Floats:
        """(N,) per-episode values of a plain mean.

        Raises:
            ValueError: if the estimator is no plain mean.
        """
        if self.numerators.shape[1] != 1 or not np.all(self.denominators == 1.0):
            raise ValueError("Only a plain mean has per-episode terms; this estimator normalizes its weights.")
        return np.asarray(self.numerators[:, 0])


def sum_of_ratios(numerators: Floats, denominators: Floats) -> Floats:
    """(R,) sum over columns of numerators / denominators, both (R, K).

    A column whose denominator and numerator are both 0 is NaN: there was nothing to average.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((numerators / denominators).sum(axis=1))


def step_in_episode(offsets: Ints) -> Ints:
    """(T,) position of each step in its episode, from 0.

    Raises:
        ValueError: if offsets do not start at 0 and grow, or there is no episode.
    """
    lengths = np.diff(offsets)
    if len(offsets) < 2 or offsets[0] != 0 or np.any(lengths < 1):
        raise ValueError("offsets must start at 0 and grow: at least one episode of at least one step each.")
    return np.asarray(np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths))


def cumulative_log_weights(evaluation_probs: Floats, behavior_probs: Floats, offsets: Ints) -> Floats:
    """(T,) log of the product of evaluation_prob / behavior_prob from the episode's first step to this one.

    -inf from the first step on that the evaluation policy would never have taken; never NaN.

    Args:
        evaluation_probs: (T,) in [0, 1], probability of the logged action under the evaluation policy.
        behavior_probs: (T,) in (0, 1], under the behavior policy.
        offsets: (N + 1,) int64.

    Raises:
        ValueError: if lengths differ or a probability lies outside its range.
    """
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    step_in_episode(offsets)
    if not len(evaluation_probs) == len(behavior_probs) == offsets[-1]:
        raise ValueError(
            f"{len(evaluation_probs)} evaluation and {len(behavior_probs)} behavior probabilities for "
            f"{offsets[-1]} steps: there must be one of each per step."
        )
    if not np.all((behavior_probs > 0) & (behavior_probs <= 1)):
        raise ValueError("A behavior probability lies outside (0, 1]: the logged action cannot have been taken.")
    if not np.all((evaluation_probs >= 0) & (evaluation_probs <= 1 + 1e-9)):
        raise ValueError("An evaluation probability lies outside [0, 1].")
    never = evaluation_probs == 0
    log_ratios = np.log(np.where(never, 1.0, evaluation_probs)) - np.log(behavior_probs)
    log_weights = _running_sum(log_ratios, starts)
    # Impossible steps are counted beside the sum: -inf would turn into NaN when the episode's start is subtracted.
    if never.any():
        log_weights[_running_sum(never.astype(np.float64), starts) > 0.5] = -np.inf
    return log_weights


def windowed_log_weights(log_ratios: Floats, log_state_weights: Floats, offsets: Ints, window: int) -> Floats:
    """(T,) log of marginalized weights: that of the state `window` steps ago, times the ratios since.

    With window 0 the weight of a step is w(s_t) ratio_t (marginalized importance sampling); within the first `window`
    steps of an episode, and everywhere for a window as long as the episode, it is the product of all ratios so far.
    Where observations tell all that matters, every window has the same expectation, and a longer one a larger variance.

    Args:
        log_ratios: (T,) log of evaluation_prob / behavior_prob; -inf where the policy would not have acted so.
        log_state_weights: (T,) log of w(s_t), discounted visits of the policy over those of the log.
        offsets: (N + 1,) int64.
        window: in steps, at least 0.

    Source: Liu, Li, Tang, Zhou 2018, Breaking the Curse of Horizon (arXiv:1810.12429) for window 0; Xie, Ma, Wang 2019,
    Towards Optimal Off-Policy Evaluation (arXiv:1906.03393) for weights by step.
    """
    position = step_in_episode(offsets)
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    never = np.isneginf(log_ratios)
    finite = np.where(never, 0.0, log_ratios)
    begins = np.maximum(np.arange(len(log_ratios)) - window, starts)
    sums, impossible = (np.concatenate([[0.0], np.cumsum(values)]) for values in (finite, never.astype(np.float64)))
    products = sums[1:] - sums[begins]
    products[impossible[1:] - impossible[begins] > 0.5] = -np.inf
    exact = position < window  # the product reaches back to the first step, whose own weight is 1
    return np.asarray(products + np.where(exact, 0.0, log_state_weights[begins]))


def balance_terms(log_weights: Floats, offsets: Ints, gamma: float) -> Floats:
    """(N,) terms whose mean is 1 if marginalized weights are right: sum_t gamma^t w_t (1 - gamma [t is not the last]).

    The discounted visits of a policy, less those that follow one of its own visits, are its first steps: one per
    episode. An action that the policy takes and the log never does makes the mean smaller.

    Args:
        log_weights: (T,) log of w(s_t) ratio_t.
        offsets: (N + 1,) int64.
        gamma: discount of one step.
    """
    leaves = np.full(int(offsets[-1]), 1.0 - gamma)
    leaves[offsets[1:] - 1] = 1.0
    weighted = _times(np.exp(_capped(log_weights)), discounted(leaves, offsets, gamma))
    return _episode_sums(weighted, offsets)


def discounted(rewards: Floats, offsets: Ints, gamma: float) -> Floats:
    """(T,) gamma^t r_t, with t counted from the episode's first step."""
    steps = step_in_episode(offsets)
    powers = gamma ** np.arange(float(np.diff(offsets).max()))  # a power per step of the longest episode, not of all
    return np.asarray(powers.take(steps) * rewards)


def on_policy_returns(rewards: Floats, offsets: Ints, gamma: float) -> Floats:
    """(N,) discounted return of each episode as logged, in reward units."""
    return np.asarray(np.add.reduceat(discounted(rewards, offsets, gamma), offsets[:-1]))


def episode_log_weights(log_weights: Floats, offsets: Ints) -> Floats:
    """(N,) log weight of each whole episode: that of its last step."""
    return np.asarray(log_weights[offsets[1:] - 1])


def effective_sample_size(log_weights: Floats) -> float:
    """`effective_size` of (N,) log weights, in episodes."""
    return effective_size(scaled_weights(log_weights))


def effective_size(weights: Floats) -> float:
    """(sum w)^2 / sum w^2 of (N,) weights: as many equal ones are worth as much; 0 where every weight is zero.

    Source: Kish 1965, Survey sampling, section 11.7.
    """
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def scaled_weights(log_weights: Floats) -> Floats:
    """Weights divided by their largest, so that none overflows; for self-normalized forms, where the scale cancels."""
    top = log_weights.max(axis=0)
    return np.asarray(np.exp(log_weights - np.where(np.isfinite(top), top, 0.0)))


def mean_of(terms: Floats) -> RatioSum:
    """The plain mean of (N,) per-episode terms."""
    return RatioSum(terms[:, None], np.ones((len(terms), 1)))


def difference_of(ours: RatioSum, theirs: RatioSum) -> RatioSum:
    """ours - theirs on the same episodes as one estimator; a plain mean where both are plain means."""
    if ours.numerators.shape[1] == theirs.numerators.shape[1] and np.array_equal(
        ours.denominators, theirs.denominators
    ):
        with np.errstate(invalid="ignore"):  # two overflowed weights end as NaN, which is refused later
            return RatioSum(ours.numerators - theirs.numerators, ours.denominators)
    return RatioSum(
        np.column_stack([ours.numerators, -theirs.numerators]),
        np.column_stack([ours.denominators, theirs.denominators]),
    )


def importance_sampling(returns: Floats, log_weights: Floats) -> RatioSum:
    """IS: the mean of weight times return. (N,) returns in reward units, (N,) log weights of whole episodes."""
    return mean_of(_times(np.exp(_capped(log_weights)), returns))


def weighted_importance_sampling(returns: Floats, log_weights: Floats) -> RatioSum:
    """WIS: the mean of returns weighted by the (N,) episode weights; biased, of smaller variance."""
    weights = scaled_weights(log_weights)
    return RatioSum((weights * returns)[:, None], weights[:, None])


def per_decision(rewards: Floats, log_weights: Floats, offsets: Ints, gamma: float) -> RatioSum:
    """PDIS: each reward weighted by the steps up to it only. (T,) rewards and cumulative log weights.

    Source: Precup, Sutton, Singh 2000, Eligibility traces for off-policy policy evaluation.
    """
    weighted = _times(np.exp(_capped(log_weights)), discounted(rewards, offsets, gamma))
    return mean_of(_episode_sums(weighted, offsets))


def weighted_per_decision(
    rewards: Floats, log_weights: Floats, offsets: Ints, gamma: float, *, ended: EndedWeight = "hold"
) -> RatioSum:
    """WPDIS: PDIS with the weights of each step normalized over the episodes.

    With `ended = "hold"` it equals the mean return where evaluation and behavior policy agree; with "zero" it does not
    on ragged episodes (a step's rewards are averaged over the living only).

    Source: Thomas 2015, Safe Reinforcement Learning, section 3.4 (held weights).
    """
    weights = _weight_table(log_weights, offsets, ended)
    return RatioSum(weights * _table(discounted(rewards, offsets, gamma), offsets), _never_empty(weights, ended))


def doubly_robust(
    rewards: Floats, q_taken: Floats, state_values: Floats, log_weights: Floats, offsets: Ints, gamma: float
) -> RatioSum:
    """DR: a model's value at the first step, plus the weighted errors that it made along the way.

    Unbiased for any Q that was not fitted on these episodes, if the behavior probabilities are right. The last step of
    an episode has nothing behind it, so a truncated episode counts up to its cut.

    Args:
        rewards: (T,) in reward units.
        q_taken: (T,) Q(s_t, a_t) of the evaluation policy at the logged action.
        state_values: (T,) V(s_t) = sum_a pi(a | s_t) Q(s_t, a).
        log_weights: (T,) cumulative, from `cumulative_log_weights`.
        offsets: (N + 1,) int64.
        gamma: discount of one step.

    Source: Jiang and Li 2016, Doubly robust off-policy value evaluation (arXiv:1511.03722), eq. 10, unrolled.
    """
    corrections = model_corrections(rewards, q_taken, state_values, offsets, gamma)
    weighted = _times(np.exp(_capped(log_weights)), corrections)
    return mean_of(state_values[offsets[:-1]] + _episode_sums(weighted, offsets))


def weighted_doubly_robust(
    rewards: Floats,
    q_taken: Floats,
    state_values: Floats,
    log_weights: Floats,
    offsets: Ints,
    gamma: float,
    *,
    ended: EndedWeight = "hold",
) -> RatioSum:
    """WDR: DR with the weights of each step normalized over the episodes. Arguments as for `doubly_robust`.

    Source: Thomas and Brunskill 2016, Data-efficient off-policy policy evaluation (arXiv:1604.00923), eq. 6.
    """
    weights = _weight_table(log_weights, offsets, ended)
    corrections = _table(model_corrections(rewards, q_taken, state_values, offsets, gamma), offsets)
    first = state_values[offsets[:-1]]
    return RatioSum(
        np.column_stack([first, weights * corrections]),
        np.column_stack([np.ones(len(first)), _never_empty(weights, ended)]),
    )


def model_corrections(rewards: Floats, q_taken: Floats, state_values: Floats, offsets: Ints, gamma: float) -> Floats:
    """(T,) gamma^t (r_t - Q_t + gamma V_{t+1}), the model's error at each step; V is 0 behind the last."""
    following = np.append(state_values[1:], 0.0)
    following[offsets[1:] - 1] = 0.0
    return discounted(rewards - q_taken + gamma * following, offsets, gamma)


def _running_sum(values: Floats, starts: Ints) -> Floats:
    """(T,) sum from the episode's first step, inclusive; `starts` (T,) is the index of that first step."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(total[1:] - total[starts])


def _episode_sums(values: Floats, offsets: Ints) -> Floats:
    """(N,) sums over each episode's steps; overflowed weights of both signs end as NaN."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.add.reduceat(values, offsets[:-1]))


def _capped(log_weights: Floats) -> Floats:
    """Log weights whose overflow is an explicit inf rather than a warning."""
    return np.where(log_weights > np.log(np.finfo(np.float64).max), np.inf, log_weights)


def _times(weights: Floats, values: Floats) -> Floats:
    """weights * values with 0 where the value is 0: an overflowed weight on nothing is nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(values == 0.0, 0.0, weights * values)


def _table(values: Floats, offsets: Ints) -> Floats:
    """(N, H) with each episode's steps from the left, 0 behind its end."""
    lengths = np.diff(offsets)
    table = np.zeros((len(lengths), int(lengths.max())))
    table[np.arange(table.shape[1]) < lengths[:, None]] = values  # both run along episodes, then along steps
    return table


def _weight_table(log_weights: Floats, offsets: Ints, ended: EndedWeight) -> Floats:
    """(N, H) weights, each column scaled by its largest."""
    lengths = np.diff(offsets)
    steps = np.arange(int(lengths.max()))
    rows = offsets[:-1, None] + np.minimum(steps[None, :], lengths[:, None] - 1)  # (N, H)
    table = log_weights[rows]
    if ended == "zero":
        table = np.where(steps[None, :] < lengths[:, None], table, -np.inf)
    return scaled_weights(table)


def _never_empty(weights: Floats, ended: EndedWeight) -> Floats:
    """Denominators. Under "zero", steps that a replicate's episodes never reach must add 0 and not 0 / 0."""
    return weights if ended == "hold" else weights + np.finfo(np.float64).tiny
