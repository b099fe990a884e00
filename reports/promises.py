"""Promises kept: what the gate promised of a release, beside what the release has earned since.

The promise is the lower end of the interval with which its evaluation let it through. What it earns is followed by a
confidence sequence, which holds on all nights together: it may be read every night, and a verdict once reached stays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.replay import Replay
from reports.confidence_sequence import nightly_bounds
from reports.estimators import on_policy_returns
from reports.formatting import counted, number, spanned
from reports.proof_records import Promise
from reports.records import Evaluation, Interval
from reports.trial import feasible_range

_ORDER_SEED = 728_119_405_337
"""Of the order within nights: always the same, so that a verdict once reached stays; and no seed that a simulator is
likely to have drawn the returns with."""


def judge_promise(release: int, promoted_at: str, evaluation: Evaluation | None, own: Replay | None) -> Promise:
    """Whether a release earns what its evaluation promised.

    Each end of the sequence errs in (1 - level) / 2, as each end of the promised interval does. So, in a world that
    stays as it was, at most 1 - level of releases are called broken, over all nights of their life together.

    Args:
        release: its number.
        promoted_at: ISO instant of its first promotion.
        evaluation: its record; None where there is none.
        own: the episodes that it wrote since its snapshot was frozen, complete and undamaged; None where there is none.
    """
    promise = Promise(release, promoted_at)
    estimate = None
    if evaluation is not None and evaluation.deciding_estimator is not None:
        estimate = evaluation.estimate(evaluation.deciding_estimator, "candidate")
    if evaluation is None or estimate is None or estimate.value is None or estimate.interval is None:
        return replace(promise, verdict="cannot be judged", cause="no evaluation promised a value of it")
    low, high, level = estimate.interval.low, estimate.interval.high, estimate.interval.level
    promise = replace(promise, promised=estimate.value, promised_low=low, promised_high=high, level=level)
    if own is None or not own.n_episodes:
        return replace(promise, cause="it has written no episode that is over")
    if own.contract.gamma != evaluation.gamma:
        cause = f"gamma was {evaluation.gamma:g} in its evaluation and is {own.contract.gamma:g} now"
        return replace(promise, verdict="cannot be judged", cause=cause)
    return _followed(promise, own, evaluation.feasible.longest_episode, estimate.interval)


def _followed(promise: Promise, own: Replay, longest: int, promised: Interval) -> Promise:
    """The promise beside the confidence sequence of these episodes, night by night."""
    reward, gamma = own.contract.reward, own.contract.gamma
    promise = replace(promise, n_episodes=own.n_episodes, n_nights=len(np.unique(own.nights)))
    feasible = feasible_range(reward.min, reward.max, gamma, max(longest, int(own.lengths.max())))
    if feasible.low is None or feasible.high is None:
        cause = "reward.min and reward.max are not both set, so nothing bounds the mean return"
        return replace(promise, verdict="cannot be judged", cause=cause)
    returns = on_policy_returns(own.rewards, own.offsets, gamma)
    try:
        bounds = nightly_bounds(
            returns,
            own.clusters,
            own.nights,
            low=feasible.low,
            high=feasible.high,
            alpha=(1 - promised.level) / 2,
            rng=np.random.default_rng(_ORDER_SEED),
        )
    except ValueError as error:  # a return beyond what the contract allows
        return replace(promise, verdict="cannot be judged", cause=str(error).removesuffix("."))
    last = bounds[-1]
    promise = replace(
        promise, n_clusters=last.n_clusters, earned=last.mean, earned_low=last.lower, earned_high=last.upper
    )
    if promise.crossed:
        cause = "its mean return did not stay the same over these nights, so there is no one value to hold it to"
        return replace(promise, verdict="cannot be judged", cause=cause)
    kept = [night.night for night in bounds if night.lower >= promised.low]
    broken = [night.night for night in bounds if night.upper < promised.low]
    if kept:
        return replace(promise, verdict="kept", since=str(kept[0]))
    if broken:
        return replace(promise, verdict="broken", since=str(broken[0]))
    return replace(promise, cause="what it earned may still lie on either side of the promise")


def earned_words(promise: Promise) -> str:
    """What it earned, with the ends of the sequence; where these have crossed there is no one interval."""
    if promise.crossed:
        return f"{number(promise.earned)}, no one interval"
    return spanned(promise.earned, promise.earned_low, promise.earned_high)


def broken_sentence(promise: Promise) -> str:
    """The broken promise as a reason to retrain; "" where it is not broken."""
    if promise.verdict != "broken":
        return ""
    return (
        f"release {promise.release} broke its promise: over {counted(promise.n_episodes, 'episode')} of "
        f"{counted(promise.n_nights, 'night')} it earned {promise.earned:.4g}, at most "
        f"{promise.earned_high:.4g} however often one looks, where its "
        f"evaluation promised at least {promise.promised_low:.4g}"
    )
