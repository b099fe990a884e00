"""Cross-fitting: models of the policies' values, and of the behavior policy, that never saw the episodes they judge.

The gate clusters are dealt into folds; what is used on a fold was fitted on every episode outside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.encoding import Encoder, fit_encoder
from datasets.errors import OfflineDqnError
from datasets.replay import GATE, Replay
from offline_dqn.policy import Policy
from reports.estimators import Floats, Ints
from reports.evaluate_config import PropensityConfig
from reports.intervals import cluster_codes
from reports.propensity import PropensityError, fit_behavior_model
from reports.trial import Role


class NothingToFitError(OfflineDqnError):
    """No episode lies outside a fold."""


class QFunction(Protocol):
    """Fitted action values of one policy."""

    def q_values(self, replay: Replay) -> NDArray[Any]:
        """(T, A) of each step of `replay`, in reward units."""
        ...


class QFitter(Protocol):
    """Fits the action values of a policy on logged episodes."""

    def __call__(self, replay: Replay, evaluation_probs: Floats, *, encoder: Encoder, seed: int) -> QFunction:
        """`evaluation_probs` are (T, A), one row per step of `replay`."""
        ...


def deal_folds(clusters: NDArray[Any], n_folds: int, seed: int) -> Ints:
    """(N,) fold of each episode; clusters stay whole and folds differ by at most one cluster.

    There are as many folds as clusters where those are fewer than `n_folds`.
    """
    codes = cluster_codes(clusters)
    n_clusters = int(codes.max()) + 1
    order = np.random.default_rng(seed).permutation(n_clusters)
    return np.asarray((order % min(n_folds, n_clusters))[codes], dtype=np.int64)


def cross_fit(
    replay: Replay,
    folds: Ints,
    policies: Mapping[Role, Policy],
    fit_q: QFitter,
    *,
    propensity: PropensityConfig,
    seed: int,
) -> tuple[dict[Role, Floats], Floats]:
    """Action values and behavior probabilities on the gate steps, from models that never saw the step's fold.

    Args:
        replay: every split.
        folds: (N,) fold of each gate episode, from `deal_folds`.
        policies: whose action values are wanted; the same object under two roles is fitted once.
        fit_q: fits action values.
        propensity: how behavior probabilities are estimated where the contract says so.
        seed: of the fits.

    Returns:
        (T, A) action values by role, in reward units; (T,) behavior probabilities, NaN where there are none.

    Raises:
        NothingToFitError: if a fold holds every episode there is.
    """
    gate = replay.of_split(GATE)
    q: dict[Role, Floats] = {role: np.empty((gate.n_steps, gate.n_actions)) for role in policies}
    behavior_probs = gate.behavior_prob.copy()
    estimated = replay.contract.behavior.propensity == "estimated"
    for fold in range(int(folds.max()) + 1):
        in_fold = np.zeros(replay.n_episodes, dtype=bool)
        in_fold[np.flatnonzero(replay.split == GATE)[folds == fold]] = True
        held, steps = gate.subset(folds == fold), (folds == fold)[gate.episode_of_step]
        outside = replay.subset(~in_fold)
        if outside.n_episodes == 0:
            raise NothingToFitError(
                "The replay dataset is one cluster of gate episodes: nothing lies outside it to fit a model on. Wait "
                "for more nights."
            )
        encoder = fit_encoder(outside.contract, outside.observations)
        values: dict[int, Floats] = {}
        for role, policy in policies.items():
            if id(policy) not in values:
                fitted = fit_q(outside, step_probs(policy, outside), encoder=encoder, seed=seed + fold)
                values[id(policy)] = np.asarray(fitted.q_values(held), dtype=np.float64)
            q[role][steps] = values[id(policy)]
        if estimated:
            behavior_probs[steps] = estimated_probs(outside, held, encoder, propensity, seed + fold)
    return q, behavior_probs


def step_probs(policy: Policy, replay: Replay) -> Floats:
    """(T, A) probabilities on the steps, without the final observations."""
    rows = np.arange(replay.n_steps)
    return np.asarray(policy.action_probs(replay.observations.take(rows), replay.available[rows]), dtype=np.float64)


def estimated_probs(outside: Replay, held: Replay, encoder: Encoder, config: PropensityConfig, seed: int) -> Floats:
    """(T,) estimated probability of each held step's action, one model per policy version; NaN where none can be."""
    features = encoder.encode(outside.observations)[: outside.n_steps]
    held_features = encoder.encode(held.observations)[: held.n_steps]
    versions = outside.policy_versions[outside.episode_of_step]
    held_versions = held.policy_versions[held.episode_of_step]
    estimated = np.full(held.n_steps, np.nan)
    for version in np.unique(held_versions):
        rows, held_rows = np.flatnonzero(versions == version), np.flatnonzero(held_versions == version)
        try:
            model = fit_behavior_model(
                features[rows],
                outside.actions[rows],
                outside.available[rows],
                outside.clusters[outside.episode_of_step][rows],
                config=config,
                seed=seed,
            )
        except PropensityError:
            continue  # counted as missing, which refuses every weight
        available, taken = held.available[held_rows], held.actions[held_rows]
        available = available | (np.arange(held.n_actions) == taken[:, None])
        probs = model.action_probs(held_features[held_rows], available)
        estimated[held_rows] = probs[np.arange(len(held_rows)), taken]
    return estimated
