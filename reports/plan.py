"""What a log can decide, before anything is trained on it.

Closed forms for orientation: how many of the gate's episodes would still count for candidates that act differently in
a few percent of the decisions, which improvement the gate could then see, and what it would take to see more.

A *decision* is a step with more than one available action. It is *open* unless the log gives its action probability 1;
in the other decisions nothing can be judged but what the log did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from datasets.errors import OfflineDqnError
from datasets.replay import Replay
from reports import records
from reports.estimators import Floats, Ints, on_policy_returns
from reports.evaluate_config import PropensityConfig
from reports.formatting import number, share
from reports.gate import GateConfig
from reports.intervals import variance_of_mean
from reports.propensity import check_propensities
from reports.records import PropensityKind

CHANGED_SHARES = (0.02, 0.05, 0.10, 0.25)
"""Shares of open decisions in which the imagined candidates act differently."""
POWER = 0.8
"""Chance with which a real improvement of the stated size would pass the gate's value bound."""
WANTED_IMPROVEMENT = 0.05
"""The improvement whose price is stated, as a share of the mean return's size."""
AFFORDABLE_COST = 20.0
"""Episodes per effective episode that the stated exploration would bring about."""

_CANDIDATE_EXPLORATION = 0.05  # of a candidate, where the log takes no action usually and so sets no example
_LARGEST_COUNT = 1e12  # more episodes than this is no plan
_RARE = 10  # an action taken less often is named


class PlanError(OfflineDqnError):
    """There is no episode to plan with."""


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


@dataclass(frozen=True)
class Move:
    """What a candidate does in an open decision where it departs from the log, as the closed forms imagine it."""

    usual_prob: float
    """b0: logged probability of what it moves away from."""
    other_prob: float
    """b1: logged probability of the action it moves to."""
    moved: float
    """d: the probability it moves."""
    has_usual: bool
    """Whether the log takes one action with probability above 1/2 in most open decisions."""

    @property
    def cost(self) -> float:
        """d^2 (1/b0 + 1/b1), by which E[ratio^2] of the decision exceeds 1."""
        return self.moved**2 * (1 / self.usual_prob + 1 / self.other_prob)


@dataclass(frozen=True)
class Decidable:
    """What the gate could decide about candidates that change this share of the open decisions."""

    changed_share: float
    log10_cost: float
    """log10 of the episodes it takes for one effective episode."""
    n_effective: float
    """Effective episodes among the gate's; 0 where it underflows."""
    smallest_difference: float | None
    """Smallest improvement, in reward units per episode, that passes with `POWER`; None where undecidable."""
    undecidable: str | None
    """Why nothing could be decided."""
    episodes_needed: int | None
    """Episodes of log for `WANTED_IMPROVEMENT`; None where no plausible number would do, or the mean return is 0."""
    nights_needed: int | None


@dataclass(frozen=True)
class NeededExploration:
    """The exploration at which candidates that change this share of the decisions cost `AFFORDABLE_COST` episodes."""

    changed_share: float
    exploration: float
    """Share of the decisions that log and candidate take uniformly over the available actions."""


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
    on_policy_difference: float | None
    """Smallest improvement if the candidate itself had written the gate's episodes, so that all would count."""
    exploration: Exploration | None
    actions: tuple[ActionSupport, ...]
    refused: str | None
    """Why nothing can be weighted whatever the candidate; `decidable` is then empty."""
    move: Move | None
    decidable: tuple[Decidable, ...]
    needed_exploration: tuple[NeededExploration, ...]
    """What makes this horizon decidable, whatever the log did; empty where no step offered a choice."""
    gate_share: float
    alpha: float
    smallest_sample_size: float

    def to_json(self) -> dict[str, Any]:
        """The plan as plain dictionaries and lists, fit for `json.dumps`."""
        plain = records.to_json(self)
        assert isinstance(plain, dict)
        return plain

    def sentences(self) -> list[str]:
        """The plan for a person, from what is there to what it would take."""
        return [*_data_sentences(self), *_exploration_sentences(self), *_support_sentences(self), *_verdicts(self)]


def plan_log(replay: Replay, gate_config: GateConfig, gate_share: float) -> LogPlan:
    """What the gate could decide from this log, before any training.

    For candidates that change a share m of the open decisions, of which episode i has L_i,

        n_effective = n_gate / mean_i (1 + m d^2 (1/b0 + 1/b1))^(L_i)
        smallest difference = (z_(1 - alpha) + z_POWER) sd / sqrt(n_effective)

    with (b0, b1, d) from `candidate_move` and sd from the variance between clusters. Derivation: moving d from an
    action of probability b0 to one of b1 gives E[ratio^2] = 1 + d^2 (1/b0 + 1/b1); decisions that come independently
    multiply; E[weight] = 1; and n / E[weight^2] is Kish's effective sample size. The difference is the textbook one of
    a one-sided test. It takes the candidate's returns to spread like the log's. It is cautious, as the gate's pairing
    with the log leaves E[weight^2] - 1 in place of E[weight^2]: much less for candidates close to the log. Visits that
    repeat a changed state do worse.

    n_effective is what a very large log would show. Products of ratios have a heavy tail: the size measured on a few
    thousand long episodes is usually a few times larger, and at times far smaller.

    Args:
        replay: every episode of the log; its split plays no part.
        gate_config: alpha, fewest episodes and smallest effective sample size.
        gate_share: share of the episodes that the gate will read, in (0, 1].

    Raises:
        PlanError: if there is no episode.
        PropensityError: if a logged probability is outside (0, 1].
        ValueError: if gate_share is outside (0, 1].

    Source: Kish 1965, Survey Sampling (effective sample size); Kong 1992, A note on importance sampling using
    standardized weights (its use for importance weights).
    """
    if not 0 < gate_share <= 1:
        raise ValueError(f"gate_share is {gate_share}, wanted a share in (0, 1].")
    if replay.n_episodes == 0:
        raise PlanError("The log holds no episode to plan with. Ingest nights whose episodes are complete.")
    known = ~np.isnan(replay.behavior_prob)
    missing = np.bincount(replay.episode_of_step, weights=~known, minlength=replay.n_episodes) > 0
    usable = replay if not missing.any() else replay.subset(~missing)
    n_gate = gate_share * (usable.n_episodes or replay.n_episodes)
    returns = on_policy_returns(replay.rewards, replay.offsets, replay.contract.gamma)
    n_clusters = len(np.unique(replay.clusters))
    sd = math.sqrt(variance_of_mean(returns, replay.clusters) * len(returns)) if n_clusters > 1 else None
    choice = _choices(replay)
    refused = _refusal(usable, n_clusters)
    move = None if refused else candidate_move(usable.behavior_prob, _n_available(usable))
    scale = _Scale(
        n_gate=n_gate,
        per_night=replay.n_episodes / len(np.unique(replay.nights)),
        gate_share=gate_share * (usable.n_episodes or replay.n_episodes) / replay.n_episodes,
        mean_return=float(returns.mean()),
        sd=sd,
        z=float(stats.norm.ppf(1 - gate_config.alpha) + stats.norm.ppf(POWER)),
    )
    needed: tuple[NeededExploration, ...] = ()
    if choice.any():
        per_episode, n_actions = _per_episode(choice, replay), float(_n_available(replay)[choice].mean())
        needed = tuple(NeededExploration(m, exploration_for(m, per_episode, n_actions)) for m in CHANGED_SHARES)
    decidable: tuple[Decidable, ...] = ()
    if move is not None and sd is not None:
        open_decisions = _per_episode(_choices(usable) & (usable.behavior_prob < 1), usable)
        decidable = tuple(
            _decidable(m, log_cost(m * move.cost, open_decisions), scale, gate_config) for m in CHANGED_SHARES
        )
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
        mean_return=scale.mean_return,
        return_sd=sd,
        on_policy_difference=None if sd is None else scale.difference(n_gate),
        exploration=_exploration(replay.behavior_prob[choice & known], _n_available(replay)[choice & known]),
        actions=_support(replay),
        refused=refused,
        move=move,
        decidable=decidable,
        needed_exploration=needed,
        gate_share=gate_share,
        alpha=gate_config.alpha,
        smallest_sample_size=gate_config.overlap.smallest_sample_size,
    )


def candidate_move(behavior_prob: Floats, n_available: Ints) -> Move:
    """The typical b0, b1 and d of a candidate that acts differently, from logged-action probabilities alone.

    Where most open decisions have p above 1/2, b0 is the mean p of those, and b1 the mean probability of another
    action: K other actions, drawn with their own probabilities, have E[1/p] = K / their total, so the harmonic mean of
    the logged p is their arithmetic mean. The candidate swaps the two, exploring like the log: d = b0 - b1.

    Elsewhere no action is usual. b1 is then the harmonic mean over all open decisions, b0 the rest, 1 - b1, and the
    candidate takes its own choice but for a small exploration, scaling all other actions down alike.

    In both, b1 is at least what it is if the log tries every available action: one tiny p must not decide.

    Args:
        behavior_prob: (T,) logged, in (0, 1].
        n_available: (T,) actions that were available.

    Raises:
        ValueError: if no decision is open.
    """
    is_open = (n_available > 1) & (behavior_prob < 1)
    if not is_open.any():
        raise ValueError("No decision is open: every step has one available action or probability 1.")
    p, n = behavior_prob[is_open], n_available[is_open]
    usual = p > 0.5
    if usual.mean() > 0.5:
        b0 = float(p[usual].mean())
        spread = float(((1 - p[usual]) / (n[usual] - 1)).mean())
        b1 = spread if usual.all() else min(max(_harmonic_mean(p[~usual]), spread), 1 - b0)
        return Move(b0, b1, b0 - b1, has_usual=True)
    spread = float((1 / n).mean())
    b1 = max(_harmonic_mean(p), spread)
    chosen = 1 - _CANDIDATE_EXPLORATION * (1 - spread)
    return Move(1 - b1, b1, max(chosen - b1, 0.0), has_usual=False)


def log_cost(excess: float, decisions: Ints) -> float:
    """ln of the episodes that one effective episode takes: ln mean_i (1 + excess)^(L_i), over (N,) counts L_i.

    `excess` is by how much E[ratio^2] of a decision exceeds 1. In log space, as the power overflows at long horizons.
    """
    return float(special.logsumexp(decisions * math.log1p(excess)) - math.log(len(decisions)))


def exploration_for(changed_share: float, decisions: Ints, n_actions: float) -> float:
    """The smallest exploration of log and candidate at which an effective episode costs `AFFORDABLE_COST` episodes.

    Both take their usual action with b0 = 1 - e + e / A and each other with b1 = e / A: the cost falls as e grows, and
    is 1 at e = 1. Where even 1e-6 would do, that.

    Args:
        changed_share: m.
        decisions: (N,) per episode.
        n_actions: A, mean number of available actions, above 1.
    """

    def excess_cost(exploration: float) -> float:
        b1 = exploration / n_actions
        b0 = 1 - exploration + b1
        cost = (1 - exploration) ** 2 * (1 / b0 + 1 / b1)
        return log_cost(changed_share * cost, decisions) - math.log(AFFORDABLE_COST)

    return 1e-6 if excess_cost(1e-6) <= 0 else float(optimize.brentq(excess_cost, 1e-6, 1.0, xtol=1e-6))


@dataclass(frozen=True)
class _Scale:
    """What turns effective episodes into differences and nights."""

    n_gate: float
    per_night: float
    gate_share: float
    mean_return: float
    sd: float | None
    z: float

    def difference(self, n_effective: float) -> float:
        assert self.sd is not None
        return self.z * self.sd / math.sqrt(n_effective)

    def log_effective_for(self, difference: float, smallest: float) -> float:
        """ln of the effective episodes that decide `difference`, at least `smallest`."""
        assert self.sd is not None
        return max(2 * math.log(max(self.z * self.sd, 1e-300) / difference), math.log(smallest))


def _decidable(changed: float, cost: float, scale: _Scale, gate: GateConfig) -> Decidable:
    n_effective = math.exp(math.log(scale.n_gate) - cost)
    smallest, cause = gate.overlap.smallest_sample_size, None
    if n_effective < smallest:
        cause = f"{_count(n_effective)} effective episodes, and the gate asks for {smallest:g}"
    elif scale.n_gate < gate.min_episodes:
        cause = f"{scale.n_gate:.0f} gate episodes, and the gate asks for {gate.min_episodes}"
    episodes = None
    if scale.mean_return != 0:
        needed = scale.log_effective_for(WANTED_IMPROVEMENT * abs(scale.mean_return), smallest) + cost
        needed = max(needed, math.log(gate.min_episodes)) - math.log(scale.gate_share)
        episodes = math.ceil(math.exp(needed)) if needed < math.log(_LARGEST_COUNT) else None
    return Decidable(
        changed_share=changed,
        log10_cost=cost / math.log(10),
        n_effective=n_effective,
        smallest_difference=None if cause else scale.difference(n_effective),
        undecidable=cause,
        episodes_needed=episodes,
        nights_needed=None if episodes is None else math.ceil(episodes / scale.per_night),
    )


def _harmonic_mean(values: Floats) -> float:
    return float(1 / (1 / values).mean())


def _refusal(usable: Replay, n_clusters: int) -> str | None:
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


def _n_available(replay: Replay) -> Ints:
    return np.asarray(replay.available[: replay.n_steps].sum(axis=1), dtype=np.int64)


def _choices(replay: Replay) -> NDArray[np.bool_]:
    return np.asarray(_n_available(replay) > 1)


def _per_episode(steps: NDArray[np.bool_], replay: Replay) -> Ints:
    return np.add.reduceat(steps.astype(np.int64), replay.offsets[:-1])


def _exploration(p: Floats, n_available: Ints) -> Exploration | None:
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


def _support(replay: Replay) -> tuple[ActionSupport, ...]:
    known = ~np.isnan(replay.behavior_prob)
    n_available = replay.available[: replay.n_steps].sum(axis=0)
    found = []
    for a, name in enumerate(replay.contract.actions.names):
        taken = replay.actions == a
        p = replay.behavior_prob[taken & known]
        n_taken = int(taken.sum())
        mean = float(p.mean()) if len(p) else None
        found.append(ActionSupport(name, n_taken, n_taken / replay.n_steps, int(n_available[a]), mean))
    return tuple(found)


def _data_sentences(plan: LogPlan) -> list[str]:
    found = [
        f"{plan.n_episodes:,} episodes with {plan.n_steps:,} steps, in {plan.n_clusters:,} clusters over "
        f"{plan.n_nights:,} {'night' if plan.n_nights == 1 else 'nights'}; in {plan.n_decisions:,} steps there was a "
        f"choice. "
        + (
            "Each episode is one step."
            if plan.longest_length == 1
            else f"An episode has {number(plan.mean_length, 3)} steps on average (median "
            f"{number(plan.median_length, 3)}, longest {plan.longest_length:,})."
        ),
        f"An episode returns {number(plan.mean_return)} on average"
        + ("." if plan.return_sd is None else f", with a standard deviation of {number(plan.return_sd, 3)}."),
    ]
    if plan.truncated_share > 0:
        found.append(f"{share(plan.truncated_share)} of the episodes are cut by the log and not ended.")
    if plan.on_policy_difference is not None:
        found.append(
            f"The gate would read about {plan.n_gate:,.0f} of them. If each counted in full, it could decide an "
            f"improvement of {number(plan.on_policy_difference, 3)}; weighting costs episodes, and makes that larger."
        )
    return found


def _exploration_sentences(plan: LogPlan) -> list[str]:
    found = []
    if plan.n_missing:
        found.append(
            f"{plan.n_missing:,} of {plan.n_steps:,} steps have no behavior probability; {plan.n_usable:,} episodes "
            "have them all. How much the log explores cannot be known from what is missing. "
            + (
                "The evaluation will estimate the missing ones; logging behavior_prob is safer."
                if plan.propensity == "estimated"
                else 'Log behavior_prob, or set behavior.propensity = "estimated" in the contract.'
            )
        )
    seen = plan.exploration
    if seen is None:
        return found
    if math.isclose(seen.low, seen.high, abs_tol=1e-9):
        found.append(f"The log explores in {share(seen.low)} of its decisions.")
    else:
        found.append(
            f"The log explores in {share(seen.low)} to {share(seen.high)} of its decisions; the probability of the "
            "logged action alone does not say it more closely."
        )
    found.append(
        f"Logged probabilities: mean {number(seen.mean_logged, 3)}, smallest {number(seen.smallest, 3)}, under 1/2 in "
        f"{share(seen.below_half)} and under 1% in {share(seen.below_one_percent)} of the decisions"
        + (", all the same." if seen.constant else ".")
    )
    if 0 < seen.certain < 1:
        found.append(
            f"In {share(seen.certain)} of the decisions the log was certain, and shows nothing of the other actions. "
            "Let it explore there too, or log in available_actions that it had no choice."
        )
    return found


def _support_sentences(plan: LogPlan) -> list[str]:
    never = [a.action for a in plan.actions if a.n_taken == 0]
    rare = [f"{a.action} ({a.n_taken})" for a in plan.actions if 0 < a.n_taken < _RARE]
    found = [f"Never taken, so nothing can be said of them: {', '.join(never)}."] if never else []
    return found + ([f"Taken fewer than {_RARE} times: {', '.join(rare)}."] if rare else [])


def _verdicts(plan: LogPlan) -> list[str]:
    if plan.refused is not None:
        awaited = plan.propensity == "estimated" and plan.n_usable == 0
        verdict = "Until they are estimated, no more can be said" if awaited else "As it is, this log decides nothing"
        return [f"{verdict}: {plan.refused}.", *_advice(plan.needed_exploration)]
    assert plan.move is not None
    limit = math.log10(AFFORDABLE_COST)
    too_costly = {row.changed_share for row in plan.decidable if row.undecidable and row.log10_cost > limit}
    exploring = (
        "explores like the log (exploring less, everywhere, costs more)"
        if plan.move.has_usual
        else f"explores in {share(_CANDIDATE_EXPLORATION)} of them, as the log takes no action usually"
    )
    return [
        *(_verdict(row, plan) for row in plan.decidable),
        *_advice(tuple(need for need in plan.needed_exploration if need.changed_share in too_costly)),
        f"All this is orientation, at alpha {plan.alpha:g} and {share(POWER)} power: closed forms for a candidate that "
        f"moves {number(plan.move.moved, 2)} of the probability to an action of probability "
        f"{number(plan.move.other_prob, 2)} in the decisions it changes, and {exploring}. The differences are "
        "cautious for candidates close to the log.",
    ]


def _verdict(row: Decidable, plan: LogPlan) -> str:
    about = f"A candidate that acts differently in {share(row.changed_share)} of the decisions: "
    if row.smallest_difference is not None:
        about += f"decidable from an improvement of {number(row.smallest_difference, 3)} on"
        if plan.mean_return:
            about += f" ({share(row.smallest_difference / abs(plan.mean_return))} of the mean return)"
        about += f", with {_count(row.n_effective)} effective episodes."
    else:
        about += f"undecidable; {row.undecidable}. One effective episode takes {_cost(row.log10_cost)} episodes."
    if row.episodes_needed is not None and row.nights_needed is not None:
        about += (
            f" An improvement of {share(WANTED_IMPROVEMENT)} of the mean return takes about "
            f"{_rounded(row.episodes_needed)} episodes of log, {_rounded(row.nights_needed)} nights like these."
        )
    elif plan.mean_return:
        about += f" No number of nights like these decides {share(WANTED_IMPROVEMENT)} of the mean return."
    return about


def _advice(needs: tuple[NeededExploration, ...]) -> list[str]:
    if not needs:
        return []
    explorations = ", ".join(f"{share(need.exploration)} (for {share(need.changed_share)} changed)" for need in needs)
    return [
        f"What would make this horizon decidable, at {AFFORDABLE_COST:g} episodes per effective one: log behavior_prob "
        "and let the acting policy, and the candidate after it, take an available action uniformly in this share of "
        f"the decisions: {explorations}."
    ]


def _rounded(count: int) -> str:
    return f"{float(f'{count:.2g}'):,.0f}"


def _count(n: float) -> str:
    return "under 0.1" if n < 0.1 else number(n, 3 if n < 1000 else 4)


def _cost(log10: float) -> str:
    return number(10**log10, 2) if log10 < 6 else f"10^{log10:.0f}"
