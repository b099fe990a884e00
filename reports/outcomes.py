"""What the contract says of the gate episodes beside their rewards: breaches, success, forbidden actions, slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, Contract
from datasets.observations import MISSING_CODE
from datasets.replay import Replay
from datasets.step_rules import Judged, forbidden_actions, judge_steps
from reports.records import Forbidden, SliceKind

Masks = NDArray[np.bool_]

MOST_LABELS = 20
"""Labels of one column that are slices of their own; the rarer ones make one together."""


@dataclass(frozen=True)
class SliceMembers:
    """One slice and the (N,) episodes in it."""

    column: str
    label: str | None
    kind: SliceKind
    members: Masks


@dataclass(frozen=True)
class Outcomes:
    """Conditions of the contract on T steps of N gate episodes.

    Attributes:
        breaches: by constraint, what was breached.
        limits, conditions: of each of these constraints.
        success: None where the contract does not say what a success is.
        forbidden: what each constraint that forbids takes away.
        n_safe_only: steps at which every available action is forbidden.
        slices: every slice that holds an episode.
        notes: columns that tell no episodes apart.
    """

    breaches: Mapping[str, Judged]
    limits: Mapping[str, float]
    conditions: Mapping[str, str]
    success: Judged | None
    success_condition: str
    forbidden: tuple[Forbidden, ...]
    n_safe_only: int
    slices: tuple[SliceMembers, ...]
    notes: tuple[str, ...] = ()


def outcomes_of(gate: Replay) -> Outcomes:
    """The conditions of a replay's contract on all of its steps.

    Raises:
        ConstraintError: a condition fails on a step.
    """
    contract = gate.contract
    conditions = {f"constraints.{name}": text for name, text in contract.breaches.items()}
    if contract.success is not None:
        conditions["success.when"] = contract.success.when

    def place(step: int) -> str:
        episode = gate.episode_of_step[step]
        return f"step {gate.step_in_episode[step]} of episode '{gate.episode_ids[episode]}'"

    judged = judge_steps(
        contract,
        conditions,
        observations=gate.observations,
        actions=gate.actions,
        next_row=gate.next_row,
        place=place,
    )
    forbidden, n_safe_only = _forbidden(gate)
    slices = [part for column in contract.slices.columns for part in _slices(gate, column)]
    return Outcomes(
        breaches={name: judged[f"constraints.{name}"] for name in contract.breaches},
        limits={name: rule.limit for name, rule in contract.constraints.items() if rule.limit is not None},
        conditions=contract.breaches,
        success=judged.get("success.when"),
        success_condition="" if contract.success is None else contract.success.when,
        forbidden=forbidden,
        n_safe_only=n_safe_only,
        slices=tuple(slices),
        notes=tuple(
            f"'{column}' is missing at the first step of every episode, so it tells none apart"
            for column in contract.slices.columns
            if [part.kind for part in slices if part.column == column] == ["missing"]
        ),
    )


def asks_for_more_than_value(contract: Contract) -> bool:
    """Whether the contract says anything beside the reward."""
    return bool(contract.constraints or contract.success or contract.slices.columns)


def _forbidden(gate: Replay) -> tuple[tuple[Forbidden, ...], int]:
    if not gate.contract.forbids:
        return (), 0
    steps = np.arange(gate.n_steps)
    available = gate.available[: gate.n_steps]
    masks = forbidden_actions(gate.contract, gate.observations.take(steps))
    left = available & ~np.logical_or.reduce(list(masks.values()))
    found = tuple(
        Forbidden(
            constraint=name,
            condition=gate.contract.forbids[name],
            n_forbidden=int((mask & available).any(axis=1).sum()),
            n_logged=int(mask[steps, gate.actions].sum()),
        )
        for name, mask in masks.items()
    )
    return found, int((~left.any(axis=1)).sum())


def _slices(gate: Replay, column: str) -> Iterator[SliceMembers]:
    """The slices of one column, by the value at each episode's first step; the largest first."""
    values, first = gate.observations.columns[column], gate.offsets[:-1]
    feature = gate.contract.features[column]
    if isinstance(feature, CategoricalFeature):
        codes, labels = values[first].astype(np.int64), gate.observations.vocabularies[column]
    else:
        numbers = values[first]
        codes = np.where(np.isnan(numbers), MISSING_CODE, np.nan_to_num(numbers)).astype(np.int64)
        labels = ("false", "true")
    declared = feature.values if isinstance(feature, CategoricalFeature) and feature.values is not None else labels
    found, counts = np.unique(codes[codes != MISSING_CODE], return_counts=True)
    order = found[np.argsort(-counts, kind="stable")]
    own = [code for code in order if labels[code] in declared]
    for code in own[:MOST_LABELS]:
        yield SliceMembers(column, labels[code], "label", codes == code)
    rest = np.isin(codes, own[MOST_LABELS:])
    unseen = np.isin(codes, [code for code in order if labels[code] not in declared])
    others: tuple[tuple[SliceKind, Masks], ...] = (
        ("rest", rest),
        ("unseen", unseen),
        ("missing", codes == MISSING_CODE),
    )
    for kind, members in others:
        if members.any():
            yield SliceMembers(column, None, kind, members)
