"""What it would take to turn a refusal: one sentence per failed check, with numbers where they are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.formatting import NOT_MEASURED, number
from reports.records import Check, Comparison, Evaluation

_STAY_CLOSER = (
    "Let the candidate stay closer to what was logged (raise train.penalty_weights), or let the acting policy explore "
    "more, so that the next nights show what the candidate would do."
)
_CAUTIOUS_Q = "Raise train.penalty_weights, or lower train.learning_rate, and train again."
_BY_NAME = {
    "behavior probabilities": (
        'Correct what the logger writes as behavior_prob, or set behavior.propensity = "estimated" in the contract.'
    ),
    "something new": "Nothing needs to be released. Train on more nights, or with other settings, for a new candidate.",
    "agreement of estimators": (
        "Two estimators contradict each other on the same episodes. Check behavior_prob first, then the overlap; more "
        "gate episodes tell which of them is wrong."
    ),
    "feasible values": "Check reward.min and reward.max in the contract against the rewards in the log.",
    "finite Q-values": "Lower train.learning_rate, or look for extreme values among the rewards, and train again.",
    "feasible Q-values": _CAUTIOUS_Q,
    "Q-values against evaluation": _CAUTIOUS_Q,
    "damaged episodes": (
        "Find the cause in the quarantine and correct it upstream; where few episodes are damaged, reward.min and "
        "reward.max in the contract let the gate charge them."
    ),
}
_BY_BEGINNING = {
    "mean weight of": _STAY_CLOSER,
    "tail of the influence of": _STAY_CLOSER,
    "largest influence of": _STAY_CLOSER,
    "effective sample size of": _STAY_CLOSER,
    "episodes independent within": (
        "Set episodes.cluster in the contract to what makes these episodes alike, and evaluate again: the intervals "
        "then allow for it."
    ),
}


@dataclass(frozen=True)
class Remedy:
    """What would turn one or more failed checks."""

    checks: tuple[Check, ...]
    says: str


def remedies(evaluation: Evaluation) -> tuple[Remedy, ...]:
    """What the failed checks would take, in their order; those that take the same stand together."""
    says: dict[str, tuple[Check, ...]] = {}
    for check in evaluation.decision.failed_checks if evaluation.decision is not None else ():
        remedy = remedy_for(check, evaluation)
        says[remedy] = (*says.get(remedy, ()), check)
    return tuple(Remedy(checks, remedy) for remedy, checks in says.items())


def remedy_for(check: Check, evaluation: Evaluation) -> str:
    """What one failed check would take; its own meaning where nothing more is known."""
    if check.name == "enough episodes":
        return _more_episodes(check, evaluation)
    if check.name == "value against baseline":
        return _larger_difference(check, evaluation.comparison("baseline"))
    if check.name == "value against version 0":
        return _larger_difference(check, evaluation.comparison("version_zero"))
    if check.name == "agreement of estimators" and check.value is None:
        return "There are no two estimates to compare: what refused them, above, has to be settled first."
    known = _BY_NAME.get(check.name)
    beginnings = (says for begins, says in _BY_BEGINNING.items() if check.name.startswith(begins))
    return known or next(beginnings, check.meaning)


def _more_episodes(check: Check, evaluation: Evaluation) -> str:
    missing = (check.bound or 0.0) - (check.value or 0.0)
    per_night = evaluation.counts.n_episodes / max(1, evaluation.counts.n_nights)
    nights = math.ceil(missing / per_night) if per_night > 0 else 0
    wait = f", about {nights} {'night' if nights == 1 else 'nights'} like these" if nights else ""
    return f"{number(missing)} more gate episodes{wait}; or raise the gate's share in [snapshot]."


def _larger_difference(check: Check, comparison: Comparison | None) -> str:
    """The bound approaches the estimated difference like 1 / sqrt(episodes)."""
    if check.value is None or comparison is None or comparison.value is None:
        return "There is no bound to judge by: what refused the estimate, above, has to be settled first."
    needed = check.bound or 0.0
    gap = number(needed - check.value, 3)
    if gap == NOT_MEASURED or comparison.value <= needed:
        return (
            f"The estimated difference itself, {number(comparison.value, 3)}, does not clear {number(needed, 3)}: it "
            "takes a better candidate, not more episodes."
        )
    factor = ((comparison.value - check.value) / (comparison.value - needed)) ** 2
    times = f"about {number(factor, 2)} times as many" if factor < 1000 else "over a thousand times as many"
    return (
        f"The bound lacks {gap}. With {times} gate episodes the same estimate, {number(comparison.value, 3)}, would "
        "clear it; or a candidate whose difference is larger."
    )
