"""The policy that a person writes down: SQL conditions over the observation, first match acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, Feature, VectorFeature
from datasets.errors import OfflineDqnError
from datasets.observations import Observations
from offline_dqn.exploration import explore


class PolicyRuleError(OfflineDqnError):
    """Rules that cannot be used; lists every problem."""


@dataclass(frozen=True)
class Rule:
    """`action` where `when`, an SQL condition such as `observation.cpu > 0.8`, is true (not where it is null)."""

    when: str
    action: str


@dataclass(frozen=True)
class RulePolicy:
    """The first rule whose condition is true and whose action is available acts, else `otherwise`.

    Where `otherwise` is not available either, every available action is equally likely.

    Attributes:
        contract: names the features and actions that the rules speak of.
        rules: in order; conditions are evaluated by DuckDB on the struct `observation`.
        otherwise: the action where no rule matches.
        exploration: share of decisions that are uniform over the available actions of the contract.
        actions: the labels that every action axis here follows; those the contract lacks are never taken.
        digest: of the artifact it was loaded from, "" before it was saved.

    Raises:
        PolicyRuleError: a condition is not valid SQL over the features, or an action is none of the contract's.
    """

    contract: Contract
    rules: tuple[Rule, ...]
    otherwise: str
    exploration: float = 0.0
    actions: tuple[str, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.actions:
            object.__setattr__(self, "actions", self.contract.actions.names)
        lost = [name for name in self.contract.actions.names if name not in self.actions]
        if lost:
            raise ValueError(f"the policy's actions {', '.join(lost)} are missing from the asked ones {self.actions}")
        if not 0.0 <= self.exploration <= 1.0:
            raise ValueError(f"exploration wants a share in [0, 1], found {self.exploration}")
        problems = [
            f"'{action}' is none of the actions {', '.join(self.contract.actions.names)}"
            for action in [*(rule.action for rule in self.rules), self.otherwise]
            if action not in self.contract.actions.names
        ]
        nothing = _empty_table(self.contract)
        problems += [f"rule {i + 1}: {text}" for i, rule in enumerate(self.rules) if (text := _problem(rule, nothing))]
        if problems:
            raise PolicyRuleError("the rules cannot be used:\n" + "\n".join(f"  {text}" for text in problems))

    def q_values(self, observations: Observations) -> None:  # noqa: ARG002  # part of the protocol
        """None: rules have no values."""
        return

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) probabilities with which it acts, exploration and masks included.

        Args:
            observations: n rows.
            available: (n, A) bool.

        Raises:
            NoAvailableActionError: a row allows no action of the contract.
        """
        if available.shape != (len(observations), len(self.actions)):
            wanted = (len(observations), len(self.actions))
            raise ValueError(f"available wants the shape (n, A) = {wanted}, found {available.shape}")
        allowed = available & np.isin(self.actions, self.contract.actions.names)
        choices = [*(rule.action for rule in self.rules), self.otherwise]
        matches = _matches([rule.when for rule in self.rules], _table(self.contract, observations))
        matches.append(np.ones(len(observations), dtype=bool))
        preferred = np.zeros_like(allowed)
        undecided = np.ones(len(observations), dtype=bool)
        for action, match in zip(choices, matches, strict=True):
            column = self.actions.index(action)
            decides = undecided & match & allowed[:, column]
            preferred[decides, column] = True
            undecided &= ~decides
        preferred[undecided] = allowed[undecided]
        return explore(preferred, allowed, self.exploration)


def _matches(conditions: Sequence[str], table: pa.Table) -> list[NDArray[np.bool_]]:
    """For each condition (n,) bool, in the order of the table's rows."""
    if not conditions or not len(table):
        return [np.zeros(len(table), dtype=bool) for _ in conditions]
    columns = ", ".join(
        f"coalesce(CAST(({condition}\n) AS BOOLEAN), false) AS match_{i}" for i, condition in enumerate(conditions)
    )
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        connection.register("steps", table)
        connection.execute("SET lock_configuration = true")
        found = connection.execute(f"SELECT {columns} FROM steps ORDER BY row").fetchnumpy()
    return [np.asarray(matches, dtype=bool) for matches in found.values()]


def _problem(rule: Rule, nothing: pa.Table) -> str | None:
    """What DuckDB says against a condition, tried on a table without rows."""
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        connection.register("steps", nothing)
        try:
            statements = connection.extract_statements(f"SELECT CAST(({rule.when}\n) AS BOOLEAN) FROM steps")
            if len(statements) != 1:
                return f"`{rule.when}` is not one condition"
            connection.execute(statements[0])
        except duckdb.Error as error:
            return f"`{rule.when}`: {str(error).splitlines()[0]}"
    return None


def _table(contract: Contract, observations: Observations) -> pa.Table:
    """The observations as DuckDB sees them: one struct column, missing values null."""
    n_rows = len(observations)
    fields = [_column(feature, name, observations) for name, feature in contract.features.items()]
    struct = pa.StructArray.from_arrays(fields, names=list(contract.features))
    return pa.table({"row": pa.array(np.arange(n_rows)), "observation": struct})


def _column(feature: Feature, name: str, observations: Observations) -> pa.Array:
    values = observations.columns[name]
    if isinstance(feature, CategoricalFeature):
        return pa.array(observations.labels(name), type=pa.string())
    if isinstance(feature, VectorFeature):
        rows = [None if np.isnan(row).all() else row for row in values]
        return pa.array(rows, type=pa.list_(pa.float64()))
    missing = np.isnan(values)
    if isinstance(feature, BooleanFeature):
        return pa.array(np.where(missing, 0.0, values) != 0.0, mask=missing)
    return pa.array(values, mask=missing)


def _empty_table(contract: Contract) -> pa.Table:
    columns: dict[str, NDArray[np.float64] | NDArray[np.int32]] = {}
    for name, feature in contract.features.items():
        if isinstance(feature, CategoricalFeature):
            columns[name] = np.zeros(0, dtype=np.int32)
        else:
            columns[name] = np.zeros((0, feature.length) if isinstance(feature, VectorFeature) else 0)
    vocabularies = {n: () for n, f in contract.features.items() if isinstance(f, CategoricalFeature)}
    return _table(contract, Observations(columns, vocabularies))
