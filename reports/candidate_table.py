"""What a training chose from, in the words of both the report and the terminal; readable without torch and scipy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BY = {"direct": "model", "dr": "weighting"}
_COUNTING = {0.25: "a quarter", 0.5: "half", 1.0: "in full"}


@dataclass(frozen=True)
class CandidateRow:
    """One candidate, in reward units per episode.

    Attributes:
        name: of the candidate; `chosen` whether it became the release.
        value: the baseline's plus `difference`, so that the row speaks of one estimator.
        difference: to the baseline, by the estimator that gives the bounds.
        low, high: one-sided bounds of the difference; None where there are none.
        by: "model" or "weighting", which gives all of these.
        why: why it was chosen, or lost.
    """

    name: str
    chosen: bool
    value: float
    difference: float
    low: float | None
    high: float | None
    by: str
    why: str


def candidate_rows(selection: Mapping[str, Any]) -> tuple[CandidateRow, ...]:
    """The candidates of `Selection.to_json`, in its order."""
    return tuple(_row(candidate, selection["baseline_value"]) for candidate in selection["candidates"])


def compared_on(selection: Mapping[str, Any]) -> str:
    """The episodes that judged, such as "66 episodes of select and 301 of train (each counting a quarter)"."""
    said = f"{selection['n_episodes']:,} episodes of select"
    if not selection["n_reused"]:
        return said
    weight = selection.get("reuse_weight")  # releases of older versions do not name it
    counting = "" if weight is None else f" (each counting {_COUNTING.get(weight, f'{weight:g}')})"
    return f"{said} and {selection['n_reused']:,} of train{counting}"


def _row(candidate: Mapping[str, Any], baseline_value: float) -> CandidateRow:
    weighted = candidate["estimator"] != "direct" and candidate["weighted_difference"] is not None
    difference = candidate["weighted_difference"] if weighted else candidate["difference"]
    return CandidateRow(
        name=candidate["name"],
        chosen=candidate["chosen"],
        value=baseline_value + difference,
        difference=difference,
        low=candidate["lower_bound"],
        high=candidate["upper_bound"],
        by=_BY[candidate["estimator"]],
        why=candidate["why"],
    )
