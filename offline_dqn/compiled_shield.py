"""The shield for few rows at a time: the contract's forbidding conditions, compiled once, microseconds a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import observations_of_checked
from datasets.row_conditions import Condition, NotANumberError, Record, compile_condition
from datasets.step_rules import forbidden_actions


class CompiledShield:
    """What a contract forbids, as `datasets.step_rules.forbidden_actions` says it.

    Attributes:
        asked_of_duckdb: names of the constraints that are not understood here: DuckDB answers them, in milliseconds.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._conditions: dict[str, list[tuple[int, Condition]]] = {}
        self.asked_of_duckdb: tuple[str, ...] = ()
        for name, expression in contract.forbids.items():
            compiled = [compile_condition(expression, contract, action) for action in contract.actions.names]
            if all(compiled):
                self._conditions[name] = [(a, c) for a, c in enumerate(compiled) if c is not None]
            else:
                self.asked_of_duckdb += (name,)

    def forbidden(self, records: Sequence[Record]) -> dict[str, NDArray[np.bool_]]:
        """(n, A) bool by constraint, whether it forbids the action at the row; in the order of the contract.

        Args:
            records: n observations of the contract, nothing wrong in them.

        Raises:
            ConstraintError: a condition fails on a row.
        """
        names = self._contract.forbids
        if not names:
            return {}
        if self.asked_of_duckdb:
            return self._by_duckdb(records)
        shape = (len(records), len(self._contract.actions.names))
        found = {name: np.zeros(shape, dtype=bool) for name in names}
        try:
            for name, conditions in self._conditions.items():
                mask = found[name]
                for row, record in enumerate(records):
                    for action, condition in conditions:
                        if condition(record):
                            mask[row, action] = True
        except NotANumberError:
            return self._by_duckdb(records)
        return found

    def _by_duckdb(self, records: Sequence[Record]) -> dict[str, NDArray[np.bool_]]:
        return forbidden_actions(self._contract, observations_of_checked(self._contract, records))
