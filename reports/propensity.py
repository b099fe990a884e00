"""Behavior probabilities: are the logged ones right, and what they were where none were logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from datasets.errors import OfflineDqnError
from datasets.propensities import clustered_error, log_scale_interval
from reports.estimators import Floats, Ints
from reports.evaluate_config import PropensityConfig
from reports.formatting import apart
from reports.intervals import STUDENT_T, cluster_codes
from reports.records import ActionAverage, Interval, PropensityKind, PropensityReport, VersionAverages

_MOST_CAUSES = 4
"""Actions that a refusal spells out; the report's table holds them all."""


class PropensityError(OfflineDqnError):
    """Behavior probabilities that no log can have, or that cannot be estimated."""


def check_propensities(
    behavior_probs: Floats,
    actions: Ints,
    available: NDArray[np.bool_],
    clusters: NDArray[Any],
    names: Sequence[str],
    *,
    kind: PropensityKind,
    used_shares: Floats | None = None,
    versions: NDArray[Any] | None = None,
    config: PropensityConfig,
) -> PropensityReport:
    """Whether 1[A = a] / p averages to 1 for each action a over the rows where it was available, and other signs.

    Under the true probabilities that average is 1 whatever the policy was, for every action it could take. An action
    that the log never holds, though the evaluation policies would be expected to take it often, is a failure too. Where
    several policy versions wrote the log each must pass on its own rows: errors of two may cancel in the pool.

    Args:
        behavior_probs: (T,) of the logged action, NaN where not logged.
        actions: (T,) int64 index into `names`.
        available: (T, A) bool.
        clusters: (T,) code of each step's cluster.
        names: A labels.
        kind: where the probabilities come from.
        used_shares: (A,) average probability of each action under the policies to be evaluated; None: all are used.
        versions: (T,) name of the policy version that took each step; None: one wrote them all.
        config: levels.

    Returns:
        The report; `refused` names the cause if nothing may be weighted with these probabilities.

    Raises:
        PropensityError: if a logged probability is not in (0, 1].
    """
    known = np.isfinite(behavior_probs)
    wrong = np.flatnonzero(known & ((behavior_probs <= 0) | (behavior_probs > 1)))
    if len(wrong):
        raise PropensityError(
            f"behavior_prob is outside (0, 1] in {len(wrong)} of {len(behavior_probs)} steps, first "
            f"{behavior_probs[wrong[0]]!r} at row {wrong[0]}. An action that was taken had a positive probability: "
            'correct the logger, or set behavior.propensity = "estimated" in the contract.'
        )
    p, taken, free = behavior_probs[known], actions[known], available[known]
    chosen = free.sum(axis=1) > 1  # rows with a choice to make
    present = [] if versions is None else np.unique(versions[known]).tolist()
    parts = present if len(present) > 1 else []
    # All averages that are judged together hold check_level.
    level = 1 - (1 - config.check_level) / (len(names) * (1 + len(parts)))

    def averages(rows: NDArray[np.bool_]) -> tuple[ActionAverage, ...]:
        p_rows, free_rows, codes = p[rows], free[rows], clusters[known][rows]
        return tuple(
            _action_average(
                p_rows, taken[rows] == a, free_rows[:, a], codes, name, _used(used_shares, a), level, config
            )
            for a, name in enumerate(names)
        )

    pooled = averages(np.ones(len(p), dtype=bool))
    by_version = tuple(
        VersionAverages(str(version), averages(np.asarray(versions)[known] == version)) for version in parts
    )
    constant = bool(len(p)) and bool(chosen.any()) and float(np.ptp(p[chosen])) == 0.0
    causes = _deterministic(p, taken, chosen, names) if known.any() else []
    if not known.all():
        causes = [f"{int((~known).sum())} of {len(known)} steps have no behavior probability"]
    if not causes:
        causes = [f"'{a.action}' {a.note}" for a in pooled if not a.passed]
        causes += [
            f"under policy_version '{v.version}' '{a.action}' {a.note}"
            for v in by_version
            for a in v.actions
            if not a.passed
        ]
        # Thirty versions that all fail for one cause need not all be told.
        causes = [
            *causes[:_MOST_CAUSES],
            *([f"and {len(causes) - _MOST_CAUSES} more"] if len(causes) > _MOST_CAUSES else []),
        ]
    return PropensityReport(
        kind=kind,
        actions=pooled,
        versions=by_version,
        n_missing=int((~known).sum()),
        n_certain=int((chosen & (p == 1.0)).sum()),
        smallest=float(p.min()) if len(p) else None,
        constant=constant,
        refused="; ".join(causes) or None,
    )


def _deterministic(p: Floats, taken: Ints, chosen: NDArray[np.bool_], names: Sequence[str]) -> list[str]:
    if not chosen.any():
        return ["no step offered more than one action"]
    if np.all(p[chosen] == 1.0):
        return ["every logged probability is 1: a deterministic logger shows what it does and nothing else"]
    only = np.unique(taken[chosen])
    if len(only) == 1:
        return [f"only '{names[only[0]]}' was ever taken: the log says nothing about other actions"]
    return []


def _action_average(
    p: Floats,
    taken: NDArray[np.bool_],
    free: NDArray[np.bool_],
    clusters: NDArray[Any],
    name: str,
    used_share: float,
    level: float,
    config: PropensityConfig,
) -> ActionAverage:
    n_available, n_taken = int(free.sum()), int((taken & free).sum())
    if n_taken < config.fewest_taken:
        missing = n_taken == 0 and n_available * used_share >= config.fewest_taken
        note = "was never taken, though the policies on trial would take it" if missing else "too rare to judge"
        return ActionAverage(name, n_available, n_taken, None, None, passed=not missing, note=note)
    terms = np.where(taken[free], 1.0 / p[free], 0.0)
    scaled = terms / terms.max()  # squares of the terms themselves may overflow
    n_effective = float(scaled.sum() ** 2 / (scaled**2).sum())
    codes = cluster_codes(clusters[free])
    average, n_clusters = float(terms.mean()), int(codes.max()) + 1
    if n_clusters < 2:
        return ActionAverage(name, n_available, n_taken, average, None, passed=True, note="one cluster: no interval")
    residuals = np.bincount(codes, weights=terms - average)
    with np.errstate(over="ignore"):
        error = clustered_error(float((residuals**2).sum()), n_clusters, n_available)
    if not np.isfinite(error):
        note = f"has a probability of {float(p[free].min()):.3g}, too small to weight with"
        return ActionAverage(name, n_available, n_taken, None, None, passed=False, note=note)
    low, high = log_scale_interval(average, error, n_clusters, level)
    slack = 1e-9  # a fixed p of exactly 1 / share has no spread at all
    judged = n_effective >= config.fewest_effective
    passed = not judged or low - slack <= 1.0 <= high + slack
    note = "" if passed else _wrong_average(average, low, high)
    if not judged:
        note = f"its probabilities are worth {n_effective:.0f} equal ones, too few to judge"
    return ActionAverage(name, n_available, n_taken, average, Interval(low, high, level, STUDENT_T), passed, note)


def _wrong_average(average: float, low: float, high: float) -> str:
    which = "too small" if average > 1 else "too large, or none at all in part of the steps that offered it"
    return (
        f"has probabilities {which}: their inverse averages to {apart(average, 1.0)}, with interval "
        f"[{apart(low, 1.0)}, {apart(high, 1.0)}], and right ones to 1"
    )


def _used(used_shares: Floats | None, action: int) -> float:
    return 1.0 if used_shares is None else float(used_shares[action])


class BehaviorModel:
    """Action probabilities of one policy version, fitted on its steps and calibrated on clusters left out of the fit.

    The fit sees no availability; unavailable actions are then given probability 0 and the rest is rescaled.
    """

    def __init__(self, model: Any, n_actions: int, temperature: float, floor: float) -> None:
        self._model, self._n_actions, self._temperature, self._floor = model, n_actions, temperature, floor

    def action_probs(self, features: NDArray[np.float32], available: NDArray[np.bool_]) -> Floats:
        """(n, A) probabilities from (n, D) encoded observations; 0 where unavailable, rows sum to 1.

        A small uniform share keeps available actions that the fit never saw from having probability 0.
        """
        logits = _log_probs(self._model, features, self._n_actions) / self._temperature
        probs = special.softmax(np.where(available, logits, -np.inf), axis=1)
        uniform = available / available.sum(axis=1, keepdims=True)
        return np.asarray((1 - self._floor) * probs + self._floor * uniform)


def fit_behavior_model(
    features: NDArray[np.float32],
    actions: Ints,
    available: NDArray[np.bool_],
    clusters: NDArray[Any],
    *,
    config: PropensityConfig,
    seed: int,
) -> BehaviorModel:
    """Estimate the policy that wrote these steps.

    First fits on part of the clusters are compared on the others, and calibrated there by one temperature; the final
    fit uses all.

    Args:
        features: (n, D) float32 encoded observations.
        actions: (n,) int64 logged actions.
        available: (n, A) bool.
        clusters: (n,) code of each step's cluster.
        config: model and calibration share.
        seed: of the calibration clusters and the trees.

    Raises:
        PropensityError: if there is no step, or only one action was taken.

    Source: Guo et al. 2017, On calibration of modern neural networks (arXiv:1706.04599), section 4.2 (temperature).
    """
    if len(np.unique(actions)) < 2:
        raise PropensityError(
            f"Behavior probabilities cannot be estimated: {len(actions)} steps of one policy version hold "
            f"{len(np.unique(actions))} different actions, and at least two are needed. Log behavior_prob, or let the "
            "logging policy explore."
        )
    n_actions = available.shape[1]
    available = available | (np.arange(n_actions) == actions[:, None])  # what was taken was available
    codes = cluster_codes(clusters)
    draw = np.random.default_rng(seed).random(int(codes.max()) + 1)
    held = (draw < config.calibration_share)[codes]
    temperature, strength = 1.0, _STRENGTHS[0]
    if held.any() and len(np.unique(actions[~held])) >= 2:
        tried = []
        for candidate in _STRENGTHS if config.model == "logistic" else _STRENGTHS[:1]:
            first = _fitted(features[~held], actions[~held], config, seed, candidate)
            logits = np.where(available[held], _log_probs(first, features[held], n_actions), -np.inf)
            best, loss = _best_temperature(logits, actions[held])
            tried.append((loss, candidate, best))
        _, strength, temperature = min(tried)
    final = _fitted(features, actions, config, seed, strength)
    return BehaviorModel(final, n_actions, temperature, floor=n_actions / (len(actions) + n_actions))


_STRENGTHS = (1.0, 30.0)
"""Inverse strengths of the logistic model's shrinkage; too much of it moves every probability towards the mean, and the
weights with them."""


def _fitted(features: NDArray[np.float32], actions: Ints, config: PropensityConfig, seed: int, strength: float) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    model = (
        LogisticRegression(C=strength, max_iter=500)
        if config.model == "logistic"
        else HistGradientBoostingClassifier(max_iter=100, random_state=seed)
    )
    return model.fit(features, actions)


def _log_probs(model: Any, features: NDArray[np.float32], n_actions: int) -> Floats:
    """(n, A) log probabilities; a large negative number for actions that the fit never saw."""
    logits = np.full((len(features), n_actions), -30.0)
    logits[:, model.classes_] = np.maximum(np.log(np.maximum(model.predict_proba(features), 1e-300)), -30.0)
    return logits


def _best_temperature(logits: Floats, actions: Ints) -> tuple[float, float]:
    """The temperature, within [.2, 5], under which (n, A) logits give the (n,) actions the largest likelihood, and -ln
    of that likelihood per action."""

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return -float((scaled[np.arange(len(actions)), actions] - special.logsumexp(scaled, axis=1)).mean())

    best = optimize.minimize_scalar(loss, bounds=(np.log(0.2), np.log(5.0)), method="bounded")
    return float(np.exp(best.x)), float(best.fun)
