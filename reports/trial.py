"""A trial: the gate episodes, the policies judged on them, and every estimator built from the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reports import estimators, one_step
from reports.deciding import Deciding
from reports.estimators import Floats, Ints, RatioSum
from reports.model_error import ModelError
from reports.outcomes import Outcomes
from reports.records import FeasibleRange, PropensityKind

Role = Literal["candidate", "baseline", "version_zero"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One policy on the T gate steps."""

    probs: Floats
    """(T, A) probability of each action, as it acts."""
    q: Floats | None
    """(T, A) its action values, from models not fitted on the step's episode; None where the log gives its value."""
    model_error: ModelError | None = None
    """Of the mean value of the first steps; None where the models do not know it."""
    state_weights: Floats | None = None
    """(T,) marginalized weights, how much more often it visits the step's state; None where they were not modelled."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """T steps of N gate episodes and the policies on trial."""

    names: tuple[str, ...]
    actions: Ints
    rewards: Floats
    available: NDArray[np.bool_]
    behavior_probs: Floats
    propensity_kind: PropensityKind
    offsets: Ints
    clusters: NDArray[Any]
    nights: NDArray[Any]
    truncated: NDArray[np.bool_]
    """(N,) whether the episode was cut at its last step."""
    gamma: float
    feasible: FeasibleRange
    largest_reward: float | None
    candidate: Arm
    baseline: Arm | None
    """None where the episodes' own returns are the baseline's value."""
    version_zero: Arm | None
    version_zero_is_log: bool = False
    """Whether the episodes' own returns are the value of version 0."""
    policy_versions: NDArray[Any] | None = None
    """(N,) policy version that wrote each episode; None where nothing tells them apart."""
    own_q: Floats | None = None
    """(T, A) the candidate's own Q-values; None for a policy without."""
    greedy: Arm | None = None
    """The candidate without exploration; None leaves its value to the candidate's own models."""
    deciding: Deciding = "dr"
    """Whose weights decide: products of ratios, or marginalized ones."""
    window: int = 0
    """Steps of exact products by which the check of marginalized weights looks back."""
    permitted: NDArray[np.bool_] | None = None
    """(T, A) which actions the policies may take, where the contract's constraints forbid some that were available to
    the log; None where they may take all of those."""

    outcomes: Outcomes | None = None
    """What the contract says of the episodes beside their rewards; None where that is nothing."""

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """(T, A) which actions the policies may take."""
        return self.available if self.permitted is None else self.permitted

    @property
    def is_one_step(self) -> bool:
        """Whether every episode is a single decision."""
        return len(self.actions) == len(self.offsets) - 1

    @property
    def arms(self) -> dict[Role, Arm]:
        """The arms whose value is estimated, by role."""
        arms: dict[Role, Arm] = {"candidate": self.candidate}
        if self.baseline is not None and self.baseline.q is not None:
            arms["baseline"] = self.baseline
        if self.version_zero is not None and not self.version_zero_is_log:
            arms["version_zero"] = self.version_zero
        return arms


def feasible_range(low: float | None, high: float | None, gamma: float, longest: int) -> FeasibleRange:
    """Smallest and largest discounted return of 1 to `longest` steps whose rewards lie in [low, high]."""
    weight = float(longest) if gamma == 1 else (1 - gamma**longest) / (1 - gamma)
    return FeasibleRange(
        low=None if low is None else min(low, low * weight),
        high=None if high is None else max(high, high * weight),
        longest_episode=longest,
    )


@dataclass(frozen=True)
class StepWeights:
    """(T,) log weights of every arm, and of the candidate without exploration under "greedy", by role.

    Attributes:
        product: of all ratios of the episode so far.
        marginal: of the state and the step's own ratio; only of arms whose visits are modelled.
        window: of the state some steps ago and the ratios since; likewise.
    """

    product: Mapping[str, Floats]
    marginal: Mapping[str, Floats]
    window: Mapping[str, Floats]

    def of(self, deciding: Deciding) -> Mapping[str, Floats]:
        """Those that an estimator decides with."""
        return self.marginal if deciding == "drl" else self.product


NO_WEIGHTS = StepWeights({}, {}, {})


def step_weights_of(trial: Trial) -> StepWeights:
    """The weights of every step by every arm.

    Raises:
        ValueError: marginalized weights decide, and an arm has none.
    """
    taken = np.arange(len(trial.actions)), trial.actions
    arms: dict[str, Arm] = {str(role): arm for role, arm in trial.arms.items()}
    if trial.greedy is not None:
        arms["greedy"] = trial.greedy
    elif trial.own_q is not None and np.all(np.isfinite(trial.own_q)) and trial.deciding == "dr":
        arms["greedy"] = Arm(probs=greedy_probs(trial.own_q, trial.allowed), q=None)
    product, marginal, window = {}, {}, {}
    for role, arm in arms.items():
        probs = arm.probs[taken]
        product[role] = estimators.cumulative_log_weights(probs, trial.behavior_probs, trial.offsets)
        if arm.state_weights is not None and not trial.is_one_step:
            with np.errstate(divide="ignore"):
                ratios, states = np.log(probs) - np.log(trial.behavior_probs), np.log(arm.state_weights)
            marginal[role] = estimators.windowed_log_weights(ratios, states, trial.offsets, 0)
            window[role] = estimators.windowed_log_weights(ratios, states, trial.offsets, trial.window)
        elif trial.deciding == "drl" and role in trial.arms:
            raise ValueError(f"marginalized weights shall decide, and the {role} has none")
    return StepWeights(product, marginal, window)


def estimators_of(trial: Trial, weights: StepWeights, *, largest_step_table: int) -> dict[str, RatioSum]:
    """Every estimator by "name/role", such as "dr/candidate", on the same episodes.

    "weight" and "balance" are the mean weights of products and of marginalized weights, which should be 1; "greedy" is
    the deciding estimator of the candidate without exploration. Without weights there are only the log's own return
    and the direct method. Where every episode is one step, PDIS, WPDIS and marginalized weights would say the same and
    are left out, and Switch-DR and DRos stand beside DR.

    Args:
        trial: episodes and policies.
        weights: from `step_weights_of`, or `NO_WEIGHTS`.
        largest_step_table: episodes times longest length beyond which WPDIS and WDR are left out.
    """
    offsets, rewards, gamma = trial.offsets, trial.rewards, trial.gamma
    returns = estimators.on_policy_returns(rewards, offsets, gamma)
    sums = {"on_policy/log": estimators.mean_of(returns)}
    for role, arm in trial.arms.items():
        assert arm.q is not None
        values = (arm.probs * arm.q).sum(axis=1)
        first = values[offsets[:-1]]
        if arm.model_error is not None:  # drawing an episode also draws its part in the models of the others
            influence = arm.model_error.gate_influence
            first = first + len(first) * (influence - influence.mean())
        sums[f"direct/{role}"] = estimators.mean_of(first)
        if role not in weights.product:
            continue
        model = rewards, arm.q[np.arange(len(rewards)), trial.actions], values
        steps = weights.product[role]
        whole = estimators.episode_log_weights(steps, offsets)
        sums[f"weight/{role}"] = estimators.importance_sampling(np.ones(len(returns)), whole)
        sums[f"dr/{role}"] = estimators.doubly_robust(*model, steps, offsets, gamma)
        if role in weights.marginal:
            marginal = weights.marginal[role]
            sums[f"balance/{role}"] = estimators.mean_of(estimators.balance_terms(marginal, offsets, gamma))
            sums[f"drl/{role}"] = estimators.doubly_robust(*model, marginal, offsets, gamma)
            if trial.deciding == "drl":
                sums[f"window/{role}"] = estimators.doubly_robust(*model, weights.window[role], offsets, gamma)
        if role != "candidate":
            continue
        sums["is/candidate"] = estimators.importance_sampling(returns, whole)
        sums["wis/candidate"] = estimators.weighted_importance_sampling(returns, whole)
        if trial.is_one_step:
            sums["switch_dr/candidate"] = one_step.switch_doubly_robust(*model, whole, trial.clusters)
            sums["dros/candidate"] = one_step.shrunk_doubly_robust(*model, whole, trial.clusters)
        else:
            sums["pdis/candidate"] = estimators.per_decision(rewards, steps, offsets, gamma)
        if len(returns) * int(np.diff(offsets).max()) <= largest_step_table:
            if not trial.is_one_step:
                sums["wpdis/candidate"] = estimators.weighted_per_decision(rewards, steps, offsets, gamma)
            sums["wdr/candidate"] = estimators.weighted_doubly_robust(*model, steps, offsets, gamma)
        if role in weights.marginal:
            sums["mis/candidate"] = estimators.per_decision(rewards, weights.marginal[role], offsets, gamma)
        decides = weights.of(trial.deciding)
        if "greedy" in decides and trial.own_q is not None:
            # Any Q keeps DR unbiased: without a model of its own, the candidate's serves its greedy form too.
            greedy_q = arm.q if trial.greedy is None or trial.greedy.q is None else trial.greedy.q
            greedy_values = (greedy_probs(trial.own_q, trial.allowed) * greedy_q).sum(axis=1)
            q_taken = greedy_q[np.arange(len(rewards)), trial.actions]
            sums["greedy/candidate"] = estimators.doubly_robust(
                rewards, q_taken, greedy_values, decides["greedy"], offsets, gamma
            )
    return sums


def greedy_probs(q: Floats, available: NDArray[np.bool_]) -> Floats:
    """(T, A) 1 for the first best available action."""
    return np.asarray(np.eye(q.shape[1])[np.argmax(masked(q, available), axis=1)])


def masked(q: Floats, available: NDArray[np.bool_]) -> Floats:
    """(T, A) Q-values with -inf for unavailable actions."""
    return np.where(available, q, -np.inf)
