"""Policies so simple that a learned one has to beat them: always the same action, and a small tree of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, NumericFeature, VectorFeature
from datasets.duck import literal, quoted
from datasets.observations import MISSING_CODE, Observations
from datasets.replay import Replay
from offline_dqn.rule_policy import Rule, RulePolicy

_DEPTH = 3
_MOST_ROWS = 200_000
"""Steps that the tree is fitted to, evenly spaced: eight leaves need no more."""


def constant_policies(contract: Contract, exploration: float) -> Mapping[str, RulePolicy]:
    """By name, a policy for each action that always takes it (any other where it is not available)."""
    return {
        f"always {action}": RulePolicy(contract=contract, rules=(), otherwise=action, exploration=exploration)
        for action in contract.actions.names
    }


def tree_policy(replay: Replay, exploration: float) -> RulePolicy:
    """A tree of depth 3 fitted to the logged actions, as rules that a person can read.

    Numbers are compared with thresholds, labels with equality; what is missing counts as "no" everywhere. Images are
    not asked about; where the contract has nothing else, the action that was logged most is always taken.

    Source: Breiman et al. 1984, Classification and Regression Trees; behavior cloning in its most readable form.
    Differs from it: fitted to the ranks of numbers, so that neither their size nor outliers matter.
    """
    contract = replay.contract
    steps = np.arange(0, replay.n_steps, -(-replay.n_steps // _MOST_ROWS))
    smallest = max(1, len(steps) // 200)
    questions = _questions(contract, replay.observations.take(steps), smallest)
    if not questions:
        most = contract.actions.names[int(np.bincount(replay.actions[steps]).argmax())]
        return RulePolicy(contract=contract, rules=(), otherwise=most, exploration=exploration)
    tree = DecisionTreeClassifier(max_depth=_DEPTH, min_samples_leaf=smallest, random_state=0)
    tree.fit(np.stack([question.answers for question in questions], axis=1), replay.actions[steps])
    rules = _rules(tree, questions, contract.actions.names)
    return RulePolicy(contract=contract, rules=rules[:-1], otherwise=rules[-1].action, exploration=exploration)


@dataclass(frozen=True)
class _Question:
    """What the tree may ask.

    Attributes:
        sql: a condition, or a number where there are `levels`.
        answers: (n,) float32, 1 for "yes", or how many of the levels do not exceed the number: 0 where it is missing.
        levels: the distinct values of the number, ascending.
    """

    sql: str
    answers: NDArray[np.float32]
    levels: NDArray[np.float64] | None = None

    def yes(self, threshold: float) -> str:
        """SQL that is true where the answer exceeds the threshold, and not where it is unknown."""
        if self.levels is None:
            return self.sql
        n_below = int(threshold)
        if n_below == 0:
            return f"{self.sql} IS NOT NULL"
        low, high = float(self.levels[n_below - 1]), float(self.levels[n_below])
        middle = low / 2 + high / 2
        return f"{self.sql} > {middle if low <= middle < high else low!r}"


def _questions(contract: Contract, observations: Observations, smallest: int) -> list[_Question]:
    """All but of labels that too few rows have: no leaf could hold them alone."""
    questions: list[_Question] = []
    for name, feature in contract.features.items():
        values, column = observations.columns[name], f"observation.{quoted(name)}"
        if isinstance(feature, CategoricalFeature):
            codes, counts = np.unique(values[values != MISSING_CODE], return_counts=True)
            for code in codes[counts >= smallest]:
                label = _label_literal(observations.vocabularies[name][code])
                questions.append(_Question(f"{column} = {label}", (values == code).astype(np.float32)))
        elif isinstance(feature, BooleanFeature):
            questions.append(_Question(column, np.nan_to_num(values, nan=0.0).astype(np.float32)))
        elif isinstance(feature, VectorFeature):
            questions += [_compared(f"{column}[{i + 1}]", values[:, i]) for i in range(feature.length)]
        elif isinstance(feature, NumericFeature):
            questions.append(_compared(column, values))
    return questions


def _compared(sql: str, values: NDArray[np.float64]) -> _Question:
    """Ranks are exact in float32, in which the tree computes; numbers would overflow there, or fall together."""
    known = np.isfinite(values)
    levels, ranks = np.unique(values[known], return_inverse=True)
    answers = np.zeros(len(values), dtype=np.float32)
    answers[known] = ranks + 1
    return _Question(sql, answers, levels)


def _label_literal(label: str) -> str:
    """An SQL string; DuckDB's parser ends at a zero byte, so that one is written as what gives it."""
    return " || chr(0) || ".join(literal(part) for part in label.split("\0"))


def _rules(tree: Any, questions: list[_Question], actions: tuple[str, ...]) -> tuple[Rule, ...]:
    """One rule per leaf, those that say "yes" first; the last leaf is what is left, its condition is not needed."""
    nodes = tree.tree_
    rules: list[Rule] = []

    def choices(node: int) -> set[int]:
        """What the leaves below a node do; branches that agree need no question."""
        if nodes.children_left[node] == -1:
            return {int(tree.classes_[int(nodes.value[node][0].argmax())])}
        return choices(int(nodes.children_left[node])) | choices(int(nodes.children_right[node]))

    def descend(node: int, conditions: tuple[str, ...]) -> None:
        found = choices(node)
        if len(found) == 1:
            rules.append(Rule(when=" AND ".join(conditions) or "true", action=actions[found.pop()]))
            return
        yes = questions[nodes.feature[node]].yes(float(nodes.threshold[node]))
        descend(int(nodes.children_right[node]), (*conditions, yes))
        descend(int(nodes.children_left[node]), conditions)

    descend(0, ())
    return tuple(rules)
