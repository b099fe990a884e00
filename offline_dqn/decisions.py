"""From what a policy says to what is done: masks, shield, probabilities, the draw, and who decided.

One core for the server and for `offline-dqn act`. What is drawn from is what is told and logged, number for number;
what is not permitted has probability 0 and is never drawn, whatever a scorer gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.actions import Actions
from datasets.errors import OfflineDqnError
from datasets.row_conditions import Record
from offline_dqn.exploration import NoAvailableActionError

POLICY, SHIELD, GUARD, LATE, BASELINE = "policy", "shield", "guard", "late", "baseline"
"""Who decided, as the log's `decided_by` says it."""

_TOLERANCE = 1e-6
"""By how much the probabilities of a row may miss 1: those of a graph are rounded otherwise than numpy's."""


class ScoringError(OfflineDqnError):
    """A policy whose answer cannot be acted upon: not finite, not a distribution, or on what is not permitted."""


@dataclass(frozen=True)
class Scores:
    """What a policy says of m rows.

    Attributes:
        probs: (m, A) float64 with which it acts, exploration included; 0 for what is not permitted.
        q_values: (m, A) float64 in reward units; None where it has none.
        guard: for each row why its guard let version 0 act, "" where it did not; None where it has no guard.
    """

    probs: NDArray[np.float64]
    q_values: NDArray[np.float64] | None = None
    guard: Sequence[str] | None = None


class Scorer(Protocol):
    """A policy that is asked about records, by whichever engine."""

    @property
    def actions(self) -> tuple[str, ...]:
        """Labels of every action axis here."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(A,) which of them it can take."""

    def score(self, records: Sequence[Record], permitted: NDArray[np.bool_]) -> Scores:
        """Of m records, each of which permits (m, A) an action that it knows."""


@dataclass(frozen=True)
class Permission:
    """What may be done at n rows.

    Attributes:
        permitted: (n, A) bool, at least one per row.
        stuck: (n,) bool, where the shield left nothing that the policy knows: there the safe action acts alone.
    """

    permitted: NDArray[np.bool_]
    stuck: NDArray[np.bool_]


@dataclass(frozen=True)
class Decisions:
    """What is done at n rows.

    Attributes:
        probs: (n, A) float64 from which the action is drawn; rows sum to 1 but for rounding.
        decided_by: for each row one of POLICY, SHIELD, GUARD, LATE, BASELINE.
        q_values: (n, A) float64, NaN where the policy was not asked; None where it has none.
        guard: for each row why the policy's guard let version 0 act, "" where it did not.
    """

    probs: NDArray[np.float64]
    decided_by: tuple[str, ...]
    q_values: NDArray[np.float64] | None = None
    guard: tuple[str, ...] = ()


def permit(
    actions: Actions, known: NDArray[np.bool_], available: NDArray[np.bool_], forbidden: NDArray[np.bool_] | None
) -> Permission:
    """What the world and the shield leave of the actions; where that is nothing, the safe action alone.

    Args:
        actions: of the current contract.
        known: (A,) bool, what the policy can take.
        available: (n, A) bool, what the world allows.
        forbidden: (n, A) bool, what the constraints forbid; None where the contract has none that forbid.

    Raises:
        NoAvailableActionError: a row allows no action that the policy knows, and no constraint forbids any.
    """
    if forbidden is None:
        unknown = np.flatnonzero(~(available & known).any(axis=1))
        if len(unknown):
            raise NoAvailableActionError(
                f"{len(unknown)} of {len(available)} rows (first row {unknown[0]}) allow no action that the policy "
                "knows. Correct available_actions there, or promote a release that knows these actions."
            )
        return Permission(available, np.zeros(len(available), dtype=bool))
    assert actions.safe is not None  # a contract that forbids names it
    permitted = available & ~forbidden
    stuck: NDArray[np.bool_] = np.logical_not((permitted & known).any(axis=1))
    if stuck.any():
        permitted[~permitted.any(axis=1), actions.names.index(actions.safe)] = True
    return Permission(permitted, stuck)


def decide(
    scorer: Scorer, actions: Actions, records: Sequence[Record], permission: Permission, decided_by: str = POLICY
) -> Decisions:
    """What a policy does within what is permitted.

    Args:
        scorer: asked about the rows that are not stuck.
        actions: of the current contract.
        records: n rows.
        permission: from `permit`.
        decided_by: who decides where neither shield nor guard does.

    Raises:
        ScoringError: the scorer's answer cannot be acted upon.
    """
    stuck = permission.stuck
    if not stuck.any():
        scores = scorer.score(records, permission.permitted)
        _check(scores.probs, permission.permitted)
        deciders = _deciders(scores.guard, decided_by, len(records))
        return Decisions(scores.probs, deciders, scores.q_values, tuple(scores.guard or [""] * len(records)))
    probs = np.zeros(permission.permitted.shape)
    assert actions.safe is not None
    probs[stuck, actions.names.index(actions.safe)] = 1.0
    who = np.full(len(records), SHIELD, dtype=object)
    guard = np.full(len(records), "", dtype=object)
    q_values = None
    free = np.flatnonzero(~stuck)
    if len(free):
        scores = scorer.score([records[i] for i in free.tolist()], permission.permitted[free])
        _check(scores.probs, permission.permitted[free])
        probs[free] = scores.probs
        who[free] = _deciders(scores.guard, decided_by, len(free))
        guard[free] = list(scores.guard or [""] * len(free))
        if scores.q_values is not None:
            q_values = np.full(probs.shape, np.nan)
            q_values[free] = scores.q_values
    return Decisions(probs, tuple(who.tolist()), q_values, tuple(guard.tolist()))


def draw(probs: Sequence[float], uniform: float) -> int:
    """The action that a uniform number in [0, 1) picks; never one of probability 0.

    Args:
        probs: of each action; their sum may miss 1 by rounding.
        uniform: the random number.
    """
    left = uniform * sum(probs)
    last = 0
    for action, probability in enumerate(probs):
        if probability > 0.0:
            last = action
            left -= probability
            if left < 0.0:
                return action
    return last  # rounding has used up the last of it


def merged(forbidden: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
    """(n, A) what any constraint forbids, of (n, A) by constraint; None where there is no constraint."""
    masks = list(forbidden.values())
    return None if not masks else masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)


def forbidden_by(
    names: Sequence[str], forbidden: Mapping[str, NDArray[np.bool_]], row: int, available: NDArray[np.bool_]
) -> dict[str, str]:
    """For each available action that is forbidden at a row, the first constraint that forbids it.

    Args:
        names: (A,) of the actions.
        forbidden: (n, A) bool by constraint, the first one first.
        row: which.
        available: (A,) bool.
    """
    found: dict[str, str] = {}
    for name, mask in forbidden.items():
        for action in np.flatnonzero(mask[row] & available).tolist():
            found.setdefault(names[action], name)
    return found


def _deciders(guard: Sequence[str] | None, otherwise: str, n: int) -> tuple[str, ...]:
    return (otherwise,) * n if guard is None else tuple(GUARD if reason else otherwise for reason in guard)


def _check(probs: NDArray[np.float64], permitted: NDArray[np.bool_]) -> None:
    sums = probs.sum(axis=1)
    # NaN fails every comparison, so it is caught too.
    if not (np.abs(sums - 1.0).max() <= _TOLERANCE and probs.min() >= 0.0):
        raise ScoringError(f"the policy gave no probabilities: its rows sum to {sums.min()} .. {sums.max()}.")
    if probs[~permitted].any():
        raise ScoringError("the policy gave a probability to an action that is not permitted.")
