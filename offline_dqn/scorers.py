"""A policy asked about records: by numpy as it is evaluated, by onnxruntime, or by rules compiled to Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, ImageFeature, VectorFeature
from datasets.images import image_rows
from datasets.observations import Observations, observations_of_checked
from datasets.row_conditions import Condition, NotANumberError, Record, compile_condition
from offline_dqn.decisions import Scorer, Scores
from offline_dqn.exploration import allowed_actions, explore
from offline_dqn.guarded import GuardedPolicy, fallback_reasons
from offline_dqn.mixture import MixturePolicy
from offline_dqn.onnx_policy import OnnxPolicy
from offline_dqn.policy import AnyPolicy
from offline_dqn.rule_policy import RulePolicy


class NumpyScorer:
    """Any policy, as it is evaluated."""

    def __init__(self, policy: AnyPolicy) -> None:
        self._policy = policy
        self.actions = policy.actions
        self.known = known_actions(policy)

    def score(self, records: Sequence[Record], permitted: NDArray[np.bool_]) -> Scores:
        """As `Scorer` says."""
        observations = observations_of_checked(self._policy.contract, records)
        probs = np.asarray(self._policy.action_probs(observations, permitted), dtype=np.float64)
        return Scores(
            probs, self._policy.q_values(observations), fallback_reasons(self._policy, observations, permitted)
        )


class OnnxScorer:
    """A policy by its graph; what the graph leaves out, rules that have none, is added by numpy.

    Args:
        policy: names the actions.
        graph: its graph.
    """

    def __init__(self, policy: AnyPolicy, graph: OnnxPolicy) -> None:
        self._policy, self._graph, self._features = policy, graph, policy.contract.features
        self.actions = policy.actions
        self.known = known_actions(policy)
        self._columns = [policy.actions.index(name) for name in graph.actions]
        self._is_whole_axis = self._columns == list(range(len(self.actions)))
        self._able = known_actions(policy.fallback) if isinstance(policy, GuardedPolicy) else self.known

    def score(self, records: Sequence[Record], permitted: NDArray[np.bool_]) -> Scores:
        """As `Scorer` says."""
        feeds = {name: _fed(self._features[name], [r.get(name) for r in records]) for name in self._graph.features}
        found = self._graph.run(feeds, permitted if self._is_whole_axis else permitted[:, self._columns])
        probs = self._along_actions(found.probs, 0.0)
        q_values = None if found.q_values is None else self._along_actions(found.q_values, -np.inf)
        reasons = found.reasons
        if reasons is not None:
            reasons = np.where((permitted & self._able).any(axis=1), reasons, "")
        if self._graph.depth:
            observations = observations_of_checked(self._policy.contract, records)
            probs = _with_the_rest(self._policy, self._graph.depth, probs, reasons, observations, permitted)
        return Scores(probs, q_values, None if reasons is None else reasons.tolist())

    def _along_actions(self, own: NDArray[np.float64], unknown: float) -> NDArray[np.float64]:
        if self._is_whole_axis:
            return own
        spread = np.full((len(own), len(self.actions)), unknown)
        spread[:, self._columns] = own
        return spread


def _with_the_rest(
    policy: AnyPolicy,
    depth: int,
    probs: NDArray[np.float64],
    reasons: NDArray[np.str_] | None,
    observations: Observations,
    permitted: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """(n, A) of a policy of whose `depth`-th own part these are the probabilities."""
    if depth == 0:
        return probs
    assert isinstance(policy, GuardedPolicy | MixturePolicy)
    own = _with_the_rest(policy.own, depth - 1, probs, None, observations, permitted)
    if isinstance(policy, MixturePolicy):
        mixed: NDArray[np.float64] = policy.share * own
        return mixed + (1.0 - policy.share) * policy.partner.action_probs(observations, permitted)
    assert reasons is not None  # only the outermost policy has a guard, beside partners that are whole
    rows = np.flatnonzero(reasons != "")
    if len(rows):
        own = own.copy()
        own[rows] = policy.fallback.action_probs(observations.take(rows), permitted[rows])
    return own


class CompiledRules:
    """Rules of which every condition is understood: as `RulePolicy.action_probs`, microseconds a row."""

    def __init__(self, policy: RulePolicy, conditions: Sequence[Condition]) -> None:
        self._policy = policy
        self.actions = policy.actions
        self.known = known_actions(policy)
        self._rules = [
            (policy.actions.index(rule.action), condition)
            for rule, condition in zip(policy.rules, conditions, strict=True)
        ]
        self._otherwise = policy.actions.index(policy.otherwise)

    def score(self, records: Sequence[Record], permitted: NDArray[np.bool_]) -> Scores:
        """As `Scorer` says."""
        allowed = allowed_actions(permitted, self.known, len(records))
        preferred = np.zeros(allowed.shape)
        try:
            for row, record in enumerate(records):
                chosen = self._chosen(record, allowed[row])
                if chosen is None:
                    preferred[row] = allowed[row] / allowed[row].sum()
                else:
                    preferred[row, chosen] = 1.0
        except NotANumberError:
            return NumpyScorer(self._policy).score(records, permitted)
        return Scores(explore(preferred, allowed, self._policy.exploration))

    def _chosen(self, record: Record, allowed: NDArray[np.bool_]) -> int | None:
        for action, condition in self._rules:
            if allowed[action] and condition(record):
                return action
        return self._otherwise if allowed[self._otherwise] else None


def scorer_of(policy: AnyPolicy, graph: tuple[bytes, Mapping[str, Any]] | None = None) -> Scorer:
    """The quickest engine for a policy.

    Args:
        policy: what acts.
        graph: content and description of its `policy.onnx`; None where it has none.
    """
    if isinstance(policy, RulePolicy):
        conditions = [compile_condition(rule.when, policy.contract) for rule in policy.rules]
        if all(conditions):
            return CompiledRules(policy, [condition for condition in conditions if condition is not None])
    if graph is not None:
        return OnnxScorer(policy, OnnxPolicy(policy.contract, *graph))
    return NumpyScorer(policy)


def known_actions(policy: AnyPolicy) -> NDArray[np.bool_]:
    """(A,) which of the actions its contract has."""
    return np.isin(policy.actions, policy.contract.actions.names)


def _fed(feature: Any, values: list[Any]) -> NDArray[Any]:
    """A feature of records as the graph takes it."""
    if isinstance(feature, CategoricalFeature):
        return np.array(["" if value is None else value for value in values], dtype=object)
    if isinstance(feature, VectorFeature):
        blank = [np.nan] * feature.length
        return np.array([blank if value is None else value for value in values], dtype=np.float64)
    if isinstance(feature, ImageFeature):
        return image_rows(values, feature)
    return np.array(values, dtype=np.float64)  # None becomes NaN
