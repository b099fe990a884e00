"""What the nodes of DuckDB's syntax tree say, for those who carry out a condition themselves."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from datasets.duck import duck


def feature_of(tree: dict[str, Any]) -> str | None:
    """The feature that a node reads, as it is written there; None for anything else."""
    names = tree.get("column_names", ())
    return names[1] if len(names) == 2 and names[0].lower() == "observation" else None


def constant_of(tree: dict[str, Any]) -> float | str | None:
    """A constant number or text; None for anything else."""
    literal = tree.get("literal")
    if literal is None or literal["kind"] not in ("NUMERIC", "INTEGER", "STRING"):
        return None
    return str(literal["text"]) if literal["kind"] == "STRING" else float(literal["text"])


def truth_value_of(tree: dict[str, Any]) -> bool | None:
    """A constant truth value; None for anything else."""
    literal = tree.get("literal", {"kind": ""})
    return literal["text"] == "true" if literal["kind"] == "BOOLEAN" else None


@lru_cache(maxsize=1024)
def as_double(number: str) -> float | None:
    """What DuckDB makes of a constant number that it compares or computes with a DOUBLE."""
    with duck() as connection:
        found = connection.execute(f"SELECT TRY_CAST({number} AS DOUBLE)").fetchall()
    double: float | None = found[0][0]
    return double
