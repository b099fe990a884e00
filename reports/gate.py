"""The release gate: a pure function from an evaluation to a verdict. It passes only if every check does."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, model_validator

from datasets.settings import Settings
from reports.certified import CertifiedCurve, certified_curve, largest_share
from reports.formatting import NOT_MEASURED, apart, counted
from reports.overlap import OverlapBounds, is_balanced
from reports.records import Check, Comparison, Evaluation, GateDecision, Overlap
from reports.rule_checks import rule_checks

_REASONS_SHOWN = 2
"""Failed checks that the verdict's sentence spells out; the table of checks holds them all."""

VALUE_CHECK = "value against baseline"
"""The one check whose failure still leaves room for a certified share."""


class GateConfig(Settings):
    """When a candidate may be released. Values and margins are in reward units per episode."""

    margin: float = Field(0.0, ge=0)
    """How much worse than the baseline a candidate may be."""
    version_zero_margin: float = Field(0.0, ge=0)
    """How much worse than version 0; fixed for the life of a workspace, so that small losses cannot add up."""
    alpha: float = Field(0.01, gt=0, lt=0.5)
    """Chance per reading to pass a candidate that is worse by the margin; .01 is .20 a year over 20 readings."""
    yearly_error: float = Field(0.20, gt=0, lt=1)
    """What the readings of any 365 days may spend together; the error ledger refuses a reading beyond it."""
    harm_budget: float = Field(0.0, ge=0)
    """Largest loss of one night, in reward units, that the certified share of traffic may risk."""
    min_episodes: int = Field(100, ge=2)
    """Fewest gate episodes that may decide."""
    largest_damaged_share: float = Field(0.01, ge=0, lt=1)
    """Share of damaged episodes above which the gate refuses; up to it, each is charged at the worst difference."""
    largest_design_effect: float = Field(1.5, ge=1)
    """Variance ratio above which a dependence that the intervals ignore refuses."""
    design_effect_level: float = Field(0.02, gt=0, le=1)
    """And only where chance gives so large a ratio less often than this; 1 judges by the ratio alone."""
    tolerated_odds_factor: float = Field(1.0, ge=1, le=20)
    """The value must clear the margin even with the odds of every logged action wrong by this factor; 1 asks nothing.
    Of use where behavior probabilities are estimated."""
    smallest_change: float = Field(1e-6, gt=0, lt=1)
    """A candidate whose action probabilities all lie this close to the baseline's is nothing new."""
    slice_margin: float = Field(0.0, ge=0)
    """How much worse than the baseline a candidate may be in one slice before it is refused."""
    slice_alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance that a candidate which is worse in no slice is refused for one; all slices together."""
    success_margin: float | None = Field(None, ge=0, lt=1)
    """How far the candidate's success rate may lie below the baseline's; without it the rate is shown only."""
    overlap: OverlapBounds = OverlapBounds()

    @model_validator(mode="after")
    def _one_reading_fits(self) -> GateConfig:
        if self.alpha > self.yearly_error:
            raise ValueError(
                f"alpha = {self.alpha:g} is more than yearly_error = {self.yearly_error:g}: not one reading would fit"
            )
        return self


def decide(evaluation: Evaluation, config: GateConfig) -> GateDecision:
    """The verdict on an evaluation, with every check and the share of traffic that could be given tonight.

    Nothing is estimated here: the same evaluation and settings give the same decision again.

    Raises:
        ValueError: if the evaluation's bounds were made at another alpha than the gate's.
    """
    if evaluation.alpha != config.alpha:
        raise ValueError(f"The evaluation's bounds hold at alpha {evaluation.alpha}, the gate asks for {config.alpha}.")
    against_baseline = evaluation.comparison("baseline")
    lower = _charged_lower_bound(evaluation, against_baseline)
    checks = (
        *_data_checks(evaluation, config),
        *(
            check
            for overlap in evaluation.overlaps
            if overlap.decides
            for check in _overlap_checks(overlap, config.overlap)
        ),
        _feasible_check(evaluation),
        _agreement_check(evaluation),
        *_q_checks(evaluation),
        *_freshness_check(evaluation),
        *rule_checks(evaluation, success_margin=config.success_margin, slice_margin=config.slice_margin),
        _value_check(VALUE_CHECK, evaluation.baseline_name, against_baseline, lower, config.margin, config.alpha),
        *_version_zero_check(evaluation, config),
        *_sensitivity_check(evaluation, config.tolerated_odds_factor),
    )
    loss = _largest_loss(evaluation, against_baseline, lower)
    share, share_reason = _certified_share(checks, loss, evaluation.counts.night_episodes_upper, config)
    failed = [check for check in checks if not check.passed]
    return GateDecision(
        passed=not failed,
        reason=_reason(evaluation, failed, lower, config),
        checks=checks,
        deciding_estimator=evaluation.deciding_estimator,
        certified_share=share,
        certified_reason=share_reason,
        largest_loss=loss,
        margin=config.margin,
        alpha=config.alpha,
        certified_curve=_curve(evaluation, against_baseline, loss, share, config),
    )


def _data_checks(evaluation: Evaluation, config: GateConfig) -> Iterator[Check]:
    propensities, counts = evaluation.propensities, evaluation.counts
    yield Check(
        "behavior probabilities",
        propensities.refused is None,
        propensities.smallest,
        None,
        f"Nothing can be weighted: {propensities.refused}."
        if propensities.refused
        else f"The {propensities.kind} behavior probabilities average to 1 for every action that can be judged.",
    )
    yield Check(
        "enough episodes",
        counts.n_episodes >= config.min_episodes,
        float(counts.n_episodes),
        float(config.min_episodes),
        f"{counted(counts.n_episodes, 'gate episode')} in {counted(counts.n_clusters, 'cluster')}; "
        f"at least {config.min_episodes} decide.",
    )
    yield _damage_check(evaluation, config)
    yield from _late_check(evaluation)
    change = evaluation.largest_probability_change
    yield Check(
        "something new",
        change is None or change > config.smallest_change,
        change,
        config.smallest_change,
        "Nothing new: the candidate's action probabilities equal the baseline's."
        if change is not None and change <= config.smallest_change
        else "The baseline's action probabilities are not known, so nothing says that the candidate equals it."
        if change is None
        else f"The candidate's action probabilities differ from the baseline's by up to {change:.2g}.",
    )
    for effect in evaluation.design_effects:
        if effect.ignored:
            large = effect.value > config.largest_design_effect and effect.p_value <= config.design_effect_level
            yield Check(
                f"episodes independent within a {effect.unit}",
                not large,
                effect.value,
                config.largest_design_effect,
                f"The variance by {effect.unit} is {effect.value:.2f} times that by {effect.compared_with} over "
                f"{effect.n_units} {effect.unit}s (chance of that much: {effect.p_value:.2g})"
                + (f"; set episodes.cluster so that a {effect.unit} stays whole." if large else "."),
            )


def _damage_check(evaluation: Evaluation, config: GateConfig) -> Check:
    share, feasible = evaluation.counts.damaged_share, evaluation.feasible
    unbounded = feasible.low is None or feasible.high is None
    if share > config.largest_damaged_share:
        meaning = f"{share:.2%} of episodes are damaged, more than {config.largest_damaged_share:.2%}."
    elif share > 0 and unbounded:
        meaning = "Damaged episodes cannot be charged: reward.min and reward.max are not both set in the contract."
    elif share > 0:
        meaning = f"{share:.2%} of episodes are damaged and charged at the worst feasible difference."
    else:
        meaning = "No episode is damaged."
    passed = share == 0 or (share <= config.largest_damaged_share and not unbounded)
    return Check("damaged episodes", passed, share, config.largest_damaged_share, meaning)


def _late_check(evaluation: Evaluation) -> Iterator[Check]:
    """Only where decisions came late: so many of the candidate's are charged."""
    share, feasible = evaluation.late_share, evaluation.feasible
    if share == 0:
        return
    bounded = feasible.low is not None and feasible.high is not None
    yield Check(
        "late decisions",
        bounded,
        share,
        None,
        f"{share:.2%} of the champion's live decisions came too late and version 0 made them; as many of the "
        "candidate's are charged at the worst feasible difference."
        if bounded
        else "Late decisions cannot be charged: reward.min and reward.max are not both set in the contract.",
    )


def _overlap_checks(overlap: Overlap, bounds: OverlapBounds) -> Iterator[Check]:
    interval, tail, share = overlap.mean_weight_interval, overlap.tail_index, overlap.largest_share
    policy = "version 0" if overlap.policy == "version_zero" else f"the {overlap.policy}"
    of = f"of {policy}"
    wanted = f"come within {overlap.tolerance:g} of 1" if overlap.tolerance else "contain 1"
    yield Check(
        f"mean weight {of}",
        interval is not None and is_balanced(interval, overlap.tolerance),
        overlap.mean_weight,
        1.0,
        f"The interval of the mean weight {of}, [{apart(interval.low, 1.0)}, {apart(interval.high, 1.0)}], must "
        f"{wanted}."
        if interval
        else f"The weights {of} overflow or have no interval.",
    )
    yield Check(
        f"tail of the influence {of}",
        tail is not None and tail <= bounds.largest_tail_index,
        tail,
        bounds.largest_tail_index,
        f"The tail index of the influence terms {of} is {tail:.2f}; above {bounds.largest_tail_index:g} their mean is "
        "not to be trusted."
        if tail is not None
        else f"The tail of the influence terms {of} cannot be fitted.",
    )
    yield Check(
        f"largest influence {of}",
        share is not None and share <= bounds.largest_share,
        share,
        bounds.largest_share,
        f"One episode carries {share:.1%} of the squared influence {of}; at most {bounds.largest_share:.0%} may hang "
        "on one."
        if share is not None
        else f"The influence of the episodes {of} has no scale.",
    )
    yield Check(
        f"effective sample size {of}",
        overlap.effective_sample_size >= bounds.smallest_sample_size,
        overlap.effective_sample_size,
        bounds.smallest_sample_size,
        f"The weighted log is worth {overlap.effective_sample_size:.1f} episodes of {policy} itself; it takes "
        f"{bounds.smallest_sample_size:g}.",
    )
    if overlap.effective_events is not None:
        yield Check(
            f"rare events {of}",
            overlap.effective_events >= bounds.fewest_events,
            overlap.effective_events,
            bounds.fewest_events,
            f"The influence terms {of} are skewed like {overlap.effective_events:.3g} rare events; with fewer than "
            f"{bounds.fewest_events:g} a log that happens to hold few of them looks better and surer than it is.",
        )


def _feasible_check(evaluation: Evaluation) -> Check:
    outside = [e for e in evaluation.estimates if e.binding and e.refused and "feasible" in e.refused]
    feasible = evaluation.feasible
    low = "unbounded" if feasible.low is None else f"{feasible.low:.4g}"
    high = "unbounded" if feasible.high is None else f"{feasible.high:.4g}"
    return Check(
        "feasible values",
        not outside,
        None,
        None,
        outside[0].refused if outside and outside[0].refused else f"Deciding values lie within [{low}, {high}].",
    )


def _agreement_check(evaluation: Evaluation) -> Check:
    agreement = evaluation.agreement
    interval = agreement.interval
    if interval is None:
        return Check("agreement of estimators", False, None, 0.0, f"Could not be judged: {agreement.refused}.")
    return Check(
        "agreement of estimators",
        interval.low <= agreement.tolerance and interval.high >= -agreement.tolerance,
        agreement.difference,
        agreement.tolerance,
        f"The paired interval of {agreement.deciding} - {agreement.checking}, "
        f"[{interval.low:.4g}, {interval.high:.4g}], must contain 0"
        + (
            f", or come within {agreement.tolerance:.4g} of it: the bounds hold for both."
            if agreement.tolerance
            else "."
        ),
    )


def _q_checks(evaluation: Evaluation) -> Iterator[Check]:
    claim = evaluation.q_claim
    if claim is None:
        return
    yield Check(
        "finite Q-values",
        claim.n_nonfinite == 0,
        float(claim.n_nonfinite),
        0.0,
        f"{claim.n_nonfinite:,} of the candidate's Q-values are not finite; none may be.",
    )
    yield Check(
        "feasible Q-values",
        claim.largest_q is not None and (claim.feasible_high is None or claim.largest_q <= claim.feasible_high),
        claim.largest_q,
        claim.feasible_high,
        f"The candidate's largest Q-value, {_told(claim.largest_q)}, must not exceed the largest possible return"
        + ("." if claim.feasible_high is None else f", {_told(claim.feasible_high)}."),
    )
    bounded = claim.upper_bound is not None
    yield Check(
        "Q-values against evaluation",
        claim.greedy_q is not None and (claim.upper_bound is None or claim.greedy_q <= claim.upper_bound),
        claim.greedy_q,
        claim.upper_bound,
        f"The candidate's greedy Q-value at the first step, {_told(claim.greedy_q)}, must not exceed what the log "
        f"supports, {_told(claim.upper_bound)}; a lower one is no fault."
        if bounded
        else f"Shown only: {claim.note}.",
    )


def _freshness_check(evaluation: Evaluation) -> Iterator[Check]:
    fresh = evaluation.freshness
    if fresh is not None:
        yield Check("freshness", fresh.status != "differs", fresh.psi, fresh.threshold, fresh.sentence)


def _value_check(
    name: str, against: str, comparison: Comparison | None, lower: float | None, margin: float, alpha: float
) -> Check:
    if comparison is None or lower is None:
        cause = comparison.refused if comparison is not None else None
        return Check(
            name, False, None, 0.0 - margin, f"No bound on the difference to {against}: {cause or 'no estimate'}."
        )
    return Check(
        name,
        lower > -margin,
        lower,
        0.0 - margin,
        f"With {1 - alpha:.4g} confidence the candidate's value minus that of {against} is at least {lower:.4g}; "
        f"it must be above {0.0 - margin:g}.",
    )


def _version_zero_check(evaluation: Evaluation, config: GateConfig) -> Iterator[Check]:
    if evaluation.version_zero_name is not None:
        comparison = evaluation.comparison("version_zero")
        lower = _charged_lower_bound(evaluation, comparison)
        yield _value_check(
            "value against version 0",
            evaluation.version_zero_name,
            comparison,
            lower,
            config.version_zero_margin,
            config.alpha,
        )


def _sensitivity_check(evaluation: Evaluation, tolerated: float) -> Iterator[Check]:
    if tolerated == 1:
        return
    found = evaluation.sensitivity
    if found is None or found.refused is not None or not found.passes:
        cause = (
            "it does not clear the margin with the probabilities as they are" if found is not None else "not measured"
        )
        cause = found.refused if found is not None and found.refused is not None else cause
        yield Check("wrong probabilities", False, None, tolerated, f"No value that errors could turn: {cause}.")
        return
    turns_at = found.turns_at if found.turns_at is not None else found.largest_factor
    yield Check(
        "wrong probabilities",
        turns_at > tolerated or found.turns_at is None,
        turns_at,
        tolerated,
        f"The value clears the margin until the odds of logged actions are wrong by a factor of "
        f"{apart(turns_at, 1.0)}; it must up to {tolerated:g}.",
    )


def _charged_lower_bound(evaluation: Evaluation, comparison: Comparison | None) -> float | None:
    """The lower bound, with the shares of damaged episodes and of late decisions at the worst feasible difference."""
    share, feasible = 1 - (1 - evaluation.counts.damaged_share) * (1 - evaluation.late_share), evaluation.feasible
    if comparison is None or comparison.lower_bound is None or comparison.refused:
        return None
    if share == 0:
        return comparison.lower_bound
    if feasible.low is None or feasible.high is None:
        return None
    return (1 - share) * comparison.lower_bound + share * (feasible.low - feasible.high)


def _largest_loss(evaluation: Evaluation, comparison: Comparison | None, lower: float | None) -> float | None:
    """Upper bound per episode of value(baseline) - value(candidate), within [0, what the baseline could lose].

    The smaller of two bounds that each err with chance alpha, so it errs with at most 2 alpha. The lower bound itself,
    which decides the verdict, errs with alpha.
    """
    loss = None if lower is None else max(-lower, 0.0)
    known = [bound for bound in (_blind_loss(evaluation, comparison), loss) if bound is not None]
    return min(known) if known else None


def _blind_loss(evaluation: Evaluation, comparison: Comparison | None) -> float | None:
    """Most that the baseline could lose per episode, whatever acts in its place; None: unbounded.

    Damaged episodes are not in the baseline's estimate: they count as if it had earned the most that is feasible there.
    """
    share, low, high = evaluation.counts.damaged_share, evaluation.feasible.low, evaluation.feasible.high
    if low is None or comparison is None or comparison.against_upper_bound is None:
        return None
    if share == 0:
        return max(comparison.against_upper_bound - low, 0.0)
    if high is None:
        return None
    return max((1 - share) * comparison.against_upper_bound + share * high - low, 0.0)


def _curve(
    evaluation: Evaluation, comparison: Comparison | None, loss: float | None, share: float, config: GateConfig
) -> CertifiedCurve | None:
    if loss is None:
        return None
    blind_loss, night_episodes = _blind_loss(evaluation, comparison), evaluation.counts.night_episodes_upper
    return certified_curve(loss, blind_loss, night_episodes, config.harm_budget, share)


def _certified_share(
    checks: tuple[Check, ...], loss: float | None, night_episodes: float, config: GateConfig
) -> tuple[float, str]:
    others = [check.name for check in checks if not check.passed and check.name != VALUE_CHECK]
    if others:
        return 0.0, f"No traffic: {', '.join(others)} failed."
    if loss is None:
        return 0.0, "No traffic: the loss per episode has no bound."
    if loss == 0:
        return 1.0, (
            f"No loss at {1 - config.alpha:.4g} confidence: any share keeps within the budget of "
            f"{config.harm_budget:g} a night."
        )
    return largest_share(loss, night_episodes, config.harm_budget), (
        f"At most {loss:.4g} lost per episode, at most {night_episodes:.0f} episodes a night, and a budget of "
        f"{config.harm_budget:g} a night."
    )


def _reason(evaluation: Evaluation, failed: list[Check], lower: float | None, config: GateConfig) -> str:
    if not failed:
        return (
            f"Passed: with {1 - config.alpha:.4g} confidence {evaluation.candidate_name} earns at least {lower:.4g} "
            f"more per episode than {evaluation.baseline_name} (margin {config.margin:g})."
        )
    names = ", ".join(check.name for check in failed[:_REASONS_SHOWN])
    shown = " ".join(check.meaning for check in failed[:_REASONS_SHOWN])
    rest = len(failed) - _REASONS_SHOWN
    more = f" {rest} further {'check' if rest == 1 else 'checks'} failed." if rest > 0 else ""
    return f"Refused: {names}. {shown}{more}"


def _told(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4g}"
