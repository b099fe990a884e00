"""The contract's conditions on the steps of a log: what is forbidden, what was breached, what succeeded.

DuckDB evaluates them, a block of rows at a time, over `observation`, `action` and `next_observation`. A condition that
is null is not true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.errors import RowError
from datasets.expressions import mentioned_fields
from datasets.observation_sql import evaluate_on, failing_row, observation_structs
from datasets.observations import Observations

_BLOCK = 50_000
"""Rows that DuckDB sees at a time."""

Masks = NDArray[np.bool_]


class ConstraintError(RowError):
    """A condition of the contract that fails on a row of the log, or cannot hold for it."""


@dataclass(frozen=True)
class Judged:
    """One condition on T steps.

    Attributes:
        true: (T,) bool, where it is true.
        known: (T,) bool, where it is true or false; elsewhere it is null, such as for a comparison with a missing
            measurement.
        ended: (T,) bool, where it is null and asks for the observation after the last of an episode, which there is
            none of; None: nowhere.
    """

    true: Masks
    known: Masks
    ended: Masks | None = None

    @property
    def unanswered(self) -> Masks:
        """(T,) bool, where it is null although the step has all that the condition asks for, such as a measurement that
        failed."""
        return ~self.known if self.ended is None else ~self.known & ~self.ended

    def charged(self, *, as_true: bool) -> Judged:
        """The same with what is unanswered taken for true, or for false: never left out."""
        unanswered = self.unanswered
        return Judged(self.true | unanswered if as_true else self.true, self.known | unanswered, self.ended)


def forbidden_actions(contract: Contract, observations: Observations) -> dict[str, Masks]:
    """(n, A) for each constraint that forbids, by name: whether it forbids the action at the observation.

    Raises:
        ConstraintError: a condition fails on a row.
    """
    n, names = len(observations), contract.actions.names
    found = {name: np.zeros((n, len(names)), dtype=bool) for name in contract.forbids}
    if not found:
        return found
    fields = _mentioned(contract.forbids.values(), "observation")
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        structs = observation_structs(contract, _part(observations, rows, fields), only=fields)
        size = len(rows)  # one query for all actions: every observation stands there once for each
        table = _table(pa.concat_arrays([structs] * len(names)), np.repeat(np.array(names, dtype=object), size))
        place = lambda row: f"row {start + row % size} of {n}"  # noqa: B023, E731  # used at once
        judged = _evaluated(contract.forbids, table, place, place)
        for name, condition in judged.items():
            found[name][rows] = condition.true.reshape(len(names), size).T
    return found


def permitted_actions(contract: Contract, observations: Observations, available: Masks) -> Masks:
    """(n, A) what the shield lets through: available and not forbidden; where nothing is, the safe action alone.

    Args:
        contract: whose constraints hold; it is the current one that counts.
        observations: n rows.
        available: (n, A) bool.

    Raises:
        ConstraintError: a condition fails on a row.
    """
    if not contract.forbids:
        return available
    permitted = np.array(available)
    for forbidden in forbidden_actions(contract, observations).values():
        permitted &= ~forbidden
    assert contract.actions.safe is not None  # a contract that forbids names it
    nothing = ~permitted.any(axis=1)
    permitted[nothing, contract.actions.names.index(contract.actions.safe)] = True
    return permitted


def judge_steps(
    contract: Contract,
    conditions: Mapping[str, str],
    *,
    observations: Observations,
    actions: NDArray[np.int64],
    next_row: NDArray[np.int64],
    place: Callable[[int], str],
) -> dict[str, Judged]:
    """Each condition at each of T steps, by name.

    Args:
        contract: names the features and actions.
        conditions: SQL by name, over `observation`, `action` and `next_observation`.
        observations: M >= T rows; row t is step t's.
        actions: (T,) index into the contract's actions.
        next_row: (T,) row of `observations` that follows, -1 where none is known, at an episode's last step: there
            `next_observation` is null, and a condition on it `ended`.
        place: names a step in errors.

    Raises:
        ConstraintError: a condition fails on a step.
    """
    n = len(actions)
    found = {name: Judged(np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)) for name in conditions}
    if not found:
        return found
    asking = {name for name, text in conditions.items() if mentioned_fields(text, "next_observation") != frozenset()}
    labels = np.array(contract.actions.names, dtype=object)
    fields, next_fields = (_mentioned(conditions.values(), s) for s in ("observation", "next_observation"))
    for start in range(0, n, _BLOCK):
        steps = np.arange(start, min(start + _BLOCK, n))
        following = next_row[steps]
        structs = observation_structs(contract, _part(observations, steps, fields), only=fields)
        next_structs = observation_structs(
            contract, _part(observations, np.maximum(following, 0), next_fields), only=next_fields, absent=following < 0
        )
        table = _table(structs, labels[actions[steps]]).append_column("next_observation", next_structs)
        # A place names an episode, which is as little for everybody as the row.
        judged_here = _evaluated(conditions, table, lambda row: place(start + row), lambda _: "a step")  # noqa: B023  # used at once
        for name, condition in judged_here.items():
            found[name].true[steps], found[name].known[steps] = condition.true, condition.known
    ended = np.asarray(next_row) < 0
    return {
        name: replace(judged, ended=ended & ~judged.known) if name in asking else judged
        for name, judged in found.items()
    }


def _mentioned(expressions: Iterable[str], struct: str) -> frozenset[str] | None:
    """Fields of a struct that any of the expressions reads; None where one reads it whole."""
    found = [mentioned_fields(expression, struct) for expression in expressions]
    known = [fields for fields in found if fields is not None]
    return frozenset().union(*known) if len(known) == len(found) else None


def _part(observations: Observations, rows: NDArray[np.int64], fields: frozenset[str] | None) -> Observations:
    """The given rows of the features that are read, and one in any case."""
    names = [name for name in observations.columns if fields is None or name.lower() in fields]
    names = names or list(observations.columns)[:1]
    return Observations({name: observations.columns[name][rows] for name in names}, observations.vocabularies)


def _table(structs: pa.StructArray, actions: Sequence[str] | NDArray[np.object_]) -> pa.Table:
    row = pa.array(np.arange(len(structs)))
    return pa.table({"row": row, "observation": structs, "action": pa.array(actions, type=pa.string())})


def _evaluated(
    conditions: Mapping[str, str], table: pa.Table, place: Callable[[int], str], plain_place: Callable[[int], str]
) -> dict[str, Judged]:
    """Each condition on a table's rows.

    Args:
        place: names a row in an error's text.
        plain_place: names it where nothing of the data may stand.
    """
    try:
        values = evaluate_on(table, list(conditions.values()), "BOOLEAN")
    except duckdb.Error as error:
        raise _failure(conditions, table, place, plain_place, error) from error
    masked: list[np.ma.MaskedArray[Any, Any]] = [np.ma.asarray(v, dtype=bool) for v in values]
    return {
        name: Judged(np.ma.filled(value, False), ~np.ma.getmaskarray(value))
        for name, value in zip(conditions, masked, strict=True)
    }


def _failure(
    conditions: Mapping[str, str],
    table: pa.Table,
    place: Callable[[int], str],
    plain_place: Callable[[int], str],
    error: duckdb.Error,
) -> ConstraintError:
    message, kind = str(error).splitlines()[0], type(error).__name__  # DuckDB's own text quotes values
    for name, condition in conditions.items():
        row = failing_row(table, condition, "BOOLEAN")
        if row is not None:
            values = {key: value for key, value in table.slice(row, 1).to_pylist()[0].items() if key != "row"}
            remedy = "Write it in the contract so that it holds for every row, for instance with TRY_CAST."
            return ConstraintError(
                f"{name}, `{condition}`, fails in {place(row)}, {values}: {message}. {remedy}",
                f"{name}, `{condition}`, fails in {plain_place(row)} ({kind}). {remedy}",
            )
    said = f"the contract's conditions fail on {len(table)} rows"
    return ConstraintError(f"{said}: {message}.", f"{said} ({kind}).")
