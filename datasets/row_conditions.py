"""Conditions on one observation as plain Python, compiled from DuckDB's own syntax tree.

A server decides one row at a time, for which a query costs a thousand times what this does. Understood is what
`offline_dqn.rule_graph` understands, and `coalesce`; whatever else a condition says is left to DuckDB, and so is a row
whose arithmetic leaves the numbers that DOUBLE has.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, NumericFeature, VectorFeature
from datasets.expressions import syntax_tree
from datasets.syntax import as_double, constant_of, feature_of, truth_value_of

Record = Mapping[str, Any]
"""One observation: float, text of a label, bool, list of float; what is None or absent is missing."""
Condition = Callable[[Record], bool | None]
"""True, false, or None where SQL says null."""


class NotANumberError(ArithmeticError):
    """Arithmetic of this row has no finite result: DuckDB has to say what becomes of it."""


class _NotUnderstoodError(Exception):
    """SQL that is left to DuckDB."""


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "COMPARE_GREATERTHAN": operator.gt,
    "COMPARE_GREATERTHANOREQUALTO": operator.ge,
    "COMPARE_LESSTHAN": operator.lt,
    "COMPARE_LESSTHANOREQUALTO": operator.le,
    "COMPARE_EQUAL": operator.eq,
    "COMPARE_NOTEQUAL": operator.ne,
}
_EQUALITIES = ("COMPARE_EQUAL", "COMPARE_NOTEQUAL")
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}

_Value = Callable[[Record], Any]
_Truth = bool | None | Condition
"""A condition, or what it always is: what is known when it is compiled costs nothing later."""


def compile_condition(expression: str, contract: Contract, action: str | None = None) -> Condition | None:
    """The condition as a function of one record; None where DuckDB has to be asked.

    Args:
        expression: SQL over `observation`, and over `action` where one is given.
        contract: names the features.
        action: the label that `action` stands for.

    The function raises a NotANumberError for a row that DuckDB has to be asked about.
    """
    tree = syntax_tree(expression)
    if tree is None:
        return None
    try:
        truth = _Compiler(contract, action).truth(tree)
    except _NotUnderstoodError:
        return None
    return truth if callable(truth) else lambda _: truth


class _Compiler:
    """Turns syntax trees into functions."""

    def __init__(self, contract: Contract, action: str | None) -> None:
        self._features = {name.lower(): (name, feature) for name, feature in contract.features.items()}
        self._action = action

    def truth(self, tree: dict[str, Any]) -> _Truth:
        kind = tree["type"]
        if kind in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
            return _joined([self.truth(child) for child in tree["children"]], decisive=kind == "CONJUNCTION_OR")
        if kind == "OPERATOR_NOT":
            return _negated(self.truth(tree["children"][0]))
        if kind in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
            return self._nullness(tree["children"][0], kind == "OPERATOR_IS_NULL")
        if kind == "COMPARE_BETWEEN":
            low = self._compared("COMPARE_GREATERTHANOREQUALTO", tree["input"], tree["lower"])
            high = self._compared("COMPARE_LESSTHANOREQUALTO", tree["input"], tree["upper"])
            return _joined([low, high], decisive=False)
        if kind == "COMPARE_IN":
            tested, *members = tree["children"]
            return _joined([self._compared("COMPARE_EQUAL", tested, m) for m in members], decisive=True)
        if kind == "OPERATOR_COALESCE":
            return _first_known([self.truth(child) for child in tree["children"]])
        if kind in _COMPARISONS:
            return self._compared(kind, tree["left"], tree["right"])
        constant = truth_value_of(tree)
        return constant if constant is not None else self._feature(tree, BooleanFeature)

    def _compared(self, kind: str, left: dict[str, Any], right: dict[str, Any]) -> _Truth:
        if self._is_action(left):
            label = constant_of(right)
            if not isinstance(label, str) or kind not in _EQUALITIES:
                raise _NotUnderstoodError
            return _COMPARISONS[kind](self._action, label)
        constant = truth_value_of(right)
        if constant is not None and kind in _EQUALITIES:
            truth = self.truth(left)
            return truth if constant == (kind == "COMPARE_EQUAL") else _negated(truth)
        name = feature_of(left)
        if name is not None and isinstance(self._features.get(name.lower(), ("", None))[1], CategoricalFeature):
            label = constant_of(right)
            if not isinstance(label, str) or kind not in _EQUALITIES:
                raise _NotUnderstoodError
            return _comparison(_COMPARISONS[kind], self._feature(left, CategoricalFeature), lambda _: label)
        if isinstance(constant_of(left), float) and isinstance(constant_of(right), float):
            raise _NotUnderstoodError  # DuckDB computes with constants exactly
        return _comparison(_COMPARISONS[kind], self._number(left), self._number(right))

    def _number(self, tree: dict[str, Any]) -> _Value:
        value = constant_of(tree)
        if isinstance(value, float):
            if value != as_double(tree["literal"]["text"]):
                raise _NotUnderstoodError
            return lambda _: value
        arguments = tree.get("arguments", ())
        if tree.get("function_name") in _ARITHMETIC and len(arguments) == 2:
            left, right = (argument["expression"] for argument in arguments)
            if constant_of(left) is not None and constant_of(right) is not None:
                raise _NotUnderstoodError
            return _arithmetic(_ARITHMETIC[tree["function_name"]], self._number(left), self._number(right))
        if tree["type"] == "OPERATOR_COALESCE" and any(constant_of(c) is None for c in tree["children"]):
            return _first_present([self._number(child) for child in tree["children"]])
        if tree["type"] == "ARRAY_EXTRACT":
            return self._component(*tree["children"])
        return self._feature(tree, NumericFeature)

    def _component(self, vector: dict[str, Any], index: dict[str, Any]) -> _Value:
        values, position = self._feature(vector, VectorFeature), constant_of(index)
        length = getattr(self._features[str(feature_of(vector)).lower()][1], "length", 0)
        if not isinstance(position, float) or position not in range(1, length + 1):
            raise _NotUnderstoodError
        place = int(position) - 1

        def component(record: Record) -> Any:
            found = values(record)
            return None if found is None else found[place]

        return component

    def _nullness(self, tree: dict[str, Any], wanted: bool) -> Condition:
        value = self._feature(tree, NumericFeature | BooleanFeature | CategoricalFeature | VectorFeature)
        return lambda record: (value(record) is None) == wanted

    def _feature(self, tree: dict[str, Any], kinds: Any) -> _Value:
        name = feature_of(tree)
        known, feature = self._features.get((name or "").lower(), ("", None))
        if not isinstance(feature, kinds):
            raise _NotUnderstoodError
        return lambda record: record.get(known)

    def _is_action(self, tree: dict[str, Any]) -> bool:
        return self._action is not None and [name.lower() for name in tree.get("column_names", ())] == ["action"]


def _comparison(holds: Callable[[Any, Any], bool], left: _Value, right: _Value) -> Condition:
    def compared(record: Record) -> bool | None:
        a, b = left(record), right(record)
        return None if a is None or b is None else holds(a, b)

    return compared


def _arithmetic(operation: Callable[[float, float], float], left: _Value, right: _Value) -> _Value:
    def computed(record: Record) -> float | None:
        a, b = left(record), right(record)
        if a is None or b is None:
            return None
        value = operation(a, b)
        if not math.isfinite(value):
            raise NotANumberError
        return value

    return computed


def _first_present(values: list[_Value]) -> _Value:
    return lambda record: next((found for value in values if (found := value(record)) is not None), None)


def _negated(truth: _Truth) -> _Truth:
    if not callable(truth):
        return None if truth is None else not truth
    condition = truth

    def negated(record: Record) -> bool | None:
        found = condition(record)
        return None if found is None else not found

    return negated


def _joined(parts: list[_Truth], *, decisive: bool) -> _Truth:
    """AND (decisive is False) or OR (True) of SQL: the decisive value wins, then null, then the other."""
    if any(part is decisive for part in parts):
        return decisive
    known_null = any(part is None for part in parts)
    conditions = [part for part in parts if callable(part)]
    otherwise = None if known_null else not decisive
    if not conditions:
        return otherwise
    if len(conditions) == 1 and not known_null:
        return conditions[0]

    def joined(record: Record) -> bool | None:
        result = otherwise
        for condition in conditions:
            found = condition(record)
            if found is decisive:
                return decisive
            if found is None:
                result = None
        return result

    return joined


def _first_known(parts: list[_Truth]) -> _Truth:
    def first(record: Record) -> bool | None:
        for part in parts:
            found = part(record) if callable(part) else part
            if found is not None:
                return found
        return None

    return first
