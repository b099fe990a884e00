"""Rules as a graph: the SQL that people write into rules, read from DuckDB's own syntax tree, with its nulls.

Understood are comparisons of numbers and of labels with constants, BETWEEN, IN, AND, OR, NOT, IS NULL, truth values, a
vector's component, and +, - and * of numbers. Anything else has no graph, and the policy then acts in numpy alone.

DuckDB reads 0.1 as a DECIMAL and computes with constants exactly, 0.1 + 0.2 = 0.3, where float64 does not; so
arithmetic and comparisons have a graph only where a column makes DOUBLE of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, NumericFeature, VectorFeature
from datasets.expressions import syntax_tree
from datasets.syntax import as_double, constant_of, feature_of, truth_value_of
from offline_dqn.rule_policy import RulePolicy

if TYPE_CHECKING:
    from offline_dqn.onnx_graph import Graph

_COMPARISONS = {
    "COMPARE_GREATERTHAN": "Greater",
    "COMPARE_GREATERTHANOREQUALTO": "GreaterOrEqual",
    "COMPARE_LESSTHAN": "Less",
    "COMPARE_LESSTHANOREQUALTO": "LessOrEqual",
    "COMPARE_EQUAL": "Equal",
    "COMPARE_NOTEQUAL": "Equal",  # and the two truth values change places
}
_EQUALITIES = ("COMPARE_EQUAL", "COMPARE_NOTEQUAL")
_ARITHMETIC = {"+": "Add", "-": "Sub", "*": "Mul"}

Truth = tuple[str, str]
"""Tensors (n, 1) bool: where a condition is true, and where it is false; null is neither."""
Number = tuple[str, str]
"""Tensors (n, 1) or of one element: the value as float64, and bool whether it is null."""


class _NoGraphError(Exception):
    """SQL that is not understood here."""


def has_graph(policy: RulePolicy) -> bool:
    """Whether every rule is understood."""
    from offline_dqn.onnx_graph import Graph

    try:
        for rule in policy.rules:
            _Condition(Graph(), policy.contract).truth(_tree(rule.when))
    except _NoGraphError:
        return False
    return True


def constants_of(policy: RulePolicy) -> list[float | str]:
    """Every number and label that a rule compares with."""
    return [value for rule in policy.rules for value in _constants(_tree(rule.when))]


def preferred(graph: Graph, policy: RulePolicy, names: Sequence[str], allowed: str) -> str:
    """(n, A) bool along `names`: the action of the first rule that is true and allowed, else any allowed one."""
    undecided = graph.constant(np.array([[True]]))
    taken: dict[str, str] = {}
    for when, action in [*((rule.when, rule.action) for rule in policy.rules), (None, policy.otherwise)]:
        column = graph.op("Gather", allowed, graph.axes(list(names).index(action)), axis=1)  # (n, 1)
        decides = graph.op("And", undecided, column)
        if when is not None:
            decides = graph.op("And", decides, _Condition(graph, policy.contract).truth(_tree(when))[0])
        taken[action] = graph.op("Or", taken[action], decides) if action in taken else decides
        undecided = graph.op("And", undecided, graph.op("Not", decides))
    nothing = graph.op("And", graph.op("Gather", allowed, graph.axes(0), axis=1), graph.constant(np.array([[False]])))
    columns = graph.op("Concat", *(taken.get(name, nothing) for name in names), axis=1)
    return graph.op("Or", columns, graph.op("And", undecided, allowed))


class _Condition:
    """Adds the nodes of one condition to a graph."""

    def __init__(self, graph: Graph, contract: Contract) -> None:
        self._graph, self._contract = graph, contract

    def truth(self, tree: dict[str, Any]) -> Truth:
        kind = tree["type"]
        if kind in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
            return self._joined([self.truth(child) for child in tree["children"]], kind == "CONJUNCTION_AND")
        if kind == "OPERATOR_NOT":
            yes, no = self.truth(tree["children"][0])
            return no, yes
        if kind in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
            null = self._null(tree["children"][0])
            present = self._graph.op("Not", null)
            return (null, present) if kind == "OPERATOR_IS_NULL" else (present, null)
        if kind == "COMPARE_BETWEEN":
            low = self._compared("COMPARE_GREATERTHANOREQUALTO", tree["input"], tree["lower"])
            high = self._compared("COMPARE_LESSTHANOREQUALTO", tree["input"], tree["upper"])
            return self._joined([low, high], True)
        if kind == "COMPARE_IN":
            tested, *members = tree["children"]
            return self._joined([self._compared("COMPARE_EQUAL", tested, member) for member in members], False)
        if kind in _COMPARISONS:
            return self._compared(kind, tree["left"], tree["right"])
        return self._boolean(tree)

    def _joined(self, parts: list[Truth], all_of_them: bool) -> Truth:
        yes, no = parts[0]
        for other_yes, other_no in parts[1:]:
            yes = self._graph.op("And" if all_of_them else "Or", yes, other_yes)
            no = self._graph.op("Or" if all_of_them else "And", no, other_no)
        return yes, no

    def _boolean(self, tree: dict[str, Any]) -> Truth:
        constant = truth_value_of(tree)
        if constant is not None:
            yes, no = (self._graph.constant(np.array([[value]])) for value in (constant, not constant))
            return yes, no
        name = feature_of(tree)
        if name is None or not isinstance(self._contract.features.get(name), BooleanFeature):
            raise _NoGraphError
        value, null = self._column(name)
        no = self._graph.op("Equal", value, self._graph.number(0.0))
        return self._graph.op("Not", self._graph.op("Or", no, null)), no

    def _compared(self, kind: str, left: dict[str, Any], right: dict[str, Any]) -> Truth:
        constant = truth_value_of(right)
        if constant is not None and kind in _EQUALITIES:
            yes, no = self.truth(left)
            return (yes, no) if constant == (kind == "COMPARE_EQUAL") else (no, yes)
        name = feature_of(left)
        if isinstance(self._contract.features.get(name or ""), CategoricalFeature):
            label = constant_of(right)
            # The graph takes a missing label as "", so that it cannot tell the label "" from it.
            if name is None or not isinstance(label, str) or not label or kind not in _EQUALITIES:
                raise _NoGraphError
            (a, null_a), (b, null_b) = self._code(name, label), (self._graph.axes(0), None)
        else:
            (a, null_a), (b, null_b) = self._numbers(left, right)
        null = null_a if null_b is None else self._graph.op("Or", null_a, null_b)
        known, holds = self._graph.op("Not", null), self._graph.op(_COMPARISONS[kind], a, b)
        yes = self._graph.op("And", known, holds)
        no = self._graph.op("And", known, self._graph.op("Not", holds))
        return (no, yes) if kind == "COMPARE_NOTEQUAL" else (yes, no)

    def _code(self, name: str, label: str) -> Number:
        """(n, 1) 0 where a categorical feature has the label; and whether it is missing."""
        graph = self._graph
        codes = graph.op(
            "LabelEncoder",
            graph.feature(name, self._contract.features[name]),
            domain="ai.onnx.ml",
            keys_strings=["", label] if label else [""],
            values_int64s=[-1, 0] if label else [-1],
            default_int64=1,
        )
        codes = graph.op("Unsqueeze", codes, graph.axes(1))
        return codes, graph.op("Equal", codes, graph.axes(-1))

    def _numbers(self, left: dict[str, Any], right: dict[str, Any]) -> tuple[Number, Number]:
        """Both sides of an operation that is done in float64, as one of them at least is no constant."""
        if constant_of(left) is not None and constant_of(right) is not None:
            raise _NoGraphError
        return self._number(left), self._number(right)

    def _number(self, tree: dict[str, Any]) -> Number:
        graph, value = self._graph, constant_of(tree)
        if isinstance(value, float):
            if value != as_double(tree["literal"]["text"]):
                raise _NoGraphError
            return graph.number(value), graph.constant(np.array(False))
        arguments = tree.get("arguments", ())
        if tree.get("function_name") in _ARITHMETIC and len(arguments) == 2:
            (a, null_a), (b, null_b) = self._numbers(*(argument["expression"] for argument in arguments))
            return graph.op(_ARITHMETIC[tree["function_name"]], a, b), graph.op("Or", null_a, null_b)
        if tree["type"] == "ARRAY_EXTRACT":
            return self._component(*tree["children"])
        name = feature_of(tree)
        if name is None or not isinstance(self._contract.features.get(name), NumericFeature):
            raise _NoGraphError
        return self._column(name)

    def _component(self, vector: dict[str, Any], index: dict[str, Any]) -> Number:
        name, position = feature_of(vector), constant_of(index)
        feature = self._contract.features.get(name or "")
        if name is None or not isinstance(feature, VectorFeature) or position not in range(1, feature.length + 1):
            raise _NoGraphError
        assert isinstance(position, float)
        values = self._graph.feature(name, feature)
        column = self._graph.op("Gather", values, self._graph.axes(int(position) - 1), axis=1)
        return column, self._graph.op("IsNaN", column)

    def _column(self, name: str) -> Number:
        values = self._graph.feature(name, self._contract.features[name])
        column = self._graph.op("Unsqueeze", values, self._graph.axes(1))
        return column, self._graph.op("IsNaN", column)

    def _null(self, tree: dict[str, Any]) -> str:
        name = feature_of(tree)
        feature = self._contract.features.get(name or "")
        if name is not None and isinstance(feature, CategoricalFeature):
            return self._code(name, "")[1]
        if name is not None and isinstance(feature, NumericFeature | BooleanFeature):
            return self._column(name)[1]
        raise _NoGraphError


def _tree(condition: str) -> dict[str, Any]:
    tree = syntax_tree(condition)
    assert tree is not None  # RulePolicy refuses such a rule
    return tree


def _constants(tree: Any) -> Iterator[float | str]:
    if isinstance(tree, list):
        for child in tree:
            yield from _constants(child)
    elif isinstance(tree, dict):
        value = constant_of(tree)
        if value is not None:
            yield value
        for child in tree.values():
            yield from _constants(child)
