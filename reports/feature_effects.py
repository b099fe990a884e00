"""Which features move a policy's decisions: each is dealt anew among the steps, and the decisions are compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.observations import Observations
from offline_dqn.policy import Policy
from reports.change_records import FeatureEffect
from reports.changes import disagreement_with_policy
from reports.estimators import Floats

N_REPEATS = 3
_MOST_STEPS = 2_000
_MOST_ROWS = 300_000
"""Rows that the policy may be asked about in all; with many features fewer steps are dealt anew."""


def steps_to_permute(available: NDArray[np.bool_], n_features: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Steps with a choice of action, ascending, drawn without repeats where there are too many of them.

    Args:
        available: (T, A).
        n_features: how many will be dealt anew, `N_REPEATS` times each.
        rng: draws the steps.
    """
    choice = np.flatnonzero(available.sum(axis=1) > 1)
    most = min(_MOST_STEPS, max(50, _MOST_ROWS // max(1, n_features * N_REPEATS)))
    return choice if len(choice) <= most else np.sort(rng.choice(choice, most, replace=False))


def feature_effects(
    policy: Policy, observations: Observations, available: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[FeatureEffect, ...]:
    """The effect of each feature on what the policy does, the strongest first.

    The values of one feature are permuted among the steps while the rest of each observation stays: its tie to the
    decision is cut, and to the other features too, so of two features that say the same each looks weaker.

    Args:
        policy: asked for its probabilities, and for its values where it has any.
        observations: (n,) steps; available: (n, A), with at least two actions in each row.
        rng: deals.

    Returns:
        One effect per feature, ranked by the lost gap of Q-values where the policy has values, else by the
        probability that moved; empty with fewer than two features or steps.

    Source: Breiman 2001, Random Forests, section 10, for the permutation; Fisher, Rudin and Dominici 2019
    (arXiv:1801.01489) for models of any kind.
    """
    n = len(observations)
    if n < 2 or len(observations.columns) < 2:
        return ()
    probs, q = policy.action_probs(observations, available), policy.q_values(observations)
    usable = q is not None and bool(np.isfinite(q[available]).all())
    best = np.where(available, q, -np.inf).argmax(axis=1) if usable and q is not None else None
    gap = _gap(q, best, available) if q is not None and best is not None else None
    found = []
    for name, values in observations.columns.items():
        moved, lost, turned = [], [], []
        for _ in range(N_REPEATS):
            dealt = Observations({**observations.columns, name: values[rng.permutation(n)]}, observations.vocabularies)
            other = policy.action_probs(dealt, available)
            moved.append(float(disagreement_with_policy(probs, other).mean()))
            turned.append(float((probs.argmax(axis=1) != other.argmax(axis=1)).mean()))
            other_q = policy.q_values(dealt) if gap is not None else None
            if gap is not None and best is not None and other_q is not None:
                lost.append(float((gap - _gap(other_q, best, available)).mean()))
        found.append(
            FeatureEffect(
                feature=name,
                probability_moved=float(np.mean(moved)),
                gap_lost=float(np.mean(lost)) if lost else None,
                decisions_turned=float(np.mean(turned)),
                spread=float(np.std(lost or moved)),
            )
        )
    return tuple(sorted(found, key=lambda e: -(e.probability_moved if e.gap_lost is None else e.gap_lost)))


def _gap(q: Floats, best: NDArray[np.int64], available: NDArray[np.bool_]) -> Floats:
    """(n,) value of the action that was best, minus that of the best other available one."""
    rows = np.arange(len(best))
    others = np.where(available, q, -np.inf)
    others[rows, best] = -np.inf
    return np.asarray(q[rows, best] - others.max(axis=1))
