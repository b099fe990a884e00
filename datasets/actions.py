"""The actions of a contract: labels, or a number that is cut into declared bins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeGuard

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictFloat,
    field_validator,
    model_serializer,
    model_validator,
)

from datasets.caps import Caps, cap_problems
from datasets.settings import Settings


class Actions(Settings):
    """The actions, in the order of every array with an action axis."""

    names: tuple[str, ...]
    """Labels; with `bins` they are derived: "[0, 10)", "[10, 50]"."""
    bins: tuple[StrictFloat, ...] | None = None
    """Ascending edges that cut a logged number into actions: n edges make n - 1. A bin holds its lower edge, the last
    one its upper edge too; a number outside the edges breaks the contract."""
    values: tuple[StrictFloat, ...] | None = None
    """The number that acts for each bin, inside it; default: the middle of the bin."""
    safe: str | None = None
    """What acts when nothing else is allowed; with `bins` also a number, which stands for its bin."""
    caps: Caps = Field(default_factory=dict)
    """How often an action may be taken within a time, by action."""

    @model_validator(mode="before")
    @classmethod
    def _named_by_bins(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("bins") is None:
            return given
        if "names" in given:
            raise ValueError("wants names or bins, not both: with bins the names follow from the edges")
        edges = _edges(given["bins"])
        if edges is None:
            return {**given, "names": ("", "")}  # what is wrong with the edges is said by their own field
        names = bin_names(edges)
        safe = given.get("safe")
        if _is_number(safe):
            place = _bin_of(edges, float(safe))
            safe = f"{safe:g}" if place is None else names[place]
        return {**given, "names": names, "safe": safe}

    @field_validator("bins")
    @classmethod
    def _ascending(cls, bins: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if bins is not None and _edges(bins) is None:
            raise ValueError("wants at least three ascending edges, which make two actions")
        return bins

    @model_validator(mode="after")
    def _consistent(self) -> Actions:
        if len(self.names) < 2 or len(set(self.names)) < len(self.names) or "" in self.names:
            raise ValueError("names wants at least two different, non-empty labels")
        if self.safe is not None and self.safe not in self.names:
            raise ValueError(f"safe = '{self.safe}' is none of the actions {', '.join(self.names)}")
        if self.values is not None:
            self._check_values(self.values)
        problems = cap_problems(self.caps, self.names, self.safe)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _check_values(self, values: tuple[float, ...]) -> None:
        if self.bins is None:
            raise ValueError("values are the numbers that act for bins, and there are no bins")
        if len(values) != len(self.names):
            raise ValueError(f"values has {len(values)} numbers for {len(self.names)} bins")
        stray = [
            f"{_written(value)} in {name}"
            for place, (name, value) in enumerate(zip(self.names, values, strict=True))
            if _bin_of(self.bins, value) != place
        ]
        if stray:
            raise ValueError(f"each of values lies in its bin, in the order of the bins; not so {', '.join(stray)}")

    @model_serializer(mode="wrap")
    def _without_derived(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if self.bins is not None:
            del written["names"]
        if not self.caps:
            del written["caps"]  # a contract without them is what it was
        return written

    def value_of(self, name: str) -> float | None:
        """The number to act with for an action: of `values`, else the middle of its bin. None where actions are labels.

        Raises:
            ValueError: it is none of the actions.
        """
        if self.bins is None:
            return None
        if name not in self.names:
            raise ValueError(f"'{name}' is none of the actions {', '.join(self.names)}")
        place = self.names.index(name)
        if self.values is not None:
            return self.values[place]
        low, high = self.bins[place : place + 2]
        return low / 2 + high / 2  # the sum of two huge edges would overflow

    def name_of(self, value: float) -> str | None:
        """The action that a number belongs to; None outside the bins, and where actions are labels."""
        place = None if self.bins is None else _bin_of(self.bins, value)
        return None if place is None else self.names[place]


def bin_names(edges: tuple[float, ...]) -> tuple[str, ...]:
    """Labels of the n - 1 bins between n ascending edges; edges as short as they can be written exactly."""
    last = len(edges) - 2
    return tuple(
        f"[{_written(low)}, {_written(high)}{']' if place == last else ')'}"
        for place, (low, high) in enumerate(pairwise(edges))
    )


def _edges(values: Any) -> tuple[float, ...] | None:
    """Values as edges of bins, None where they are none."""
    if not isinstance(values, list | tuple) or len(values) < 3 or not all(map(_is_number, values)):
        return None
    edges = tuple(float(value) for value in values)
    return edges if all(map(math.isfinite, edges)) and all(low < high for low, high in pairwise(edges)) else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bin_of(edges: tuple[float, ...], value: float) -> int | None:
    """Number of the bin that holds a value."""
    if not edges[0] <= value <= edges[-1]:
        return None
    return min(sum(edge <= value for edge in edges), len(edges) - 1) - 1


def _written(number: float) -> str:
    return repr(float(number) + 0.0).removesuffix(".0")  # a negative zero is a zero
