"""A policy asked about records: by numpy as it is evaluated, by onnxruntime, or by rules compiled to Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, ImageFeature, VectorFeature
from datasets.images import image_rows
from datasets.observations import observations_of_checked
from datasets.row_conditions import Condition, NotANumberError, Record, compile_condition
from offline_dqn.decisions import Scorer, Scores
from offline_dqn.exploration import allowed_actions, explore
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
        return Scores(probs, self._policy.q_values(observations))


class OnnxScorer:
    """A policy whose graph holds all of it.

    Args:
        policy: names the actions.
        graph: its graph.
    """

    def __init__(self, policy: AnyPolicy, graph: OnnxPolicy) -> None:
        self._graph, self._features = graph, policy.contract.features
        self.actions = policy.actions
        self.known = known_actions(policy)
        self._columns = [policy.actions.index(name) for name in graph.actions]
        self._is_whole_axis = self._columns == list(range(len(self.actions)))

    def score(self, records: Sequence[Record], permitted: NDArray[np.bool_]) -> Scores:
        """As `Scorer` says."""
        feeds = {name: _fed(self._features[name], [r.get(name) for r in records]) for name in self._graph.features}
        if self._is_whole_axis:
            return Scores(*self._graph.run(feeds, permitted))
        own_probs, own_q = self._graph.run(feeds, permitted[:, self._columns])
        probs = np.zeros(permitted.shape)
        probs[:, self._columns] = own_probs
        if own_q is None:
            return Scores(probs)
        q_values = np.full(permitted.shape, -np.inf)
        q_values[:, self._columns] = own_q
        return Scores(probs, q_values)


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
    if graph is not None and graph[1]["whole"]:
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
