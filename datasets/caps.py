"""Caps: how often an action may be taken within a time, and the counter that every observation carries of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from datasets.duck import literal, quoted
from datasets.durations import seconds_of
from datasets.settings import Settings

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


class Cap(Settings):
    """At most so many times within every stretch of time. What was taken is counted, logged and forbidden beyond it."""

    at_most: int = Field(ge=1)
    """Times that the action may be taken within any `per`."""
    per: str
    """Length of the sliding window, such as "1h" or "1d". An action exactly that old is outside."""
    by: Literal["all", "episode", "cluster"] = "all"
    """Whose actions share the cap: those of all episodes together, or each episode's or cluster's own."""
    field: str | None = None
    """Feature that holds how often the action was taken within `per`; default: "taken_" and the action."""

    @field_validator("per")
    @classmethod
    def _duration(cls, per: str) -> str:
        seconds_of(per)
        return per

    @field_validator("field")
    @classmethod
    def _feature_name(cls, field: str | None) -> str | None:
        if field is not None and not _NAME.fullmatch(field):
            raise ValueError(
                f"field = '{field}' is no feature name; that is a letter or underscore, then letters, digits, "
                "underscores or dashes"
            )
        return field

    @property
    def per_us(self) -> int:
        """`per` in microseconds."""
        return round(seconds_of(self.per) * 1e6)


Caps = dict[str, Cap]
"""By action."""


def counter_field(action: str, cap: Cap) -> str:
    """Name of the feature that counts an action: the declared one, else made of the action's label.

    Characters that a feature's name cannot hold become underscores: "[50, 100]" is counted in `taken_50_100`.
    """
    return cap.field or "taken_" + re.sub(r"[^A-Za-z0-9_\-]+", "_", action).strip("_")


def counter_feature() -> dict[str, Any]:
    """What a counter is where the contract does not declare it; null where nobody counted, as before the cap."""
    return {"type": "numeric", "min": 0.0, "nullable": True}


def with_counters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a contract with the features that its caps count in; what is malformed is left to be refused."""
    features, actions = given.get("features"), given.get("actions")
    caps = actions.get("caps") if isinstance(actions, Mapping) else getattr(actions, "caps", None)
    if not isinstance(features, Mapping) or not isinstance(caps, Mapping):
        return given
    counters: dict[str, Any] = {}
    for action, cap in caps.items():
        own = cap.get("field") if isinstance(cap, Mapping) else getattr(cap, "field", None)
        if own is None or isinstance(own, str):
            name = own or "taken_" + re.sub(r"[^A-Za-z0-9_\-]+", "_", str(action)).strip("_")
            counters[name] = counter_feature()
    return {**given, "features": {**features, **{n: f for n, f in counters.items() if n not in features}}}


def cap_conditions(caps: Mapping[str, Cap]) -> dict[str, str]:
    """The constraints that caps amount to, by name: an action is forbidden where its counter has reached the cap."""
    return {f"actions.caps.{action}": _condition(action, cap) for action, cap in caps.items()}


def _condition(action: str, cap: Cap) -> str:
    field = counter_field(action, cap)
    named = field if _PLAIN.fullmatch(field) else quoted(field)
    return f"action = {literal(action)} AND observation.{named} >= {cap.at_most}"


def cap_problems(caps: Mapping[str, Cap], names: tuple[str, ...], safe: str | None) -> list[str]:
    """What keeps caps from holding for actions of these names, of which `safe` acts where nothing else may."""
    problems = [f"caps.{action} is none of the actions {', '.join(names)}" for action in caps if action not in names]
    if caps and safe is None:
        problems.append("caps forbid an action once it was taken often enough, so safe must name what acts then")
    if safe in caps:
        problems.append(
            f"caps.{safe} caps the safe action, which acts where nothing else may and so cannot be refused; cap "
            "another one, or name another safe action"
        )
    fields = {action: counter_field(action, cap) for action, cap in caps.items()}
    for action, field in fields.items():
        if not _NAME.fullmatch(field) or field == "taken_":
            problems.append(f"caps.{action} wants a field: the action's label makes no feature name")
        shared = [other for other in fields if other != action and fields[other].lower() == field.lower()]
        if shared:
            problems.append(f"caps.{action} and caps.{shared[0]} count in the same feature '{field}'; give it a field")
    return problems


def counter_problems(caps: Mapping[str, Cap], features: Mapping[str, Any]) -> list[str]:
    """Counters that are missing among the features, or that are no counters."""
    problems = []
    for action, cap in caps.items():
        field = counter_field(action, cap)
        feature = features.get(field)
        if feature is None:
            problems.append(f"actions.caps.{action} counts in '{field}', which is no feature here")
        elif feature.type != "numeric" or not feature.nullable or (feature.max is not None) or (feature.min or 0.0) > 0:
            problems.append(
                f"features.{field} is the counter of actions.caps.{action}: leave it out, or declare it numeric and "
                "nullable, without a max and with no min above 0; or give the cap another field"
            )
    return problems
