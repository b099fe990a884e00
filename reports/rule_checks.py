"""The gate's checks of what the contract asks beside the value: constraints, success rate, slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.formatting import apart
from reports.records import BreachRate, Check, Evaluation, Rate, Slices, SliceValue

_SLICES_NAMED = 3


def rule_checks(evaluation: Evaluation, *, success_margin: float | None, slice_margin: float) -> Iterator[Check]:
    """One check for each constraint with a limit, one for the success rate where it binds, one for all slices."""
    safety = evaluation.safety
    for breach in safety.breaches if safety is not None else ():
        yield _breach_check(breach)
    if success_margin is not None:
        yield _success_check(evaluation, success_margin)
    if evaluation.slices is not None:
        yield _slices_check(evaluation.slices, slice_margin)


def _breach_check(breach: BreachRate) -> Check:
    name, bound, limit = f"constraint {breach.constraint}", breach.upper_bound, breach.limit
    if bound is None:
        cause = breach.refused or "a replicate of the bootstrap holds no judged step"
        meaning = f"The share of the candidate's steps that breach `{breach.constraint}` has no bound: {cause}."
        return Check(name, False, None, limit, meaning)
    shares = {rate.policy: rate for rate in breach.rates}
    meaning = (
        f"Between 0 and {_percent(bound, limit)} of the candidate's steps breach `{breach.constraint}` with "
        f"{1 - breach.alpha:.4g} confidence (estimated {_share(shares['candidate'], limit)}, in the log "
        f"{_share(shares['log'], limit)}); the limit is {_percent(limit)}."
    )
    today = shares.get("baseline", shares["log"])
    if bound > limit and today.value is not None and today.value > limit:
        meaning += (
            f" What runs today breaches it on {_percent(today.value, limit)}, above the limit as well: a limit is a "
            "promise whatever runs today."
        )
    meaning += _charged(breach.n_charged, breach.n_judged + breach.n_unjudged, "breaches")
    return Check(name, bound <= limit, bound, limit, meaning)


def _success_check(evaluation: Evaluation, margin: float) -> Check:
    name, success = "success rate", evaluation.safety.success if evaluation.safety is not None else None
    if success is None:
        return Check(
            name, False, None, -margin, "gate.success_margin is set, and the contract does not say [success] when."
        )
    if success.lower_bound is None:
        cause = success.refused or "a replicate of the bootstrap holds no judged step"
        return Check(name, False, None, -margin, f"The difference of success rates has no bound: {cause}.")
    return Check(
        name,
        success.lower_bound > -margin,
        success.lower_bound,
        0.0 - margin,
        f"With {1 - success.alpha:.4g} confidence the candidate's success rate minus the baseline's is at least "
        f"{_percent(success.lower_bound, -margin)}; it must be above {_percent(0.0 - margin)}."
        + _charged(success.n_charged, success.n_judged + success.n_unjudged, "no success"),
    )


def _slices_check(slices: Slices, margin: float) -> Check:
    if slices.refused is not None:
        return Check("slices", False, None, 0.0 - margin, f"No slice has a bound: {slices.refused}.")
    bounded = [part for part in slices.slices if part.upper_bound is not None]
    worse = [part for part in bounded if _is_worse(part, margin)]
    undecided = [part for part in slices.slices if not _is_worse(part, margin) and not _is_no_worse(part, margin)]
    lowest = min((part.upper_bound for part in bounded if part.upper_bound is not None), default=None)
    if not any(part.upper_bound is not None or _is_no_worse(part, margin) for part in slices.slices):
        return Check(
            "slices",
            False,
            None,
            0.0 - margin,
            "No slice has an upper bound, so that no loss in any could be seen. Undecided: "
            f"{_listed(slices.slices, with_cause=True)}.",
        )
    if worse:
        meaning = (
            f"With {1 - slices.alpha:.4g} confidence for all slices at once the candidate is worse by more than "
            f"{margin:g} per episode where {_listed(worse)}."
        )
    else:
        meaning = f"No slice of {len(slices.slices)} is surely worse by more than {margin:g} per episode."
    unbounded = [part for part in undecided if part.upper_bound is None]
    unsure = [part for part in undecided if part.upper_bound is not None]
    if unsure:
        meaning += f" Undecided: {_listed(unsure)}."
    if unbounded:
        meaning += f" Undecided for want of an upper bound: {_listed(unbounded, with_cause=True)}."
    for note in slices.notes:
        meaning += f" {note}."
    return Check("slices", not worse, lowest, 0.0 - margin, meaning)


def slice_verdict(part: SliceValue, margin: float) -> str:
    """ "worse", "no worse" or "undecided", by the simultaneous bounds of a slice."""
    return "worse" if _is_worse(part, margin) else "no worse" if _is_no_worse(part, margin) else "undecided"


def _is_worse(part: SliceValue, margin: float) -> bool:
    return part.upper_bound is not None and part.upper_bound < -margin


def _is_no_worse(part: SliceValue, margin: float) -> bool:
    return part.lower_bound is not None and part.lower_bound >= -margin


def _listed(parts: Sequence[SliceValue], *, with_cause: bool = False) -> str:
    shown = "; ".join(
        f"{part.name} ({part.refused.replace('; ', ', ')})" if with_cause and part.refused else part.name
        for part in parts[:_SLICES_NAMED]
    )
    rest = len(parts) - _SLICES_NAMED
    return f"{shown}; and {rest} more" if rest > 0 else shown


def _charged(n_charged: int, n_steps: int, kind: str) -> str:
    if n_charged == 0:
        return ""
    return (
        f" {n_charged:,} of {n_steps:,} logged steps, on which the condition is null other than for want of a next "
        f"observation at an episode's end, count as {kind}."
    )


def _share(rate: Rate, limit: float) -> str:
    return "refused" if rate.value is None else _percent(rate.value, limit)


def _percent(rate: float, from_rate: float = 0.0) -> str:
    """In percent with three digits, and more where it takes them to tell it from another."""
    return apart(100 * rate, 100 * from_rate).replace("\u2212", "-") + "%"
