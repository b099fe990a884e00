"""What a person knows of how good a situation is, as SQL over the observation: shapes rewards, and not the optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.errors import OfflineDqnError
from datasets.observation_sql import evaluate_sql, observation_table, sql_problem
from datasets.observations import Observations


class PotentialError(OfflineDqnError):
    """A potential that cannot be evaluated, or that is not a finite number somewhere."""


@dataclass(frozen=True)
class Potential:
    """Phi(observation) in reward units, such as `-observation.queue_length`.

    `gamma * Phi(next) - Phi(now)` is added to every reward, with Phi = 0 behind the end of the task. Along an episode
    that sums up to the constant -Phi(first), so every policy keeps its rank, and Q-values are less by Phi(observation).

    Attributes:
        contract: names the features.
        sql: an expression over the struct `observation`, evaluated by DuckDB.

    Raises:
        PotentialError: it is not one valid expression over the features.

    Source: Ng, Harada and Russell 1999, Policy Invariance Under Reward Transformations, theorem 1.
    """

    contract: Contract
    sql: str

    def __post_init__(self) -> None:
        problem = sql_problem(self.contract, self.sql, "DOUBLE")
        if problem is not None:
            raise PotentialError(
                f"train.potential cannot be used: {problem}. It wants an SQL expression over the struct `observation` "
                f"with the fields {', '.join(self.contract.features)}."
            )

    def __call__(self, observations: Observations) -> NDArray[np.float64]:
        """(n,) float64 in reward units.

        Raises:
            PotentialError: it fails, or is null or not finite for some observation; names the first.
        """
        if not len(observations):
            return np.zeros(0)
        try:
            (found,) = evaluate_sql(self.contract, observations, [self.sql], "DOUBLE")
        except duckdb.Error as error:
            raise PotentialError(
                f"train.potential = `{self.sql}` fails on these observations: {str(error).splitlines()[0]}"
            ) from error
        values = np.ma.filled(np.ma.asarray(found, dtype=np.float64), np.nan)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            first = int(wrong[0])
            what = "null" if np.ma.getmaskarray(found)[first] else f"{values[first]}"
            raise PotentialError(
                f"train.potential = `{self.sql}` is null or not finite for {len(wrong)} of {len(values)} observations: "
                f"it is {what} in row {first}, {_shown(self.contract, observations, first)}. Cover such rows in the "
                "expression, for instance with coalesce(..., 0)."
            )
        return values


def _shown(contract: Contract, observations: Observations, row: int) -> dict[str, Any]:
    """The observation in a row, as SQL sees it."""
    table = observation_table(contract, observations.take(np.array([row])))
    shown: dict[str, Any] = table["observation"][0].as_py()
    return shown
