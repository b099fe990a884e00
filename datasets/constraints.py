"""What the contract asks of decisions beside their reward: success, constraints, and slices that are guarded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from datasets.actions import Actions
from datasets.caps import Caps
from datasets.expressions import expression_problem, observation_type
from datasets.settings import Settings


class Success(Settings):
    """When a decision was a success."""

    when: str
    """SQL condition over `observation`, `action` and `next_observation`."""


class Constraint(Settings):
    """An action that must never be taken, or an outcome that may happen within a limit."""

    forbid: str | None = None
    """SQL condition over `observation` and `action`; an action for which it is true is not available there."""
    breached: str | None = None
    """SQL condition over `observation`, `action` and `next_observation`, true where a step breaches the constraint."""
    limit: float | None = None
    """Largest share of steps that may breach it, in (0, 1)."""


class Slices(Settings):
    """Parts of the traffic that are reported and guarded one by one."""

    columns: tuple[str, ...] = ()
    """Categorical or boolean features; an episode belongs to the slice of its first step."""


class Rules(Settings):
    """All that the contract asks of decisions beside their reward; what it says today holds for what is older too."""

    success: Success | None = None
    constraints: dict[str, Constraint] = Field(default_factory=dict)
    slices: Slices = Slices()
    safe: str | None = None
    """What acts where every action is forbidden."""
    caps: Caps = Field(default_factory=dict)
    """How often an action may be taken within a time, by action."""


def step_columns(features: Mapping[str, Any]) -> dict[str, str]:
    """DuckDB types of what a condition on an outcome may speak of."""
    struct = observation_type(features)
    return {"observation": struct, "action": "VARCHAR", "next_observation": struct}


def decision_columns(features: Mapping[str, Any]) -> dict[str, str]:
    """DuckDB types of what is known when an action is chosen."""
    return {"observation": observation_type(features), "action": "VARCHAR"}


def success_problem(success: Success, features: Mapping[str, Any], actions: Actions) -> str | None:
    """What keeps `when` from being evaluated; None where nothing does."""
    return expression_problem(success.when, "BOOLEAN", step_columns(features), actions.names)


def constraint_problems(name: str, constraint: Constraint, features: Mapping[str, Any], actions: Actions) -> list[str]:
    """Everything that is wrong with one constraint."""
    forbid, breached, limit = constraint.forbid, constraint.breached, constraint.limit
    problems = []
    if (forbid is None) == (breached is None):
        problems.append("wants either forbid (an action) or breached (an outcome, with a limit)")
    if breached is not None and limit is None:
        problems.append("wants a limit: the largest share of steps that may breach it")
    if forbid is not None and limit is not None:
        problems.append("has a limit, which only breached takes: what is forbidden never happens")
    if limit is not None and limit == 0 and breached is not None:
        problems.append("limit 0 is only for forbid: 0 breaches seen in n still leave a rate of up to 3/n possible")
    elif limit is not None and not 0 <= limit < 1:
        problems.append(f"limit wants a share of steps in (0, 1), found {limit:g}")
    if forbid is not None:
        if actions.safe is None:
            problems.append("forbids, so actions.safe must name what acts where every action is forbidden")
        if "next_observation" in forbid.lower():
            problems.append("forbid speaks of next_observation, which is not known yet when an action is chosen")
        else:
            problems.append(expression_problem(forbid, "BOOLEAN", decision_columns(features), actions.names) or "")
    if breached is not None:
        problems.append(expression_problem(breached, "BOOLEAN", step_columns(features), actions.names) or "")
    return [f"{name}: {text}" for text in problems if text]


def slice_problems(slices: Slices, features: Mapping[str, Any]) -> list[str]:
    """Columns that cannot cut the traffic into slices."""
    problems = []
    for column in dict.fromkeys(slices.columns):
        if column not in features:
            near = difflib.get_close_matches(column, features, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(features)}"
            problems.append(f"'{column}' is no feature; {hint}")
        elif features[column].type not in ("categorical", "boolean"):
            problems.append(
                f"'{column}' is {features[column].type}, and only categorical and boolean features make slices; log a "
                "label beside it"
            )
        if slices.columns.count(column) > 1:
            problems.append(f"'{column}' is named {slices.columns.count(column)} times")
    return problems
