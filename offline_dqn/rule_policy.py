"""The policy that a person writes down: SQL conditions over the observation, first match acts."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.errors import RowError
from datasets.observation_sql import evaluate_sql, failing_row, observation_table, sql_problem
from datasets.observations import Observations
from offline_dqn.exploration import allowed_actions, explore


class PolicyRuleError(RowError):
    """Rules that cannot be used, with every problem, or one that fails on an observation."""


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
        found = [sql_problem(self.contract, rule.when, "BOOLEAN") for rule in self.rules]
        problems += [f"rule {i}: {text}" for i, text in enumerate(found, start=1) if text is not None]
        if problems:
            raise PolicyRuleError("the rules cannot be used:\n" + "\n".join(f"  {text}" for text in problems))

    def q_values(self, observations: Observations) -> None:  # noqa: ARG002  # part of the protocol
        """None: rules have no values."""
        return

    def disagreement(self, observations: Observations) -> None:  # noqa: ARG002  # part of the protocol
        """None: nothing can disagree."""
        return

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) probabilities with which it acts, exploration and masks included.

        Args:
            observations: n rows.
            available: (n, A) bool.

        Raises:
            NoAvailableActionError: a row allows no action of the contract.
            PolicyRuleError: a condition fails on a row, such as by a cast of a text that is no number.
        """
        known = np.isin(self.actions, self.contract.actions.names)
        allowed = allowed_actions(available, known, len(observations))
        choices = [*(rule.action for rule in self.rules), self.otherwise]
        matches = self._matches(observations)
        matches.append(np.ones(len(observations), dtype=bool))
        preferred = np.zeros_like(allowed)
        undecided = np.ones(len(observations), dtype=bool)
        for action, match in zip(choices, matches, strict=True):
            column = self.actions.index(action)
            decides = undecided & match & allowed[:, column]
            preferred[decides, column] = True
            undecided &= ~decides
        preferred[undecided] = allowed[undecided]
        return explore(preferred / preferred.sum(axis=1, keepdims=True), allowed, self.exploration)

    def _matches(self, observations: Observations) -> list[NDArray[np.bool_]]:
        """For each rule (n,) bool."""
        if not self.rules or not len(observations):
            return [np.zeros(len(observations), dtype=bool) for _ in self.rules]
        try:
            found = evaluate_sql(self.contract, observations, [rule.when for rule in self.rules], "BOOLEAN")
        except duckdb.Error as error:
            raise self._failure(observations, error) from error
        return [np.ma.filled(np.ma.asarray(matches, dtype=bool), False) for matches in found]

    def _failure(self, observations: Observations, error: duckdb.Error) -> PolicyRuleError:
        """What to say of rules that fail on some row: names the first such rule, and its first such row."""
        message, kind = str(error).splitlines()[0], type(error).__name__  # DuckDB's own text quotes values
        table = observation_table(self.contract, observations)
        for i, rule in enumerate(self.rules, start=1):
            first = failing_row(table, rule.when, "BOOLEAN")
            if first is not None:
                row = table["observation"][first].as_py()
                said = f"rule {i}, `{rule.when}`, fails in row {first} of {len(observations)}"
                remedy = "Write it so that it holds for every observation, for instance with TRY_CAST."
                return PolicyRuleError(f"{said}, {row}: {message}. {remedy}", f"{said} ({kind}). {remedy}")
        said = f"the rules fail on {len(observations)} rows"
        return PolicyRuleError(f"{said}: {message}.", f"{said} ({kind}).")
