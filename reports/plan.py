"""What a log can decide, before anything is trained on it.

Closed forms for orientation: which improvement the gate could see with candidates that act differently in a few percent
of the decisions, by the estimator that its rule would choose, and what it would take to see more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from datasets.errors import OfflineDqnError
from datasets.replay import Replay
from reports import records
from reports.deciding import DecidingConfig
from reports.dependence import design_effect
from reports.estimators import Floats, discounted, on_policy_returns
from reports.formatting import number
from reports.gate import GateConfig
from reports.intervals import cluster_codes, variance_of_mean
from reports.plan_costs import (
    Horizon,
    Move,
    candidate_move,
    explored_move,
    horizon_of,
    log_cost,
    smallest_exploration,
    variance_of_marginal,
    variance_of_products,
    variance_ratio,
)
from reports.plan_support import (
    ActionSupport,
    Exploration,
    choices,
    exploration_of,
    n_available,
    refusal_of,
    support_of,
)
from reports.records import DesignEffect, PropensityKind

CHANGED_SHARES = (0.02, 0.05, 0.10, 0.25)
"""Shares of open decisions in which the imagined candidates act differently."""
POWER = 0.8
"""Chance with which a real improvement of the stated size would pass the gate's value bound."""
WANTED_IMPROVEMENT = 0.05
"""The improvement whose price is stated, as a share of the mean return's size."""

_LARGEST_COUNT = 1e12  # more episodes than this is no plan


class PlanError(OfflineDqnError):
    """There is no episode to plan with."""


@dataclass(frozen=True)
class Priced:
    """What one estimator could decide."""

    estimator: str
    """"dr", weights that are products of ratios, or "drl", marginalized weights."""
    n_effective: float
    """Effective episodes among the gate's; 0 where it underflows."""
    smallest_difference: float | None
    """Smallest improvement, in reward units per episode, that passes with `POWER`; None where undecidable."""
    undecidable: str | None
    """Why nothing could be decided."""


@dataclass(frozen=True)
class Decidable:
    """What the gate could decide about candidates that change this share of the open decisions."""

    changed_share: float
    log10_cost: float
    """log10 of the episodes it takes for one effective episode with products of ratios."""
    products: Priced
    marginal: Priced | None
    """None where every episode is one step: it would be the same."""
    estimator: str
    """Which of the two the gate's rule would choose."""
    episodes_needed: int | None
    """Episodes of log for `WANTED_IMPROVEMENT`; None where no plausible number would do, or the mean return is 0."""
    nights_needed: int | None
    exploration_needed: float | None
    """Share of the decisions in which log and candidate would have to act uniformly for `WANTED_IMPROVEMENT` to be
    decided by as many episodes as there are; None where it is decided already, or the mean return is 0."""

    @property
    def chosen(self) -> Priced:
        """What the rule's estimator could decide."""
        return self.marginal if self.estimator == "drl" and self.marginal is not None else self.products


@dataclass(frozen=True)
class LogPlan:
    """What a log can decide. Returns are discounted, in reward units per episode."""

    n_episodes: int
    n_steps: int
    n_decisions: int
    n_clusters: int
    n_nights: int
    propensity: PropensityKind
    """Whether the contract wants probabilities logged or estimated."""
    n_missing: int
    """Steps without a behavior probability."""
    n_usable: int
    """Episodes all of whose steps have one."""
    n_gate: float
    """Usable episodes expected in the gate's share; of all episodes where no probability is logged."""
    mean_length: float
    median_length: float
    longest_length: int
    truncated_share: float
    mean_return: float
    return_sd: float | None
    """Standard deviation of an episode's return that carries the dependence within clusters; None for one cluster."""
    ab_test_difference: float | None
    """Smallest improvement that a test of both policies on as many episodes each would decide; for comparison."""
    exploration: Exploration | None
    actions: tuple[ActionSupport, ...]
    refused: str | None
    """Why nothing can be weighted whatever the candidate; `decidable` is then empty."""
    move: Move | None
    decidable: tuple[Decidable, ...]
    needed_exploration: tuple[tuple[float, float], ...]
    """Changed share, and the exploration of log and candidate that would decide `WANTED_IMPROVEMENT`, whatever the log
    did; empty where no step offered a choice, or no exploration would do."""
    night_effect: DesignEffect | None
    """Whether nights share what clusters do not, judged on a candidate that acts uniformly; None for one night."""
    night_effect_refuses: bool
    """Whether the gate would refuse for it. The differences then take nights for independent instead of clusters."""
    gate_share: float
    alpha: float
    smallest_sample_size: float

    def to_json(self) -> dict[str, Any]:
        """The plan as plain dictionaries and lists, fit for `json.dumps`."""
        plain = records.to_json(self)
        assert isinstance(plain, dict)
        return plain


def plan_log(
    replay: Replay, gate_config: GateConfig, gate_share: float, deciding: DecidingConfig | None = None
) -> LogPlan:
    """What the gate could decide from this log, before any training.

    For candidates that change a share m of the open decisions, E[ratio^2] of a decision exceeds 1 by
    m d^2 (1/b0 + 1/b1), with (b0, b1, d) from `candidate_move`, and the smallest difference is

        (z_(1 - alpha) + z_POWER) sd sqrt(v / n_gate),

    the textbook one of a one-sided test, with sd from the variance between clusters and v from `variance_of_products`
    or `variance_of_marginal`. Both know that the gate subtracts the log's own return on the same episodes. They take a
    model's errors to spread like the log's returns; a model that explains returns does better. Marginalized weights
    do worse where the candidate goes to states that the log seldom sees. Where rewards hardly vary beyond what
    a model explains, the differences are too cautious.

    The effective episodes are what a very large log would show. Products of ratios have a heavy tail: the size measured
    on a few thousand long episodes is usually a few times larger, and at times far smaller.

    Args:
        replay: every episode of the log; its split plays no part.
        gate_config: alpha, fewest episodes and smallest effective sample size.
        gate_share: share of the episodes that the gate will read, in (0, 1].
        deciding: by which rule an estimator is chosen; None: the default one.

    Raises:
        PlanError: if there is no episode.
        PropensityError: if a logged probability is outside (0, 1].
        ValueError: if gate_share is outside (0, 1].

    Source: Kish 1965, Survey Sampling (effective sample size); Kong 1992, A note on importance sampling using
    standardized weights (its use for importance weights); Jiang and Li 2016, Kallus and Uehara 2020 (variances).
    """
    if not 0 < gate_share <= 1:
        raise ValueError(f"gate_share is {gate_share}, wanted a share in (0, 1].")
    if replay.n_episodes == 0:
        raise PlanError("The log holds no episode to plan with. Ingest nights whose episodes are complete.")
    deciding = deciding or DecidingConfig()
    known = ~np.isnan(replay.behavior_prob)
    missing = np.bincount(replay.episode_of_step, weights=~known, minlength=replay.n_episodes) > 0
    usable = replay if not missing.any() else replay.subset(~missing)
    n_gate = gate_share * (usable.n_episodes or replay.n_episodes)
    gamma = replay.contract.gamma
    returns = on_policy_returns(replay.rewards, replay.offsets, gamma)
    n_clusters = len(np.unique(replay.clusters))
    choice = choices(replay)
    alike = _all_alike(replay.rewards, returns)
    refused = alike or refusal_of(usable, n_clusters)
    effect = None if usable.n_episodes == 0 or n_clusters < 2 else _night_effect(usable)
    nights_refuse = (
        effect is not None
        and effect.value > gate_config.largest_design_effect
        and effect.p_value <= gate_config.design_effect_level
    )
    units = replay.nights if nights_refuse else replay.clusters
    sd = math.sqrt(variance_of_mean(returns, units) * len(returns)) if n_clusters > 1 else None
    scale = _Scale(
        n_gate=n_gate,
        per_night=replay.n_episodes / len(np.unique(replay.nights)),
        gate_share=n_gate / replay.n_episodes,
        wanted=WANTED_IMPROVEMENT * abs(float(returns.mean())),
        sd=sd,
        z=float(stats.norm.ppf(1 - gate_config.alpha) + stats.norm.ppf(POWER)),
        gate=gate_config,
        largest_variance_ratio=deciding.largest_variance_ratio,
    )
    move = None if refused else candidate_move(usable.behavior_prob, n_available(usable))
    needed: list[tuple[float, float]] = []
    if choice.any() and sd is not None and alike is None:
        whole, n_actions = horizon_of(choice, replay.offsets, gamma), float(n_available(replay)[choice].mean())
        found = ((m, _exploration_for(m, whole, n_actions, scale)) for m in CHANGED_SHARES)
        needed = [(m, exploration) for m, exploration in found if exploration is not None]
    decidable: tuple[Decidable, ...] = ()
    if move is not None and sd is not None:
        horizon = horizon_of(choices(usable) & (usable.behavior_prob < 1), usable.offsets, gamma)
        decidable = tuple(_decidable(m, m * move.cost, horizon, scale, dict(needed).get(m)) for m in CHANGED_SHARES)
    return LogPlan(
        n_episodes=replay.n_episodes,
        n_steps=replay.n_steps,
        n_decisions=int(choice.sum()),
        n_clusters=n_clusters,
        n_nights=len(np.unique(replay.nights)),
        propensity=replay.contract.behavior.propensity,
        n_missing=int((~known).sum()),
        n_usable=usable.n_episodes,
        n_gate=n_gate,
        mean_length=float(replay.lengths.mean()),
        median_length=float(np.median(replay.lengths)),
        longest_length=int(replay.lengths.max()),
        truncated_share=float(replay.truncated[replay.offsets[1:] - 1].mean()),
        mean_return=float(returns.mean()),
        return_sd=sd,
        ab_test_difference=None if sd is None or alike else scale.difference(2.0, n_gate),
        exploration=exploration_of(replay.behavior_prob[choice & known], n_available(replay)[choice & known]),
        actions=support_of(replay),
        refused=refused,
        move=move,
        decidable=decidable,
        needed_exploration=tuple(needed),
        night_effect=effect,
        night_effect_refuses=nights_refuse,
        gate_share=gate_share,
        alpha=gate_config.alpha,
        smallest_sample_size=gate_config.overlap.smallest_sample_size,
    )


@dataclass(frozen=True)
class _Scale:
    """What turns variances into differences, episodes and nights."""

    n_gate: float
    per_night: float
    gate_share: float
    wanted: float
    sd: float | None
    z: float
    gate: GateConfig
    largest_variance_ratio: float

    def difference(self, variance: float, n: float) -> float:
        """Smallest one that n episodes decide, where `variance` is that of the difference over that of a return."""
        assert self.sd is not None
        return self.z * self.sd * math.sqrt(variance / n)

    def log_episodes_for_wanted(self, variance: float) -> float:
        """ln of the gate episodes that decide the wanted improvement, which must not be 0."""
        assert self.sd is not None
        return math.log(max(variance, 1e-300)) + 2 * math.log(max(self.z * self.sd, 1e-300) / self.wanted)


def _priced(estimator: str, variance: float, cost: float, scale: _Scale) -> Priced:
    """`cost` is ln of the episodes for an effective one."""
    n_effective = math.exp(math.log(scale.n_gate) - cost)
    smallest, cause = scale.gate.overlap.smallest_sample_size, None
    if n_effective < smallest:
        cause = f"the gate needs {smallest:g} effective episodes, this log gives {count_words(n_effective)}"
    elif scale.n_gate < scale.gate.min_episodes:
        cause = f"the gate needs {scale.gate.min_episodes:,} episodes, this log gives {scale.n_gate:,.0f}"
    return Priced(estimator, n_effective, None if cause else scale.difference(variance, scale.n_gate), cause)


def _rule(excess: float, horizon: Horizon, scale: _Scale) -> tuple[str, float, float]:
    """The estimator that the gate's rule would choose, its variance, and ln of its cost."""
    if horizon.one_step or variance_ratio(excess, horizon) <= scale.largest_variance_ratio:
        return "dr", variance_of_products(excess, horizon), log_cost(excess, horizon.decisions)
    return "drl", variance_of_marginal(excess, horizon), math.log1p(excess)


def _decidable(changed: float, excess: float, horizon: Horizon, scale: _Scale, exploration: float | None) -> Decidable:
    cost = log_cost(excess, horizon.decisions)
    estimator, variance, rule_cost = _rule(excess, horizon, scale)
    products = _priced("dr", variance_of_products(excess, horizon), cost, scale)
    marginal = None
    if not horizon.one_step:
        marginal = _priced("drl", variance_of_marginal(excess, horizon), math.log1p(excess), scale)
    chosen = marginal if estimator == "drl" and marginal is not None else products
    episodes = None
    if scale.wanted > 0:
        smallest = math.log(scale.gate.overlap.smallest_sample_size) + rule_cost
        needed = max(scale.log_episodes_for_wanted(variance), smallest, math.log(scale.gate.min_episodes))
        needed -= math.log(scale.gate_share)
        episodes = math.ceil(math.exp(needed) * (1 - 1e-9)) if needed < math.log(_LARGEST_COUNT) else None
    decided = chosen.smallest_difference is not None and chosen.smallest_difference <= scale.wanted
    return Decidable(
        changed_share=changed,
        log10_cost=cost / math.log(10),
        products=products,
        marginal=marginal,
        estimator=estimator,
        episodes_needed=episodes,
        nights_needed=None if episodes is None else math.ceil(episodes / scale.per_night),
        exploration_needed=None if decided else exploration,
    )


def _exploration_for(changed: float, horizon: Horizon, n_actions: float, scale: _Scale) -> float | None:
    """The smallest exploration of log and candidate with which the gate's episodes decide the wanted improvement.

    Where the mean return is 0, with which they decide anything.
    """
    if scale.n_gate < scale.gate.min_episodes:
        return None

    def affordable(exploration: float) -> bool:
        _, variance, cost = _rule(changed * explored_move(exploration, n_actions).cost, horizon, scale)
        effective = math.log(scale.n_gate) - cost >= math.log(scale.gate.overlap.smallest_sample_size)
        return effective and (not scale.wanted or scale.difference(variance, scale.n_gate) <= scale.wanted)

    return smallest_exploration(affordable)


def _all_alike(rewards: Floats, returns: Floats) -> str | None:
    """Why nothing can be improved: every episode returns the same; None where they differ by more than rounding."""
    if np.ptp(returns) > 1e-12 * float(np.abs(returns).max()):
        return None
    same = f"reward is {number(rewards[0])}" if np.ptp(rewards) == 0 else f"episode returns {number(returns[0])}"
    return f"every {same}, so there is nothing to improve and no policy can be told from another"


def _night_effect(usable: Replay) -> DesignEffect | None:
    """The design effect of nights on what a candidate that acts uniformly would be judged by, by its steps alone."""
    nights, clusters = cluster_codes(usable.nights), cluster_codes(usable.clusters)
    if nights.max() == 0:
        return None
    uniform = 1 / (usable.behavior_prob * n_available(usable)) - 1
    errors = discounted(usable.rewards - usable.rewards.mean(), usable.offsets, usable.contract.gamma)
    with np.errstate(over="ignore", invalid="ignore"):
        terms = np.add.reduceat(uniform * errors, usable.offsets[:-1])
        spread = float(np.square(terms - terms.mean()).sum())
    if not math.isfinite(spread) or spread == 0:
        return None
    rng = np.random.default_rng(0)
    return design_effect("night", nights, "cluster", clusters, terms, ignored=True, rng=rng)


def count_words(n: float) -> str:
    """A number of episodes, as a sentence says it."""
    return "under 0.1" if n < 0.1 else number(n, 3 if n < 1000 else 4)
