"""Logs that do not tell how often a capped action was taken: no model may speak for a policy under the cap there.

Where a counter is missing, nothing says whether the cap let the action through, and a model of values would let the
policy take it again and again. Products of ratios need no such model: they weigh what happened, and what happened kept
to what was allowed then (`available_actions` as logged). So they are shown, and nothing decides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.caps import counter_field
from datasets.replay import Replay
from reports.assessment import Assessment
from reports.bounds_by_method import refused_bounds
from reports.records import Comparison, Estimate, SliceValue

MODELLED = ("direct", "dr", "wdr", "magic", "switch_dr", "dros", "mis", "drl", "window")
"""Estimators that rest on a model of values or of visited states."""


def why_models_refuse(gate: Replay) -> str | None:
    """Which counters of the contract's caps are missing at steps of the gate episodes; None where none is."""
    missing = {
        counter_field(action, cap): int(
            np.isnan(gate.observations.columns[counter_field(action, cap)][: gate.n_steps]).sum()
        )
        for action, cap in gate.contract.actions.caps.items()
    }
    told = [f"{field} is missing at {n:,} of {gate.n_steps:,} gate steps" for field, n in missing.items() if n]
    if not told:
        return None
    return (
        f"{'; '.join(told)}, so a model cannot know when the cap holds. `offline-dqn serve` logs the counter: judge on "
        "nights since it does"
    )


def without_models(found: Assessment, cause: str) -> Assessment:
    """The same with everything refused that rests on a model; weighted and on-policy estimates stay."""
    slices = found.slices
    if slices is not None:
        slices = replace(slices, slices=tuple(_no_slice(part, cause) for part in slices.slices), refused=cause)
    return replace(
        found,
        estimates=tuple(_no_estimate(e, cause) if e.estimator in MODELLED else e for e in found.estimates),
        comparisons=tuple(_no_comparison(c, cause) for c in found.comparisons),
        agreement=replace(found.agreement, difference=None, interval=None, refused=cause),
        q_claim=found.q_claim and replace(found.q_claim, upper_bound=None, note=cause),
        design_effects=(),
        bounds=refused_bounds(found.bounds[0].alpha, cause) if found.bounds else (),
        sensitivity=replace(found.sensitivity, passes=False, turns_at=None, points=(), refused=cause),
        slices=slices,
        terms=replace(found.terms, estimator=None, candidate=None),
    )


def _no_estimate(estimate: Estimate, cause: str) -> Estimate:
    return replace(estimate, value=None, interval=None, refused=estimate.refused or cause)


def _no_comparison(comparison: Comparison, cause: str) -> Comparison:
    is_log = comparison.estimator.endswith("on_policy")
    return replace(
        comparison,
        value=None,
        interval=None,
        lower_bound=None,
        upper_bound=None,
        against_upper_bound=comparison.against_upper_bound if is_log else None,
        refused=comparison.refused or cause,
    )


def _no_slice(part: SliceValue, cause: str) -> SliceValue:
    return replace(
        part,
        value=None,
        standard_error=None,
        lower_bound=None,
        upper_bound=None,
        shrunk_value=None,
        refused=part.refused or cause,
    )
