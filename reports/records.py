"""What an evaluation found and what the gate decided: frozen records, readable from JSON alone.

A number that cannot be trusted is not stored: `refused` says why, and the value is None. Records hold plain
numbers, text, tuples and dictionaries, so that `evaluation.json` can be read without this package.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from reports.certified import CertifiedCurve
from reports.change_records import Changes, NightDrift, QCalibration
from reports.proof_records import Proof

PropensityKind = Literal["logged", "estimated", "none"]
SliceKind = Literal["label", "missing", "unseen", "rest"]
R = TypeVar("R")


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval, in the unit of what it bounds."""

    low: float
    high: float
    level: float
    """Two-sided confidence level, such as 0.95."""
    method: str
    """How it was made, such as "cluster bootstrap, percentile"."""


@dataclass(frozen=True)
class Bounds:
    """One-sided confidence bounds of one quantity by one method, in its unit; together an interval of 1 - 2 alpha."""

    method: str
    """Such as "cluster bootstrap, studentized"."""
    lower: float | None
    """Lies below the truth with confidence 1 - alpha."""
    upper: float | None
    """Lies above the truth with confidence 1 - alpha."""
    alpha: float
    refused: str | None = None
    """Why a bound is missing, in one sentence; None where both are there."""
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """One estimator's value of one policy, in reward units per episode, or the cause why there is none."""

    estimator: str
    """"on_policy", "direct", "is", "wis", "pdis", "wpdis", "dr", "wdr", "magic", "switch_dr", "dros", "mis", "drl" or
    "window"."""
    policy: str
    """"log", "candidate", "baseline" or "version_zero"."""
    value: float | None
    interval: Interval | None
    propensity: PropensityKind
    """Where the behavior probabilities came from; "none" where the estimator uses none."""
    binding: bool = False
    """Whether the gate rests on this number (otherwise it is shown only)."""
    refused: str | None = None
    """Why there is no value, in one sentence; None where there is one."""
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """value(candidate) - value(`against`) on the same episodes, in reward units per episode."""

    against: str
    """"baseline" or "version_zero"."""
    estimator: str
    """Estimators of the two sides, such as "dr - on_policy"."""
    value: float | None
    interval: Interval | None
    lower_bound: float | None
    """One-sided lower confidence bound at 1 - alpha."""
    upper_bound: float | None
    """One-sided upper confidence bound at 1 - alpha."""
    against_upper_bound: float | None
    """One-sided upper confidence bound at 1 - alpha of value(`against`) alone."""
    alpha: float
    propensity: PropensityKind
    binding: bool = False
    refused: str | None = None
    note: str = ""


@dataclass(frozen=True)
class LevelValue:
    """A quantile of the episode return, or the mean of its worst part, in reward units."""

    level: float
    """In (0, 1): the share of episodes at or below the quantile, or the share of worst episodes."""
    value: float
    interval: Interval


@dataclass(frozen=True)
class ReturnDistribution:
    """How the discounted return spreads over episodes of one policy; empty where refused."""

    policy: str
    """"log" or "candidate"."""
    estimator: str
    """"on_policy", "wis" or "dr"."""
    returns: tuple[float, ...]
    """Ascending, in reward units."""
    shares: tuple[float, ...]
    """Share of the policy's episodes that return at most as much, for each of `returns`."""
    quantiles: tuple[LevelValue, ...]
    tail_means: tuple[LevelValue, ...]
    """Mean return of the worst episodes (CVaR), by their share."""
    refused: str | None = None
    """Why nothing is said, in one sentence."""


@dataclass(frozen=True)
class Agreement:
    """Deciding minus checking estimator of the candidate's value, paired on the same episodes."""

    deciding: str
    checking: str
    difference: float | None
    interval: Interval | None
    refused: str | None = None
    tolerance: float = 0.0
    """How far from 0 the interval may stay: half the deciding interval where the bounds hold for both, else 0."""


@dataclass(frozen=True)
class Overlap:
    """How well the logged episodes cover what one weighted policy does."""

    policy: str
    mean_weight: float | None
    """Mean episode weight; its expectation is 1. None where it overflows."""
    mean_weight_interval: Interval | None
    effective_sample_size: float
    """(sum w)^2 / sum w^2, in episodes."""
    tail_index: float | None
    """Pareto tail index of the influence terms; above .7 their mean is not to be trusted. None: cannot be fitted."""
    largest_share: float | None
    """Share of the one most influential episode in the sum of squared influence terms."""
    refused: str | None = None
    """Every cause for which weighted estimates of this policy are not trusted."""
    decides: bool = True
    """Whether the gate rests on these weights; the others are shown beside them."""
    weights: str = "products of ratios"
    """"products of ratios" or "marginalized"."""
    tolerance: float = 0.0
    """How far beyond its interval the mean weight may lie from 1; 0 unless the weights are modelled."""
    effective_events: float | None = None
    """How many equal rare events the candidate's influence terms are worth; None where they are hardly skewed."""


@dataclass(frozen=True)
class OverlapRegion:
    """How much of the candidate the log shows in one region of the features."""

    where: str
    """The region in words, such as "replicas >= 6 and cpu <= 0.2"."""
    n_steps: int
    step_share: float
    """Of all gate steps."""
    n_episodes: int
    """Episodes that pass through it."""
    mean_ratio: float | None
    """Mean of candidate's over behavior probability of the logged action: 1 less what the log never takes."""
    mean_ratio_interval: Interval | None
    largest_ratio: float | None
    effective_steps: float
    """(sum of ratios)^2 / sum of their squares."""
    cost: float | None
    """Logged steps per effective step; None where no step counts."""
    action: str | None
    """What the candidate does there that the log shows least; None where it takes nothing more often than the log."""
    candidate_share: float
    """Mean probability with which the candidate takes that action there."""
    log_share: float
    """Share of these steps in which the log took it."""
    flagged: str | None = None
    """Why the log cannot judge the candidate there; None where it can."""
    repair: str | None = None
    """What log would."""


@dataclass(frozen=True)
class WeightHistogram:
    """How the weights of episodes (or steps, where the deciding estimator weighs steps) spread, on a log scale."""

    unit: str
    log10_edges: tuple[float, ...]
    """(B + 1)"""
    shares: tuple[float, ...]
    """(B) share of episodes in each bin."""
    weight_shares: tuple[float, ...]
    """(B) share of the whole weight that they carry."""
    zero_share: float
    """Share of episodes of weight 0."""


@dataclass(frozen=True)
class OverlapMap:
    """Overlap of log and candidate by regions of the features, those in which it is missing first."""

    regions: tuple[OverlapRegion, ...]
    histogram: WeightHistogram | None


@dataclass(frozen=True)
class ActionAverage:
    """Average of 1[A = a] / p over the rows where action a was available; 1 if the probabilities are right."""

    action: str
    n_available: int
    n_taken: int
    average: float | None
    interval: Interval | None
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class VersionAverages:
    """The averages of each action over the steps of one policy version."""

    version: str
    actions: tuple[ActionAverage, ...]


@dataclass(frozen=True)
class PropensityReport:
    """Whether the behavior probabilities can carry weights."""

    kind: PropensityKind
    actions: tuple[ActionAverage, ...]
    n_missing: int
    """Steps without a probability."""
    n_certain: int
    """Steps logged with probability 1 although more than one action was available."""
    smallest: float | None
    constant: bool
    """Whether every step carries one and the same probability."""
    refused: str | None = None
    """Why no estimate may be weighted with these probabilities; None where they are usable."""
    versions: tuple[VersionAverages, ...] = ()
    """By policy version, where several wrote the gate episodes."""


@dataclass(frozen=True)
class QClaim:
    """What the candidate's own Q-values promise at the first observation of each episode."""

    greedy_q: float | None
    """Mean over episodes of the largest Q-value of an available action."""
    upper_bound: float | None
    """Upper confidence bound of the greedy policy's value, with what may lie beyond truncated ends; None: unbounded."""
    largest_q: float | None
    """Largest finite Q-value on any step of the gate episodes."""
    feasible_high: float | None
    """Largest possible discounted return, beyond truncated ends too; None: unbounded."""
    n_nonfinite: int
    note: str = ""
    disagreement: float | None = None
    """Mean over the gate steps of the greedy action's standard deviation over an ensemble; None for one network."""


@dataclass(frozen=True)
class SensitivityPoint:
    """The deciding difference where the odds of every logged action are off by at most `factor`."""

    factor: float
    worst: float
    """Smallest difference, in reward units."""
    worst_bound: float
    """Its one-sided lower confidence bound at 1 - alpha."""
    best: float
    """Largest difference."""
    best_bound: float
    """Its one-sided lower confidence bound at 1 - alpha."""


@dataclass(frozen=True)
class Sensitivity:
    """How wrong the behavior probabilities would have to be to turn what the gate says of the value."""

    passes: bool
    """Whether the bound on the difference clears the margin with the probabilities as they are."""
    turns_at: float | None
    """Smallest factor on the odds at which the worst case no longer clears it (where it does now), or the best case
    would (where it does not); None: no factor up to `largest_factor`, or refused."""
    largest_factor: float
    points: tuple[SensitivityPoint, ...]
    longest: int
    """Steps of the longest episode, over which errors may multiply."""
    model: str
    """In which ways the probabilities are taken to be wrong."""
    refused: str | None = None


@dataclass(frozen=True)
class DesignEffect:
    """Variance of the deciding difference by `unit` over its variance by `compared_with`."""

    unit: str
    compared_with: str
    value: float
    n_units: int
    p_value: float
    """Chance of so large a ratio among `n_units` independent units with no effect of their own."""
    ignored: bool
    """Whether the intervals leave this dependence out."""


@dataclass(frozen=True)
class ActionShares:
    """Average probability with which a policy takes each action on the gate episodes' observations."""

    policy: str
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Rate:
    """Share of one policy's steps on which a condition holds, among those on which it is true or false, or is null for
    another reason than that the episode ended without an observation: these count as breached, or as no success."""

    policy: str
    """"log", "candidate" or "baseline"."""
    value: float | None
    interval: Interval | None
    refused: str | None = None


@dataclass(frozen=True)
class BreachRate:
    """How often a constraint is breached."""

    constraint: str
    condition: str
    limit: float
    """Largest share of steps that may breach it."""
    rates: tuple[Rate, ...]
    upper_bound: float | None
    """One-sided upper confidence bound of the candidate's rate at 1 - alpha; never 0."""
    alpha: float
    """The gate's alpha over the number of constraints."""
    n_breaches: int
    """Logged steps that breached."""
    n_judged: int
    """Logged steps on which the condition is true or false."""
    n_unjudged: int
    """Logged steps on which it is null."""
    n_charged: int
    """Those of them that count as breaches: null for another reason than that an episode ended without an
    observation."""
    n_effective: float
    """Clusters of the candidate itself that the weighted log is worth."""
    refused: str | None = None


@dataclass(frozen=True)
class SuccessRate:
    """How often a decision succeeds."""

    condition: str
    rates: tuple[Rate, ...]
    difference: float | None
    """Candidate minus baseline."""
    lower_bound: float | None
    """One-sided lower confidence bound of the difference at 1 - alpha."""
    alpha: float
    n_judged: int
    """Logged steps on which the condition is true or false."""
    n_unjudged: int
    """Logged steps on which it is null."""
    n_charged: int
    """Those of them that count as no success: null for another reason than that an episode ended without an
    observation."""
    refused: str | None = None


@dataclass(frozen=True)
class Forbidden:
    """What one constraint takes away on the gate episodes."""

    constraint: str
    condition: str
    n_forbidden: int
    """Steps at which it forbids an action that was available."""
    n_logged: int
    """Steps at which the log took an action that it forbids."""


@dataclass(frozen=True)
class Safety:
    """What the contract asks beside the value."""

    breaches: tuple[BreachRate, ...]
    forbidden: tuple[Forbidden, ...]
    success: SuccessRate | None
    n_safe_only: int
    """Steps at which every action is forbidden, so that the safe one acts."""


@dataclass(frozen=True)
class SliceValue:
    """value(candidate) - value(baseline) over the episodes of one slice, in reward units per episode."""

    column: str
    label: str | None
    """None where the kind says all."""
    kind: SliceKind
    """`unseen`: labels outside the contract's values; `rest`: the rarest labels where there are many."""
    n_episodes: int
    n_clusters: int
    value: float | None
    standard_error: float | None
    lower_bound: float | None
    """Holds for all slices at once with confidence 1 - alpha."""
    upper_bound: float | None
    """The same."""
    shrunk_value: float | None
    """The value drawn toward that of all episodes, the more the less is known; bounds are never drawn."""
    action_shares: tuple[ActionShares, ...]
    """Of the log and the candidate, within the slice."""
    refused: str | None = None
    """Why there are no bounds."""

    @property
    def name(self) -> str:
        """Such as "zone = a"."""
        return f"{self.column} = {self.label}" if self.kind == "label" else f"{self.column} {self.kind}"


@dataclass(frozen=True)
class Slices:
    """The difference slice by slice, with bounds that hold together."""

    slices: tuple[SliceValue, ...]
    alpha: float
    """Chance that any bound on one side misses its slice's difference."""
    refused: str | None = None
    """Why no slice has a bound."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeasibleRange:
    """Smallest and largest possible discounted return; None where the contract leaves the reward unbounded."""

    low: float | None
    high: float | None
    longest_episode: int
    """Steps of the longest episode in the replay dataset."""


@dataclass(frozen=True)
class Counts:
    """What the evaluation used and what it left out."""

    n_episodes: int
    n_steps: int
    n_clusters: int
    n_nights: int
    n_truncated: int
    """Evaluated episodes whose last step was cut, not ended."""
    n_fitting_episodes: int
    """Episodes outside the gate split; the fitted models may use all of them."""
    left_out: Mapping[str, int]
    """Episodes left out, by reason."""
    damaged_share: float
    """Share of episodes whose data is damaged or lacks a needed probability."""
    mean_length: float
    median_length: float
    longest_length: int
    night_episodes_upper: float
    """Upper bound of the number of episodes in one night."""


@dataclass(frozen=True)
class Check:
    """One condition of the gate."""

    name: str
    passed: bool
    value: float | None
    bound: float | None
    meaning: str
    """One sentence for the reviewer: what was compared and what it says."""


@dataclass(frozen=True)
class GateDecision:
    """The verdict, with every check that led to it."""

    passed: bool
    reason: str
    """The verdict in one sentence."""
    checks: tuple[Check, ...]
    deciding_estimator: str | None
    certified_share: float
    """Largest share of the traffic whose worst plausible loss in one night stays within the harm budget, in [0, 1]."""
    certified_reason: str
    largest_loss: float | None
    """Upper bound of value(baseline) - value(candidate) per episode, floored at 0; the smaller of two that each err
    with chance alpha, together at most 2 alpha. None: unbounded."""
    margin: float
    alpha: float
    certified_curve: CertifiedCurve | None = None
    """What each share of the traffic would risk; None where the loss per episode has no bound."""

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)


@dataclass(frozen=True)
class Freshness:
    """Whether the newest nights are like the candidate's own `gate` episodes."""

    status: Literal["no newer nights", "not enough data", "like the gate", "differs"]
    sentence: str
    nights: tuple[str, ...]
    """The newest nights, ascending."""
    n_episodes: int
    """Of those nights."""
    column: str | None
    """The column nearest to drift, by PSI over its threshold."""
    psi: float | None
    """Of that column, in nats."""
    threshold: float | None
    """What an unchanged night exceeds in no column at the promised rate, and at least the smallest PSI that matters."""
    optimistic: bool
    """Whether the threshold knows nothing of shocks that a night's episodes share, so that it alarms too often."""


@dataclass(frozen=True)
class CalibrationLine:
    """How often the gate erred in the simulated world most like this evaluation."""

    fits: bool
    """Whether any calibrated world is like it; without one there are no numbers."""
    text: str
    """For the reviewer, in one or two sentences."""
    world: str | None = None
    horizon: float | None = None
    """Mean steps of an episode there."""
    n_episodes: int | None = None
    overlap: float | None = None
    """Effective sample size there, in shares of the episodes."""
    level: float | None = None
    """Stated chance to pass a candidate that is worse by the margin."""
    false_pass: float | None = None
    """Share of simulated logs in which such a candidate passed."""
    upper: float | None = None
    """One-sided 95 % upper limit of that chance."""
    n_logs: int | None = None
    power: float | None = None
    """Share of logs in which a better candidate passed."""
    held: bool | None = None
    """Whether the upper limit is at most 1.5 times the level."""


@dataclass(frozen=True)
class GuardReport:
    """How often the candidate's guard lets version 0 act at the steps of the gate episodes, as they were logged."""

    false_alarm_share: float
    """Of ordinary decisions, that was asked for."""
    held: bool
    """Whether the episodes that thresholds were set on were enough to promise it."""
    n_clusters: int
    """That thresholds were set on."""
    n_steps: int
    share: float
    """Of these steps, that the guard leaves to version 0."""
    interval: Interval | None
    """By cluster; None of one cluster."""
    by_cause: Mapping[str, float]
    """Share of steps by the first cause that fires."""
    features: Mapping[str, float]
    """Mean part of the features in how far out strange steps lie, the largest first."""


@dataclass(frozen=True)
class Evaluation:
    """Everything the report and the gate need to know about one candidate."""

    estimand: str
    candidate_name: str
    baseline_name: str
    baseline_source: Literal["log", "estimated", "wrote_gate"]
    """Where the baseline's value comes from: the log's own return, an estimate, or the returns it wrote itself."""
    version_zero_name: str | None
    deciding_estimator: str | None
    deciding_rule: str
    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]
    agreement: Agreement
    overlaps: tuple[Overlap, ...]
    propensities: PropensityReport
    q_claim: QClaim | None
    design_effects: tuple[DesignEffect, ...]
    action_shares: tuple[ActionShares, ...]
    feasible: FeasibleRange
    counts: Counts
    largest_probability_change: float | None
    """Largest difference between candidate and baseline in any action probability on any gate step."""
    gamma: float
    alpha: float
    level: float
    """Level of the intervals shown in the report."""
    n_replicates: int
    n_folds: int
    seed: int
    config: Mapping[str, Mapping[str, object]]
    """Resolved settings by stage: "evaluate" and "gate"."""
    bounds: tuple[Bounds, ...] = ()
    """Of the deciding difference candidate - baseline by every method, each with its numbers or why it has none."""
    sensitivity: Sensitivity | None = None
    return_distributions: tuple[ReturnDistribution, ...] = ()
    """Of the log and of the candidate, by estimator; with the cause where one is refused."""
    freshness: Freshness | None = None
    proof: Proof | None = None
    """Backtest and placebo on the episodes outside the gate, and promises kept by earlier releases. Decides nothing."""
    """None where nobody looked at newer nights."""
    overlap_map: OverlapMap | None = None
    """None where nothing was weighted."""
    safety: Safety | None = None
    """None where the contract asks for nothing beside the value."""
    slices: Slices | None = None
    """None where the contract names no slices."""
    decision: GateDecision | None = None
    changes: Changes | None = None
    """What the candidate does otherwise; None in records that were made without asking."""
    q_calibration: QCalibration | None = None
    """None for a policy without Q-values."""
    night_drift: NightDrift | None = None
    """None where nothing was fitted on other episodes than those of `gate`."""
    calibration: CalibrationLine | None = None
    """How often the gate erred in the simulated world most like this; None in records that were made without asking."""
    guard: GuardReport | None = None
    """None for a policy without a guard."""
    late_share: float = 0.0
    """Share of the champion's live decisions that version 0 made because scoring was late; charged by the gate."""
    format_version: int = field(default=1)

    def estimate(self, estimator: str, policy: str) -> Estimate | None:
        """The estimate of that name, or None where it was not made."""
        return next((e for e in self.estimates if e.estimator == estimator and e.policy == policy), None)

    def comparison(self, against: str) -> Comparison | None:
        """The binding comparison with `against` ("baseline" or "version_zero"), or None where there is none."""
        return next((c for c in self.comparisons if c.against == against and c.binding), None)


def to_json(record: object) -> Any:
    """A record of this module as dictionaries, lists, text and numbers.

    Raises:
        ValueError: if a number is not finite; JSON has no word for it, and a reader would have no use for it.
    """
    return _plain(record, type(record).__name__)


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain dictionaries and lists, fit for `json.dumps`.

    Raises:
        ValueError: if a number in it is not finite.
    """
    plain = to_json(evaluation)
    assert isinstance(plain, dict)
    return plain


def evaluation_from_json(data: Mapping[str, Any]) -> Evaluation:
    """The evaluation that `evaluation_to_json` wrote.

    Raises:
        ValueError: if a field is missing, unknown, or of the wrong shape.
    """
    return _record(Evaluation, data, "evaluation")


def _plain(value: object, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: a record holds finite numbers; store None and say why in `refused`.")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}: a record holds text, numbers, tuples and dictionaries.")


def _record(kind: type[R], data: object, where: str) -> R:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} is a {type(data).__name__}, wanted an object.")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # only called with dataclasses
    unknown = sorted(set(data) - set(fields))
    optional = {name for name, f in fields.items() if f.default is not dataclasses.MISSING}
    missing = sorted(set(fields) - set(data) - optional)
    if unknown or missing:
        raise ValueError(f"{where}: unknown fields {unknown}, missing fields {missing}.")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], item, f"{where}.{name}") for name, item in data.items()})


def _value(hint: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if data is None:
            return None
        return _value(next(a for a in arguments if a is not type(None)), data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} is a {type(data).__name__}, wanted a list.")
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if dataclasses.is_dataclass(hint):
        return _record(hint, data, where)  # type: ignore[arg-type]  # hints name classes, never instances
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    return data
