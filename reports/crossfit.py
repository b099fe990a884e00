"""Cross-fitting: models of the policies' values, visits, and of the behavior policy, that never saw what they judge.

The gate clusters are dealt into folds; what is used on a fold was fitted on every episode of every other cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.encoding import Encoder, fit_encoder
from datasets.errors import OfflineDqnError
from datasets.replay import GATE, Replay
from datasets.spreading import Spread, one_by_one
from offline_dqn.fqe import HeldOutValues
from offline_dqn.policy import Policy
from offline_dqn.shield import acting_probs
from reports.estimators import Floats, Ints
from reports.evaluate_config import PropensityConfig
from reports.intervals import cluster_codes
from reports.model_error import FoldFit, ModelError, model_error
from reports.propensity import PropensityError, fit_behavior_model


class NothingToFitError(OfflineDqnError):
    """No episode lies outside a fold."""


@dataclass(frozen=True)
class Fold:
    """Episodes that are judged, and those outside, on which their models are fitted.

    Attributes:
        replay: all of them, of every split.
        judged: (N,) bool, the episodes of the fold.
        fitting: (N,) bool, those its models may be fitted on.
        seed: of what is drawn for its models.
    """

    replay: Replay
    judged: NDArray[np.bool_]
    fitting: NDArray[np.bool_]
    seed: int

    @cached_property
    def steps(self) -> NDArray[np.bool_]:
        """(T,) the judged steps of the replay."""
        return np.asarray(self.judged[self.replay.episode_of_step])

    @cached_property
    def outside_steps(self) -> NDArray[np.bool_]:
        """(T,) the steps of the episodes to fit on."""
        return np.asarray(self.fitting[self.replay.episode_of_step])

    @cached_property
    def outside(self) -> Replay:
        """The episodes to fit on."""
        return self.replay.subset(self.fitting)

    @cached_property
    def held(self) -> Replay:
        """The episodes to judge."""
        return self.replay.subset(self.judged)

    @cached_property
    def encoder(self) -> Encoder:
        """Fitted outside."""
        return fit_encoder(self.outside.contract, self.outside.observations)


class FoldModels(Protocol):
    """Prepared episodes outside a fold, from which any policy is modelled."""

    def held_out(self, evaluation_probs: Floats, held_probs: Floats) -> HeldOutValues:
        """Values at the held steps, of a policy with (T_outside, A) probabilities outside and (T_held, A) there."""
        ...

    def state_weights(self, ratios: Floats, *, outside: bool = False) -> Floats:
        """(T_held,) marginalized weights >= 0 of a policy with (T_outside,) ratios of the logged actions outside.

        With `outside`, (T_outside,) of the very steps that they were fitted on.
        """
        ...


class FoldFitter(Protocol):
    """Prepares a fold's models."""

    def __call__(self, fold: Fold) -> FoldModels:
        """Of the episodes outside the fold."""
        ...


@dataclass(frozen=True)
class CrossFitted:
    """What models that never saw an episode say of its steps.

    Attributes:
        q: (T, A) action values by role, in reward units.
        state_weights: (T,) marginalized weights by role; empty where too few behavior probabilities are known.
        model_errors: of the mean value of the first steps, by role; without those whose models do not know it.
        behavior_probs: (T,) of the logged actions; NaN where there are none.
    """

    q: Mapping[str, Floats]
    model_errors: Mapping[str, ModelError]
    state_weights: Mapping[str, Floats]
    behavior_probs: Floats


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
    policies: Mapping[str, Floats],
    fit_models: FoldFitter,
    *,
    propensity: PropensityConfig,
    seed: int,
    spread: Spread = one_by_one,
) -> CrossFitted:
    """Action values, marginalized weights and behavior probabilities on the gate steps, from other episodes.

    Args:
        replay: every split, of T_all steps.
        folds: (N,) fold of each gate episode, from `deal_folds`.
        policies: by role, (T_all, A) probabilities of the policies whose models are wanted; the same array under two
            roles is modelled once.
        fit_models: prepares the models of a fold.
        propensity: how behavior probabilities are estimated where the contract says so.
        seed: of the fits.
        spread: works out the folds.

    Raises:
        NothingToFitError: if a fold holds every episode there is.
    """
    on_gate = replay.split == GATE
    n_folds = int(folds.max()) + 1
    fit = partial(_fit_fold, replay, folds, policies, fit_models, propensity, seed)
    found = spread("fold", fit, range(n_folds))
    q: dict[str, Floats] = {role: np.zeros((replay.n_steps, replay.n_actions)) for role in policies}
    weights: dict[str, Floats] = {role: np.zeros(replay.n_steps) for role in policies}
    fits: dict[str, list[FoldFit]] = {role: [] for role in policies}
    behavior_probs = np.array(replay.behavior_prob)
    for number, of_fold in enumerate(found):
        judged, fitting = _episodes_of_fold(replay, folds, number)
        held = judged[replay.episode_of_step]
        if of_fold.behavior_probs is not None:
            behavior_probs[held] = of_fold.behavior_probs
        for role, same in of_fold.same_as.items():
            values = of_fold.values[same]
            q[role][held] = values.q_values
            fits[role].append(FoldFit(int(judged.sum()) / int(on_gate.sum()), fitting, values))
            if of_fold.state_weights is not None:
                weights[role][held] = of_fold.state_weights[same]
    steps = on_gate[replay.episode_of_step]
    errors = {role: model_error(replay, of_role) for role, of_role in fits.items()}
    weighable = all(of_fold.state_weights is not None for of_fold in found)
    return CrossFitted(
        q={role: values[steps] for role, values in q.items()},
        model_errors={role: error for role, error in errors.items() if error is not None},
        state_weights={role: values[steps] for role, values in weights.items()} if weighable else {},
        behavior_probs=behavior_probs[steps],
    )


@dataclass(frozen=True)
class _OfFold:
    """What the models of one fold say.

    Attributes:
        same_as: by role, the first role with the same policy; that one was modelled.
        values: by modelled role.
        state_weights: (T_held,) by modelled role; None where too few behavior probabilities are known.
        behavior_probs: (T_held,) where they are estimated, else None.
    """

    same_as: Mapping[str, str]
    values: Mapping[str, HeldOutValues]
    state_weights: Mapping[str, Floats] | None
    behavior_probs: Floats | None


def _episodes_of_fold(replay: Replay, folds: Ints, number: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) each: the judged episodes of a fold, and those its models may be fitted on."""
    judged = np.zeros(replay.n_episodes, dtype=bool)
    judged[np.flatnonzero(replay.split == GATE)[folds == number]] = True
    # A judged user's other episodes, of whatever split, would tell the model of that user.
    return judged, ~np.isin(replay.clusters, replay.clusters[judged])


def _fit_fold(
    replay: Replay,
    folds: Ints,
    policies: Mapping[str, Floats],
    fit_models: FoldFitter,
    propensity: PropensityConfig,
    seed: int,
    number: int,
) -> _OfFold:
    """Fold `number`, which rests on no other; arguments as `cross_fit` takes them."""
    judged, fitting = _episodes_of_fold(replay, folds, number)
    if not fitting.any():
        raise NothingToFitError(
            "The replay dataset is one cluster of gate episodes: nothing lies outside it to fit a model on. Wait "
            "for more nights."
        )
    fold = Fold(replay, judged, fitting, seed + number)
    models = fit_models(fold)
    outside_probs = behavior_outside(fold, propensity)
    estimated = None
    if replay.contract.behavior.propensity == "estimated":
        estimated = estimated_probs(fold.outside, fold.held, fold.encoder, propensity, fold.seed)
    same_as: dict[str, str] = {}
    first: dict[int, str] = {}
    values: dict[str, HeldOutValues] = {}
    weights: dict[str, Floats] = {}
    for role, probs in policies.items():
        same_as[role] = first.setdefault(id(probs), role)
        if same_as[role] != role:
            continue
        values[role] = models.held_out(probs[fold.outside_steps], probs[fold.steps])
        if outside_probs is not None:
            ratios = logged_ratios(probs[fold.outside_steps], fold.outside.actions, outside_probs)
            weights[role] = models.state_weights(ratios)
    return _OfFold(same_as, values, None if outside_probs is None else weights, estimated)


def step_probs(policy: Policy, replay: Replay) -> Floats:
    """(T, A) probabilities on the steps, without the final observations, as the policy acts behind the shield."""
    return acting_probs(policy, replay, np.arange(replay.n_steps))


def logged_ratios(probs: Floats, actions: Ints, behavior_probs: Floats) -> Floats:
    """(T,) evaluation_prob / behavior_prob of the logged actions; 1, as if nothing changed, where none is known."""
    ratios = probs[np.arange(len(actions)), actions] / behavior_probs
    return np.where(np.isfinite(ratios), ratios, 1.0)


_MOST_UNKNOWN = 0.1
"""Share of the steps outside a fold that may lack a behavior probability before visits are not modelled."""


def behavior_outside(fold: Fold, config: PropensityConfig) -> Floats | None:
    """(T_outside,) behavior probabilities of the steps models are fitted on; None where too many are unknown."""
    outside = fold.outside
    probs = outside.behavior_prob
    if outside.contract.behavior.propensity == "estimated":
        probs = estimated_probs(outside, outside, fold.encoder, config, fold.seed)
    unknown = float(np.mean(~(probs > 0)))
    return None if unknown > _MOST_UNKNOWN else np.where(probs > 0, probs, np.nan)


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
