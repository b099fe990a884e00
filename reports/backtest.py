"""Backtest: each policy version of a log, estimated from another's episodes and compared with what it earned itself.

Where two versions act in the same nights, the log holds the answer to an off-policy question: what version B would have
earned in A's place is what B did earn. The estimate is made as the gate makes it, by the same function, and its
interval ought to hold the truth about as often as it says.

What differs from a release on trial: B's probabilities on A's observations are needed. A registered release acts; a
uniform policy is recognized by its logged probabilities; any other is modelled from part of its own episodes, and what
the model earns more or less than B is measured on the rest of them and taken off, with its own uncertainty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.encoding import Encoder, fit_encoder
from datasets.errors import OfflineDqnError
from datasets.observations import Observations
from datasets.replay import GATE, TRAIN, Replay
from datasets.spreading import Spread, one_by_one
from offline_dqn.devices import one_thread
from offline_dqn.policy import Policy
from reports.crossfit import FoldFitter, deal_folds
from reports.estimators import Floats, on_policy_returns
from reports.evaluate_config import EvaluateConfig
from reports.evaluation import evaluate_candidate
from reports.formatting import counted
from reports.gate import GateConfig
from reports.intervals import cluster_codes, student_t_interval
from reports.proof_records import Backtest, BacktestEstimate, BacktestPair, BacktestVerdict, PolicySource
from reports.propensity import BehaviorModel, PropensityError, fit_behavior_model
from reports.records import Evaluation

FEWEST_EPISODES = 30
"""Of a version in the nights in common: the mean of fewer is no truth to hit."""

_MOST_VERSIONS = 4
"""Those with the most episodes are compared, each with each."""

_MOST_STEPS = 200_000
"""Of one version's episodes; beyond it some clusters at random."""

_RULE_FOLDS = 5
"""One of these is what the rule that names the deciding estimator looks at."""

_UNIFORM_WITHIN = 1e-4
"""Largest difference of a logged probability to 1 / (available actions) that rounding explains, as a share of it."""


@dataclass(frozen=True)
class Span:
    """A number with its interval."""

    value: float
    low: float
    high: float


def backtest(
    replay: Replay,
    *,
    registered: Mapping[str, Policy],
    config: EvaluateConfig,
    gate_config: GateConfig,
    seed: int,
    fit_models: FoldFitter | None = None,
    spread: Spread = one_by_one,
) -> Backtest:
    """Estimate every version of a log from every other's episodes.

    Args:
        replay: the episodes that may be read; `policy_versions` tells the versions apart. Splits do not matter here.
        registered: policy of each version that is a release and, by its probabilities, wrote what bears its name.
        config, gate_config: of the evaluation, exactly as a release on trial is judged by them.
        seed: of samples, folds, fits and bootstrap.
        fit_models: as `evaluate_candidate` takes it.
        spread: works out the pairs.
    """
    names, counts = np.unique(replay.policy_versions[replay.policy_versions != ""].astype(str), return_counts=True)
    versions = [str(name) for name in names[np.argsort(-counts, kind="stable")][:_MOST_VERSIONS]]
    if len(versions) < 2:
        return Backtest((), config.level, _why_no_pairs(replay, versions))
    arguments = {"config": config, "gate_config": gate_config, "seed": seed, "fit_models": fit_models}
    estimate = partial(_pair, replay, registered, arguments)
    with one_thread():  # here as elsewhere: the last bits are not to depend on where a pair is worked out
        pairs = spread("pair", estimate, list(permutations(versions, 2)))
    return Backtest(tuple(pairs), config.level)


def _why_no_pairs(replay: Replay, versions: list[str]) -> str:
    unnamed = int((replay.policy_versions == "").sum())
    if versions and not unnamed:
        written = counted(replay.n_episodes, "episode")
        return f"version '{versions[0]}' wrote all there is ({written}): there is no other to compare"
    if versions:
        return (
            f"version '{versions[0]}' wrote {counted(replay.n_episodes - unnamed, 'episode')}, and of "
            f"{counted(unnamed, 'episode')} no policy_version is known: log it, or map a column to it under [columns] "
            "in the contract"
        )
    return (
        f"no episode of {replay.n_episodes} names a policy_version: log it, or map a column to it under [columns] "
        "in the contract"
    )


def _pair(
    replay: Replay, registered: Mapping[str, Policy], arguments: Mapping[str, Any], names: tuple[str, str]
) -> BacktestPair:
    """The first of two versions estimated from the episodes of the other."""
    version, other = names
    own = replay.subset(replay.policy_versions == version)
    theirs = replay.subset(replay.policy_versions == other)
    common = np.intersect1d(own.nights, theirs.nights)
    written, their_nights = own, theirs.nights
    own = _at_most(own.subset(np.isin(own.nights, common)), arguments["seed"])
    theirs = _at_most(theirs.subset(np.isin(theirs.nights, common)), arguments["seed"])
    level = arguments["config"].level
    pair = BacktestPair(version, other, len(common), own.n_episodes, theirs.n_episodes)
    if not len(common):
        when = f"'{version}' wrote {_nights(written.nights)}, '{other}' {_nights(their_nights)}"
        return replace(pair, cause=f"no night in common: {when}, and between them the world may have changed")
    for name, episodes in ((version, own), (other, theirs)):
        n_clusters = len(np.unique(episodes.clusters))
        if episodes.n_episodes < FEWEST_EPISODES:
            wrote = f"'{name}' wrote {counted(episodes.n_episodes, 'episode')} in the nights in common"
            return replace(pair, cause=f"{wrote}, and it takes {FEWEST_EPISODES}")
        if n_clusters < 2:
            return replace(pair, cause=f"all episodes of '{name}' are one cluster, which has no interval")
    returns = on_policy_returns(own.rewards, own.offsets, own.contract.gamma)
    interval = student_t_interval(returns, own.clusters, level)
    earned = Span(float(returns.mean()), interval.low, interval.high)
    pair = replace(pair, earned=earned.value, earned_low=earned.low, earned_high=earned.high)
    try:
        known = _policy_of(version, own, written, registered, arguments)
        pair = replace(pair, source=known.source, note=known.note)
        evaluation = _as_the_gate(theirs, known.policy, arguments)
    except OfflineDqnError as error:
        return replace(pair, cause=_clause(str(error)))
    if known.error is not None:
        pair = replace(
            pair, model_error=known.error.value, model_error_low=known.error.low, model_error_high=known.error.high
        )
    return _judged(pair, evaluation, earned, known.error or Span(0.0, 0.0, 0.0))


def _judged(pair: BacktestPair, evaluation: Evaluation, earned: Span, error: Span) -> BacktestPair:
    found = tuple(
        _beside(e.estimator, e.value, e.interval, e.refused, earned, error)
        for e in evaluation.estimates
        if e.policy == "candidate"
    )
    overlap = next((o for o in evaluation.overlaps if o.policy == "candidate" and o.decides), None)
    deciding = next((e for e in found if e.estimator == evaluation.deciding_estimator), None)
    cause = deciding.cause if deciding else evaluation.propensities.refused or "no estimator decides"
    return replace(
        pair,
        n_from_episodes=evaluation.counts.n_episodes,
        effective_sample_size=overlap.effective_sample_size if overlap else None,
        deciding_estimator=evaluation.deciding_estimator,
        estimates=found,
        verdict=deciding.verdict if deciding else "cannot be judged",
        cause=cause,
    )


def _beside(
    name: str, value: float | None, interval: Any, refused: str | None, earned: Span, error: Span
) -> BacktestEstimate:
    """An estimate beside what was earned: covered where the interval of their difference contains 0."""
    if value is None or interval is None:
        return BacktestEstimate(
            name, None, None, None, None, None, None, "cannot be judged", _clause(refused or "there is no interval")
        )
    estimate = Span(value, interval.low, interval.high)
    difference = minus(minus(estimate, earned), error)
    verdict: BacktestVerdict = "covered" if difference.low <= 0.0 <= difference.high else "missed"
    return BacktestEstimate(
        name, value, interval.low, interval.high, difference.value, difference.low, difference.high, verdict
    )


def minus(one: Span, other: Span) -> Span:
    """Difference of two independent estimates, from their intervals alone; these may be asymmetric.

    Where the two share clusters their errors tend to go the same way, and the interval is wider than it need be.

    Source: Zou and Donner 2008, Construction of confidence limits about effect measures: a general approach, eq. 2.
    """
    value = one.value - other.value
    low = value - float(np.hypot(one.value - one.low, other.high - other.value))
    high = value + float(np.hypot(one.high - one.value, other.value - other.low))
    return Span(value, low, high)


def _as_the_gate(episodes: Replay, policy: Policy, arguments: Mapping[str, Any]) -> Evaluation:
    """`policy` judged on these episodes as a candidate, against what wrote them.

    Which estimator decides over many steps is a rule on other episodes: a share of them stays out for that.
    """
    split = np.full(episodes.n_episodes, GATE, dtype=np.int8)
    if episodes.lengths.max() > 1:
        split[deal_folds(episodes.clusters, _RULE_FOLDS, arguments["seed"]) == 0] = TRAIN
    return evaluate_candidate(
        replace(episodes, split=split),
        candidate=policy,
        baseline=None,
        version_zero=None,
        candidate_name="the other version",
        baseline_name="the logging policy",
        excluded={},
        **arguments,
    )


# --- the version's probabilities


@dataclass(frozen=True)
class _Known:
    """How a version acts. `error` is the value of `policy` minus that of the version; None where it is not known."""

    policy: Policy
    source: PolicySource
    error: Span | None
    note: str = ""


def _policy_of(
    version: str, own: Replay, written: Replay, registered: Mapping[str, Policy], arguments: Mapping[str, Any]
) -> _Known:
    """`own` are its episodes in the nights in common, `written` those of all nights."""
    exact = Span(0.0, 0.0, 0.0)
    if version in registered:
        return _Known(registered[version], "release", exact)
    if is_uniform(own):
        return _Known(_Uniform(own.contract), "uniform", exact)
    rest = own.subset(deal_folds(own.clusters, 2, arguments["seed"]) == 1)
    fitted_on = written.subset(~np.isin(written.clusters, rest.clusters))
    policy = model_of(_at_most(fitted_on, arguments["seed"]), arguments)
    if np.isnan(rest.behavior_prob).any() or own.contract.behavior.propensity == "estimated":
        return _Known(
            policy, "estimated", None,
            f"the probabilities of '{version}' are modelled, and none are logged to check the model by: a miss may be "
            "the model's",
        )  # fmt: skip
    difference = _as_the_gate(rest, policy, arguments).comparison("baseline")
    if difference is None or difference.value is None or difference.interval is None:
        cause = difference.refused if difference else "nothing decides"
        return _Known(
            policy, "estimated", None,
            f"the probabilities of '{version}' are modelled, and the model could not be checked on its own episodes "
            f"({_clause(cause or 'there is no interval')}): a miss may be the model's",
        )  # fmt: skip
    error = Span(difference.value, difference.interval.low, difference.interval.high)
    return _Known(policy, "estimated", error, f"the probabilities of '{version}' are modelled")


def is_uniform(episodes: Replay) -> bool:
    """Whether every logged probability is 1 / (actions available): a uniform draw."""
    n_available = episodes.available[: episodes.n_steps].sum(axis=1)
    apart = np.abs(episodes.behavior_prob * n_available - 1.0)  # NaN where not logged
    return bool(np.all(apart <= _UNIFORM_WITHIN)) and bool(np.any(n_available > 1))


def model_of(episodes: Replay, arguments: Mapping[str, Any]) -> Policy:
    """A behavior model of the one version that wrote these episodes, as a policy.

    Raises:
        PropensityError: it cannot be fitted.
    """
    if not episodes.n_steps:
        raise PropensityError("no episode is left to model the version's probabilities from")
    encoder = fit_encoder(episodes.contract, episodes.observations)
    model = fit_behavior_model(
        encoder.encode(episodes.observations)[: episodes.n_steps],
        episodes.actions,
        episodes.available[: episodes.n_steps],
        episodes.clusters[episodes.episode_of_step],
        config=arguments["config"].propensity,
        seed=arguments["seed"],
    )
    return _Modelled(episodes.contract, encoder, model)


class _Acts:
    """What policies without values and without a release have in common."""

    digest = ""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    @property
    def actions(self) -> tuple[str, ...]:
        return self.contract.actions.names

    def q_values(self, observations: Observations) -> None:  # noqa: ARG002  # part of the protocol
        return None

    def disagreement(self, observations: Observations) -> None:  # noqa: ARG002  # part of the protocol
        return None


class _Uniform(_Acts):
    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> Floats:  # noqa: ARG002
        return np.asarray(available / available.sum(axis=1, keepdims=True), dtype=np.float64)


class _Modelled(_Acts):
    def __init__(self, contract: Contract, encoder: Encoder, model: BehaviorModel) -> None:
        super().__init__(contract)
        self._encoder, self._model = encoder, model

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> Floats:
        return self._model.action_probs(self._encoder.encode(observations), available)


# --- episodes


def _at_most(episodes: Replay, seed: int) -> Replay:
    """The episodes of random clusters that together hold at most `_MOST_STEPS` steps, and of one in any case."""
    if episodes.n_steps <= _MOST_STEPS:
        return episodes
    clusters = cluster_codes(episodes.clusters)
    sizes = np.bincount(clusters, weights=episodes.lengths)
    order = np.random.default_rng(seed).permutation(len(sizes))
    n_kept = max(1, int(np.searchsorted(np.cumsum(sizes[order]), _MOST_STEPS, side="right")))
    return episodes.subset(np.isin(clusters, order[:n_kept]))


def _nights(nights: NDArray[np.datetime64]) -> str:
    first, last = nights.min(), nights.max()
    return f"on {first}" if first == last else f"from {first} to {last}"


def _clause(sentence: str) -> str:
    """A sentence as a clause: no capital at its start, no full stop."""
    return (sentence[:1].lower() + sentence[1:]).removesuffix(".")
