"""What it would take to turn a verdict: a sentence per failed check, or how much room a pass leaves, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.formatting import NOT_MEASURED, number, share
from reports.log_pictures import sensitivity_words
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
    "wrong probabilities": (
        "Log behavior_prob instead of estimating it, or lower gate.tolerated_odds_factor to what the logger may well "
        "be off by; a larger difference stands more."
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
    "freshness": (
        "The world has moved on since the gate episodes were logged. `offline-dqn nightly` (with --force-train where "
        "it sees no cause) trains and judges a successor on the nights since the change."
    ),
    "success rate": (
        "More gate episodes narrow the bound; a candidate that fails more often than the baseline needs rewards that "
        "count failures, or a wider gate.success_margin."
    ),
    "slices": (
        "Train on more episodes of these slices, with the slice's column among the features; or set gate.slice_margin "
        "to what a slice may lose."
    ),
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
    "constraint ": (
        "Where the estimate lies below the limit, more gate episodes bring the bound down. Where it lies above, the "
        "candidate breaches too often: let the reward price the breach, forbid what leads to it, or set the limit to "
        "what is accepted today and lower it with each promotion. Where steps count as breaches because the condition "
        "is null, log what it asks for, or say in the condition what its absence means."
    ),
    "rare events of": (
        "Few episodes carry the difference. Let the candidate stay closer to what was logged, or wait for more gate "
        "episodes: they show more of the events."
    ),
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
        return _larger_difference(check, evaluation.comparison("baseline"), evaluation)
    if check.name == "value against version 0":
        return _larger_difference(check, evaluation.comparison("version_zero"), evaluation)
    if check.name == "agreement of estimators" and check.value is None:
        return "There are no two estimates to compare: what refused them, above, has to be settled first."
    known = _BY_NAME.get(check.name)
    beginnings = (says for begins, says in _BY_BEGINNING.items() if check.name.startswith(begins))
    says = known or next(beginnings, check.meaning)
    if (times := _times_the_episodes(check, evaluation)) is not None:
        says = f"{says} {_as_many(times, evaluation)}"
    if check.name.endswith("of the candidate") and (where := _least_shown(evaluation)) is not None:
        says = f"{says} {where}"
    return says


def _times_the_episodes(check: Check, evaluation: Evaluation) -> float | None:
    """How many times as many gate episodes a check of overlap takes if they are like these; None where it is no matter
    of their number, infinity where no number helps.

    Effective numbers grow with the episodes. The largest of n terms grows like n^k where k is the index of their tail,
    so its square's share in the sum of squares falls like n^(2k - 1), and not at all from k = 1/2 on (Embrechts,
    Klueppelberg and Mikosch 1997, section 6.2).
    """
    if not check.value or not check.bound:
        return None
    if check.name.startswith(("effective sample size of", "rare events of")):
        return check.bound / check.value
    if not check.name.startswith("largest influence of"):
        return None
    policy = "version_zero" if check.name.endswith("version 0") else check.name.rsplit(" ", 1)[-1]
    tails = [o.tail_index for o in evaluation.overlaps if o.policy == policy and o.decides and o.tail_index is not None]
    falls = 1.0 - 2.0 * max(0.0, tails[0]) if tails else 1.0
    return (check.value / check.bound) ** (1.0 / falls) if falls > 0.05 else math.inf


def _as_many(times: float, evaluation: Evaluation) -> str:
    """A factor on the gate episodes, with their number and the nights that they take."""
    if times >= 1000:
        return "No number of episodes like these would do: the tail of the weights is too heavy."
    missing = _about((times - 1) * evaluation.counts.n_episodes)
    return (
        f"About {number(times, 2)} times as many gate episodes ({number(missing)} more{_wait(missing, evaluation)}) "
        "would meet this check."
    )


def _least_shown(evaluation: Evaluation) -> str | None:
    """What the region would take in which the log shows least of the candidate; None where none is flagged."""
    regions = evaluation.overlap_map.regions if evaluation.overlap_map is not None else ()
    flagged = [region for region in regions if region.flagged is not None]
    if not flagged:
        return None
    more = f" ({len(flagged) - 1} more in the report.)" if len(flagged) > 1 else ""
    return f"Where {flagged[0].where}: {flagged[0].repair}.{more}"


def rooms(evaluation: Evaluation) -> tuple[str, ...]:
    """What would turn a pass: how far its bounds are from what they must clear, and which check is nearest to failing.

    Empty where the gate did not pass.
    """
    decision = evaluation.decision
    if decision is None or not decision.passed:
        return ()
    found = [
        f"{check.name[0].upper()}{check.name[1:]}: the bound, {number(check.value, 3)}, clears "
        f"{number(check.bound, 3)} by {number(check.value - check.bound, 3)} per episode; an estimate that is too "
        "high by that much would turn it."
        for check in decision.checks
        if check.name.startswith("value against") and check.value is not None and check.bound is not None
    ]
    if evaluation.sensitivity is not None and evaluation.sensitivity.refused is None:
        found.append(sensitivity_words(evaluation.sensitivity))
    used = [(part, check) for check in decision.checks if (part := _used(check)) is not None]
    if used:
        part_used, nearest = max(used, key=lambda pair: pair[0])
        found.append(
            f"Of the checks with a limit, {nearest.name} is nearest to it: {number(nearest.value, 3)} where "
            f"{number(nearest.bound, 3)} is the {'least' if nearest.name.startswith(_AT_LEAST) else 'most'}, "
            f"{share(part_used)} of the way."
        )
    return tuple(found)


_AT_LEAST = ("effective sample size of", "enough episodes")
_AT_MOST = (
    "constraint ",
    "tail of the influence of",
    "largest influence of",
    "damaged episodes",
    "episodes independent within",
)


def _used(check: Check) -> float | None:
    """How much of its limit a passed check uses, in [0, 1]; None where the limit is of another kind."""
    if check.value is None or check.bound is None or min(check.value, check.bound) <= 0:
        return None
    if check.name.startswith(_AT_LEAST):
        return check.bound / check.value
    return check.value / check.bound if check.name.startswith(_AT_MOST) else None


def _more_episodes(check: Check, evaluation: Evaluation) -> str:
    missing = (check.bound or 0.0) - (check.value or 0.0)
    return f"{number(missing)} more gate episodes{_wait(missing, evaluation)}; or raise the gate's share in [snapshot]."


def _wait(missing: float, evaluation: Evaluation) -> str:
    """How long so many more gate episodes take at the pace of the nights that were evaluated."""
    per_night = evaluation.counts.n_episodes / max(1, evaluation.counts.n_nights)
    nights = math.ceil(missing / per_night) if per_night > 0 else 0
    return f", about {number(nights)} {'night' if nights == 1 else 'nights'} like these" if nights else ""


def _about(count: float) -> int:
    """Two digits of a count that is itself a guess."""
    return int(round(count, 1 - math.floor(math.log10(count)))) if count >= 100 else math.ceil(count)


def _larger_difference(check: Check, comparison: Comparison | None, evaluation: Evaluation) -> str:
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
    if factor >= 1000:
        more = "over a thousand times as many gate episodes"
    else:
        missing = _about((factor - 1) * evaluation.counts.n_episodes)
        more = f"about {number(factor, 2)} times as many gate episodes ({number(missing)} more"
        more += f"{_wait(missing, evaluation)})"
    return (
        f"The bound lacks {gap}. With {more} the same estimate, {number(comparison.value, 3)}, would clear it; or a "
        "candidate whose difference is larger."
    )
