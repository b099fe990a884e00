"""What a log shows of the policy that wrote it: how it explores, what it takes, and whether it can carry weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.replay import Replay
from reports.estimators import Floats, Ints
from reports.evaluate_config import PropensityConfig
from reports.formatting import share
from reports.propensity import check_propensities


@dataclass(frozen=True)
class ActionSupport:
    """How often the log shows one action."""

    action: str
    n_taken: int
    share: float
    """Of all steps."""
    n_available: int
    mean_prob: float | None
    """Mean logged probability where it was taken; None where it never was, or none was logged."""


@dataclass(frozen=True)
class Exploration:
    """What the logged probabilities tell of the policy that wrote them, over the decisions that have one.

    Exploration is the probability not on the most likely action. The log holds one probability p per decision: above
    1/2 the logged action is the most likely one and exploration is 1 - p. Otherwise the most likely one of n has a
    probability in [max(p, (1 - p) / (n - 1)), max(p, 1 - p)], which bounds exploration from both sides.
    """

    smallest: float
    mean_logged: float
    """Mean probability of the action taken."""
    below_one_percent: float
    """Share of decisions whose action had a probability under 1%."""
    below_half: float
    """Share of decisions whose action had a probability under 1/2."""
    certain: float
    """Share of decisions whose action had probability 1."""
    constant: bool
    low: float
    high: float
    """Bounds on the mean exploration; equal where the log determines it."""


def n_available(replay: Replay) -> Ints:
    return np.asarray(replay.available[: replay.n_steps].sum(axis=1), dtype=np.int64)


def choices(replay: Replay) -> NDArray[np.bool_]:
    return np.asarray(n_available(replay) > 1)


def exploration_of(p: Floats, n_available: Ints) -> Exploration | None:
    if not len(p):
        return None
    low, high = np.minimum(p, 1 - p), 1 - np.maximum(p, (1 - p) / (n_available - 1))
    return Exploration(
        smallest=float(p.min()),
        mean_logged=float(p.mean()),
        below_one_percent=float((p < 0.01).mean()),
        below_half=float((p < 0.5).mean()),
        certain=float((p == 1).mean()),
        constant=bool(np.ptp(p) == 0),
        low=float(low.mean()),
        high=float(high.mean()),
    )


def support_of(replay: Replay) -> tuple[ActionSupport, ...]:
    known = ~np.isnan(replay.behavior_prob)
    n_offered = replay.available[: replay.n_steps].sum(axis=0)
    found = []
    for a, name in enumerate(replay.contract.actions.names):
        taken = replay.actions == a
        p = replay.behavior_prob[taken & known]
        n_taken = int(taken.sum())
        mean = float(p.mean()) if len(p) else None
        found.append(ActionSupport(name, n_taken, n_taken / replay.n_steps, int(n_offered[a]), mean))
    return tuple(found)


def refusal_of(usable: Replay, n_clusters: int) -> str | None:
    """Why no candidate could be weighted; the gate's own check of the probabilities included."""
    if usable.n_episodes == 0:
        return "no episode has all its behavior probabilities"
    if n_clusters < 2:
        return "all episodes are in one cluster, and an interval needs at least two"
    shares = np.bincount(usable.actions, minlength=usable.n_actions) / usable.n_steps
    config = PropensityConfig()
    report = check_propensities(
        usable.behavior_prob,
        usable.actions,
        usable.available[: usable.n_steps],
        usable.clusters[usable.episode_of_step],
        usable.contract.actions.names,
        kind="logged",
        used_shares=shares,
        versions=usable.policy_versions[usable.episode_of_step],
        config=config,
    )
    if report.refused and not all(action.passed for action in report.actions):
        return f"{report.refused}; correct ones fail this check in {share(1 - config.check_level)} of logs"
    return report.refused
