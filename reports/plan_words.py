"""A plan for a person: a short table to read at a glance, and the sentences behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from reports.formatting import counted, number, share
from reports.plan import POWER, WANTED_IMPROVEMENT, Decidable, LogPlan, Priced, count_words
from reports.plan_costs import CANDIDATE_EXPLORATION

_RARE = 10  # an action taken less often is named
_MOST_ACTIONS = 8

COLUMNS = ("acts differently in", "decidable from", "of mean return", "by", "{wanted} of mean return takes")


def plan_facts(plan: LogPlan) -> dict[str, str]:
    """What the log holds, in a line each."""
    explored = plan.exploration
    if explored is None:
        exploration = "not known: no behavior probability"
    elif math.isclose(explored.low, explored.high, abs_tol=1e-9):
        exploration = f"{share(explored.low)} of decisions"
    else:
        exploration = f"{share(explored.low)} to {share(explored.high)} of decisions"
    ranked = sorted(plan.actions, key=lambda a: a.n_taken)
    support = ", ".join(f"{a.action} {share(a.share)}" for a in ranked[:_MOST_ACTIONS])
    more = f", and {len(ranked) - _MOST_ACTIONS} taken more often" if len(ranked) > _MOST_ACTIONS else ""
    return {
        "log": f"{counted(plan.n_episodes, 'episode')} in {counted(plan.n_nights, 'night')}; the gate would read "
        f"{plan.n_gate:,.0f}",
        "horizon": "1 step"
        if plan.longest_length == 1
        else f"{number(plan.mean_length, 3)} steps, at most {plan.longest_length:,}",
        "mean return": number(plan.mean_return),
        "exploration": exploration,
        "actions taken": support + more,
        "nights": _night_words(plan) if plan.night_effect_refuses else "",
        "refused": plan.refused or "",
    }


def plan_columns() -> tuple[str, ...]:
    """Headings of `plan_rows`."""
    return tuple(column.format(wanted=share(WANTED_IMPROVEMENT)) for column in COLUMNS)


def plan_title(plan: LogPlan) -> str:
    """Heading of `plan_rows`: what is imagined, and that it is no promise. The columns complete its last sentence."""
    if plan.move is None:
        return "A candidate that"
    return (
        f"Imagined candidates, moving {share(plan.move.moved)} of the probability to another action where they differ "
        "from the log. That one gains as much as would be decidable is not promised. A candidate that"
    )


def plan_rows(plan: LogPlan) -> list[tuple[str, ...]]:
    """For each imagined candidate, what the gate could decide at `POWER`, and what it takes; see `plan_columns`."""
    return [
        (
            f"{share(row.changed_share)} of decisions",
            f"undecidable: {row.chosen.undecidable}" if row.chosen.smallest_difference is None
            else number(row.chosen.smallest_difference, 2),
            "" if row.chosen.smallest_difference is None or not plan.mean_return
            else share(row.chosen.smallest_difference / abs(plan.mean_return)),
            row.estimator,
            _price(row, plan),
        )
        for row in plan.decidable
    ]  # fmt: skip


def _price(row: Decidable, plan: LogPlan) -> str:
    """What it takes to decide the wanted improvement: nights, or exploration."""
    if not plan.mean_return:
        return ""
    if row.nights_needed is None:
        nights = "no number of nights"
    else:
        nights = f"{_rounded(row.nights_needed)} {_nights(row.nights_needed)}"
        if row.nights_needed <= plan.n_nights:
            return f"{nights}, which are there"
    return nights if row.exploration_needed is None else f"{nights}, or {share(row.exploration_needed)} exploration"


def plan_sentences(plan: LogPlan) -> list[str]:
    """The plan in full, from what is there to what it would take."""
    return [*_data_sentences(plan), *_exploration_sentences(plan), *_support_sentences(plan), *_verdicts(plan)]


def _data_sentences(plan: LogPlan) -> list[str]:
    found = [
        f"{counted(plan.n_episodes, 'episode')} with {counted(plan.n_steps, 'step')}, in "
        f"{counted(plan.n_clusters, 'cluster')} over {counted(plan.n_nights, 'night')}; in "
        f"{counted(plan.n_decisions, 'step')} there was a choice. "
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
    if plan.ab_test_difference is not None:
        found.append(
            f"The gate would read about {plan.n_gate:,.0f} of the episodes. An experiment with as many of either "
            f"policy would decide an improvement of {number(plan.ab_test_difference, 3)}; the gate judges both "
            "policies on the same episodes, so candidates close to the log need less, and others more."
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
    exploring = (
        "explores like the log (exploring less, everywhere, costs more)"
        if plan.move.has_usual
        else f"explores in {share(CANDIDATE_EXPLORATION)} of them, as the log takes no action usually"
    )
    lacking = {row.changed_share for row in plan.decidable if row.exploration_needed is not None}
    return [
        *(_verdict(row, plan) for row in plan.decidable),
        *_advice(tuple(need for need in plan.needed_exploration if need[0] in lacking)),
        *([_night_words(plan)] if plan.night_effect_refuses else []),
        f"All this is orientation, at alpha {plan.alpha:g} and {share(POWER)} power: closed forms for a candidate that "
        f"moves {number(plan.move.moved, 2)} of the probability to an action of probability "
        f'{number(plan.move.other_prob, 2)} in the decisions it changes, and {exploring}. "dr" weighs by products of '
        'ratios; "drl" by marginalized weights, and takes the candidate to visit states about as often as the log. '
        "Where the acting policy is not version 0, the gate asks for as much against version 0 as well.",
    ]


def _night_words(plan: LogPlan) -> str:
    effect = plan.night_effect
    assert effect is not None
    return (
        f"Nights share what episodes.cluster does not keep together: the variance by night is "
        f"{number(effect.value, 2)} times that by cluster over {effect.n_units} nights, and the gate would refuse. Set "
        "episodes.cluster so that a night stays whole; the improvements here allow for it."
    )


def _verdict(row: Decidable, plan: LogPlan) -> str:
    about = f"A candidate that acts differently in {share(row.changed_share)} of the decisions: "
    about += _decided(row.chosen, plan)
    if row.marginal is not None:
        other = row.products if row.estimator == "drl" else row.marginal
        about += f" With {other.estimator} it would be {_decided(other, plan)}"
    if row.episodes_needed is not None and row.nights_needed is not None:
        about += (
            f" An improvement of {share(WANTED_IMPROVEMENT)} of the mean return takes about "
            f"{_rounded(row.episodes_needed)} episodes of log, {_rounded(row.nights_needed)} nights like these."
        )
    elif plan.mean_return:
        about += f" No number of nights like these decides {share(WANTED_IMPROVEMENT)} of the mean return."
    return about


def _decided(priced: Priced, plan: LogPlan) -> str:
    if priced.smallest_difference is None:
        return f"undecidable by {priced.estimator}: {priced.undecidable}."
    of_mean = (
        f" ({share(priced.smallest_difference / abs(plan.mean_return))} of the mean return)" if plan.mean_return else ""
    )
    return (
        f"decidable from an improvement of {number(priced.smallest_difference, 3)} on{of_mean} by {priced.estimator}, "
        f"with {count_words(priced.n_effective)} effective episodes."
    )


def _advice(needs: tuple[tuple[float, float], ...]) -> Iterator[str]:
    if needs:
        explorations = ", ".join(
            f"{share(exploration)} (for {share(changed)} changed)" for changed, exploration in needs
        )
        yield (
            f"What would make an improvement of {share(WANTED_IMPROVEMENT)} of the mean return decidable with as many "
            "episodes as there are: log behavior_prob and let the acting policy, and the candidate after it, take an "
            f"available action uniformly in this share of the decisions: {explorations}."
        )


def _nights(n: int) -> str:
    return "night" if n == 1 else "nights"


def _rounded(count: int) -> str:
    return f"{float(f'{count:.2g}'):,.0f}"
