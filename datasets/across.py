"""What a batch must fulfil beside recent ones: its volume, age, gaps, labels, actions and probabilities.

Pure: from the facts of the batch and of recent batches to expectations over the batch's numbers, and to a sentence for
everything that could not be judged. Every comparison leaves room for chance by the number of episodes, because rows of
one episode are not independent, and by default only warns: nights differ for good reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import numpy as np

from datasets.contract import CategoricalFeature, Contract
from datasets.durations import seconds_of
from datasets.expectations import Expectation, of_batch
from datasets.nights import BatchFacts, NightFacts
from datasets.propensities import InverseAverage
from datasets.validate_config import Severity, ValidateConfig

_SIGMAS = 3.0
"""Room for chance, in standard deviations."""
_FEWEST_EXPECTED = 30
"""An action has vanished only where so many rows of it were to be expected."""
_USUAL = 0.95
"""What so many of the recent nights keep to is usual: from 21 nights on, a single odd one does not widen it."""
_TELLING = 0.1
"""A night or batch with fewer rows than this part of the median tells nothing of what is usual."""
_MAX_NAMED = 5


@dataclass(frozen=True)
class Judged:
    """What can be expected of a batch, and what could not be judged and why."""

    expectations: tuple[Expectation, ...]
    not_judged: tuple[str, ...]


def across_expectations(
    facts: BatchFacts,
    recent: Sequence[BatchFacts],
    averages: Sequence[InverseAverage] | None,
    contract: Contract,
    config: ValidateConfig,
    *,
    as_of: datetime,
) -> Judged:
    """The expectations of a batch beside recent ones.

    Args:
        facts: of the batch.
        recent: facts of earlier batches, in any order.
        averages: of 1[A = a] / p by action; None where the log cannot tell.
        as_of: when the batch is taken in.
    """
    severity = config.severity
    checks: dict[str, tuple[Severity, Iterable[Expectation | str]]] = {
        "low volume": (severity.volume_low, _volume(facts, recent, config, as_of, low=True)),
        "high volume": (severity.volume_high, _volume(facts, recent, config, as_of, low=False)),
        "freshness": (severity.freshness, _freshness(facts, config, as_of)),
        "missing values": (severity.null_share, _nulls(facts, recent, config)),
        "share quarantined": (severity.quarantined, _quarantined(facts, recent, config)),
        "new labels": (severity.new_labels, _new_labels(facts, recent, contract, config)),
        "vanished actions": (severity.vanished_actions, _vanished(facts, recent, config)),
    }
    return _judged(checks | _propensity_checks(averages, contract, config))


def lake_expectations(
    facts: BatchFacts,
    averages: Sequence[InverseAverage] | None,
    contract: Contract,
    config: ValidateConfig,
    *,
    as_of: datetime,
) -> Judged:
    """The expectations of a whole lake: each night beside those before it, and what needs no comparison."""
    severity = config.severity
    checks: dict[str, tuple[Severity, Iterable[Expectation | str]]] = {
        "low volume": (severity.volume_low, _volume(facts, (), config, as_of, low=True)),
        "high volume": (severity.volume_high, _volume(facts, (), config, as_of, low=False)),
        "freshness": (severity.freshness, _freshness(facts, config, as_of)),
    }
    return _judged(checks | _propensity_checks(averages, contract, config))


def outcome_expectations(
    facts: BatchFacts, recent: Sequence[BatchFacts], config: ValidateConfig, *, as_of: datetime
) -> Judged:
    """The expectations of a batch of outcomes beside recent ones."""
    severity = config.severity
    return _judged(
        {
            "low volume": (severity.volume_low, _volume(facts, recent, config, as_of, low=True)),
            "high volume": (severity.volume_high, _volume(facts, recent, config, as_of, low=False)),
            "freshness": (severity.freshness, _freshness(facts, config, as_of)),
            "share quarantined": (severity.quarantined, _quarantined(facts, recent, config)),
        }
    )


def _propensity_checks(
    averages: Sequence[InverseAverage] | None, contract: Contract, config: ValidateConfig
) -> dict[str, tuple[Severity, Iterable[Expectation | str]]]:
    if contract.behavior.propensity != "logged":
        return {}
    return {
        "high propensities": (config.severity.propensity_high, _propensities(averages, config, high=True)),
        "low propensities": (config.severity.propensity_low, _propensities(averages, config, high=False)),
    }


def _judged(checks: Mapping[str, tuple[Severity, Iterable[Expectation | str]]]) -> Judged:
    expectations = list[Expectation]()
    not_judged: dict[str, list[str]] = {}  # subjects by reason
    for subject, (severity, found) in checks.items():
        if severity == "off":
            continue
        for item in found:
            if isinstance(item, str):
                not_judged.setdefault(item, []).append(subject)
            else:
                expectations.append(replace(item, severity=severity))
    sentences = [f"{', '.join(subjects)}: {reason}" for reason, subjects in not_judged.items()]
    return Judged(tuple(expectations), tuple(sentences))


def _volume(
    facts: BatchFacts, recent: Sequence[BatchFacts], config: ValidateConfig, as_of: datetime, *, low: bool
) -> Iterator[Expectation | str]:
    """Each night of the batch, with what earlier batches had of it, beside the nights before it."""
    limits = config.recent
    rows, episodes = _by_night([*recent, facts])
    worst: tuple[float, date, int, float] | None = None
    outside, n_unknown, n_going_on = list[str](), 0, 0
    last = max(rows, default=date.min)
    for night in facts.nights:
        at = night.night
        if low and not (at < last or as_of.astimezone(UTC).date() > at):
            n_going_on += 1
            continue
        before = [other for other in sorted(rows) if other < at][-limits.n_nights :]
        if len(before) < limits.fewest_nights:
            n_unknown += 1
            continue
        counts = [rows[other] for other in before]
        chance = _SIGMAS / math.sqrt(max(float(np.median([episodes[other] for other in before])), 1.0))
        if low:
            bound = float(math.floor(float(np.quantile(counts, 0.1)) / limits.volume_factor * max(1.0 - chance, 0.0)))
            excess = bound / max(rows[at], 1)
        else:
            bound = float(math.ceil(float(np.quantile(counts, 0.9)) * limits.volume_factor * (1.0 + chance)))
            excess = rows[at] / max(bound, 1)
        if excess > 1.0:
            outside.append(f"{at}: {rows[at]} rows, the nights before it {min(counts)} to {max(counts)}")
        if worst is None or excess > worst[0]:
            worst = (excess, at, rows[at], bound)
    if n_unknown and worst is None:
        yield _too_few_nights(len(rows) - 1, config)
    elif n_going_on and worst is None:
        yield "its night is not over at as_of, more of it may come"
    if worst is None:
        return
    _, at, n, bound = worst
    listed = "; ".join(outside[:_MAX_NAMED]) + (
        f"; and {len(outside) - _MAX_NAMED} more" if outside[_MAX_NAMED:] else ""
    )
    if low:
        says = f"is at least {bound:g}, by the {limits.n_nights} nights before it"
        remedy = f"{listed}. Look whether every source delivered its log; a file that comes later is simply added."
    else:
        says = f"is at most {bound:g}, by the {limits.n_nights} nights before it"
        remedy = f"{listed}. Look whether rows came twice under new identities, or a source was added."
    remedy += " If the volume is right, raise validate.recent.volume_factor."
    sides = {"low": bound, "high": None} if low else {"low": None, "high": bound}
    yield of_batch(f"number of rows of {at}", n, says, remedy, low=sides["low"], high=sides["high"])


def _by_night(batches: Sequence[BatchFacts]) -> tuple[dict[date, int], dict[date, int]]:
    """Rows and episodes of each night over all batches: a night may come in several."""
    rows, episodes = dict[date, int](), dict[date, int]()
    for night in (night for batch in batches for night in batch.nights):
        rows[night.night] = rows.get(night.night, 0) + night.n_rows
        episodes[night.night] = episodes.get(night.night, 0) + night.n_episodes
    return rows, episodes


def _recent_nights(facts: BatchFacts, recent: Sequence[BatchFacts], config: ValidateConfig) -> list[NightFacts]:
    """The newest nights of earlier batches that are no later than this batch's last, each whole."""
    last = max((night.night for night in facts.nights), default=date.max)
    merged: dict[date, NightFacts] = {}
    for night in (night for batch in recent for night in batch.nights if night.night <= last):
        known = merged.get(night.night)
        merged[night.night] = night if known is None else _both(known, night)
    return [merged[at] for at in sorted(merged)][-config.recent.n_nights :]


def _telling_nights(facts: BatchFacts, recent: Sequence[BatchFacts], config: ValidateConfig) -> list[NightFacts]:
    """The recent nights without those that are too small for their shares to mean anything."""
    nights = [night for night in _recent_nights(facts, recent, config) if night.n_rows]
    fewest = _fewest_telling([night.n_rows for night in nights])
    return [night for night in nights if night.n_rows >= fewest]


def _fewest_telling(counts: Sequence[int]) -> float:
    return _TELLING * float(np.median(counts)) if counts else 0.0


def _both(one: NightFacts, other: NightFacts) -> NightFacts:
    def added(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
        return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}

    return NightFacts(
        one.night,
        one.n_rows + other.n_rows,
        one.n_episodes + other.n_episodes,
        added(one.nulls, other.nulls),
        added(one.actions, other.actions),
    )


def _freshness(facts: BatchFacts, config: ValidateConfig, as_of: datetime) -> Iterator[Expectation | str]:
    if facts.newest is None:
        if facts.nights:
            yield "no row has a timestamp"
        return
    age_h = (as_of - facts.newest) / timedelta(hours=1)
    yield of_batch(
        "age of the newest row in hours",
        age_h,
        f"lies between -1 and {seconds_of(config.recent.max_age) / 3600:g}",
        f"It is of {facts.newest:%Y-%m-%d %H:%M} UTC, and the batch is judged as of {as_of:%Y-%m-%d %H:%M} UTC. If the "
        "log is a back-fill, pass --as-of or set ingest.as_of = 'newest'; else look what stopped the log (too old), or "
        "at the clock and the time zone of its writer (in the future). validate.recent.max_age is the limit.",
        low=-1.0,
        high=seconds_of(config.recent.max_age) / 3600,
    )


def _nulls(facts: BatchFacts, recent: Sequence[BatchFacts], config: ValidateConfig) -> Iterator[Expectation | str]:
    nights = _telling_nights(facts, recent, config)
    features = sorted({name for night in facts.nights for name in night.nulls})
    if not features or not facts.n_rows:
        return
    if len(nights) < config.recent.fewest_nights:
        yield _too_few_nights(len(nights), config)
        return
    n_episodes = max(sum(night.n_episodes for night in facts.nights), 1)
    worst: tuple[float, str, float, float] | None = None
    risen = list[str]()
    for name in features:
        shares = [night.nulls[name] / night.n_rows for night in nights if name in night.nulls]
        if len(shares) < config.recent.fewest_nights:
            yield f"observation.{name} is known of {len(shares)} nights, {config.recent.fewest_nights} are needed"
            continue
        share = sum(night.nulls.get(name, 0) for night in facts.nights) / facts.n_rows
        limit = _upper(_usual_most(shares), n_episodes) + config.recent.null_share_slack
        if share > limit:
            risen.append(f"observation.{name} {share:.2%}, recent nights {min(shares):.2%} to {max(shares):.2%}")
        if worst is None or share - limit > worst[0]:
            worst = (share - limit, name, share, limit)
    if worst is not None:
        _, name, share, limit = worst
        yield of_batch(
            f"share missing of observation.{name}",
            share,
            f"is at most {limit:.2%}, by recent nights",
            f"{'; '.join(risen[:_MAX_NAMED])}. Look what in the log stopped writing it. If it is right, the comparison "
            "takes it for usual after a night or two; validate.recent.null_share_slack says how far a share may rise.",
            high=min(limit, 1.0),
        )


def _quarantined(
    facts: BatchFacts, recent: Sequence[BatchFacts], config: ValidateConfig
) -> Iterator[Expectation | str]:
    if not facts.n_new:
        return
    n_known = len({night.night for batch in recent for night in batch.nights})
    shares = _quarantined_shares(recent, config)
    if n_known < config.recent.fewest_nights or not shares:
        yield _too_few_nights(n_known, config)
        return
    limit = _upper(_usual_most(shares), facts.n_new) + config.recent.quarantined_slack
    yield of_batch(
        "share quarantined beside recent batches",
        facts.n_quarantined / facts.n_new,
        f"is at most {limit:.2%}",
        f'Recent batches had {min(shares):.2%} to {max(shares):.2%}. `offline-dqn query "SELECT reason, count(*) FROM '
        'quarantine GROUP BY ALL"` shows what is new; mend the log or the contract.',
        high=min(limit, 1.0),
    )


def _quarantined_shares(recent: Sequence[BatchFacts], config: ValidateConfig) -> list[float]:
    """The highest share of each of the last nights, over the batches that end with it and are large enough to tell.

    By night, because the sources of one night may differ for good, and so one bad batch spoils one night only.
    """
    dated = [(max(night.night for night in batch.nights), batch) for batch in recent if batch.nights and batch.n_new]
    last = set(sorted({at for at, _ in dated})[-config.recent.n_nights :])
    dated = [(at, batch) for at, batch in dated if at in last]
    fewest = _fewest_telling([batch.n_new for _, batch in dated])
    highest = dict[date, float]()
    for at, batch in dated:
        if batch.n_new >= fewest:
            highest[at] = max(highest.get(at, 0.0), batch.n_quarantined / batch.n_new)
    return list(highest.values())


def _new_labels(
    facts: BatchFacts, recent: Sequence[BatchFacts], contract: Contract, config: ValidateConfig
) -> Iterator[Expectation | str]:
    worst: tuple[float, str] | None = None
    new_ones = list[str]()
    for name, labels in facts.labels.items():
        feature = contract.features[name]
        earlier = [batch.labels[name] for batch in recent if batch.labels.get(name)]
        if labels is None:
            yield f"observation.{name} has too many labels to compare"
        elif not earlier:
            yield f"no earlier batch has labels of observation.{name}"
        elif labels:
            declared = (feature.values or ()) if isinstance(feature, CategoricalFeature) else ()
            known = {label for batch in earlier for label in batch or ()} | set(declared)
            new = {label: n for label, n in labels.items() if label not in known}
            share = sum(new.values()) / facts.n_rows
            if share > config.recent.max_new_label_share:
                often = sorted(new, key=lambda label: -new[label])
                shown = ", ".join(f"'{label}' ({new[label]} rows)" for label in often[:_MAX_NAMED])
                more = f" and {len(often) - _MAX_NAMED} more" if often[_MAX_NAMED:] else ""
                new_ones.append(f"observation.{name}: {shown}{more}")
            if worst is None or share > worst[0]:
                worst = (share, name)
    if worst is not None:
        yield of_batch(
            f"share of new labels in observation.{worst[1]}",
            worst[0],
            f"is at most {config.recent.max_new_label_share:.2%}",
            f"{'; '.join(new_ones)}. Were labels renamed? If they are right, add them to the feature's values and "
            "train again: what acts today takes them for unseen.",
            high=config.recent.max_new_label_share,
        )


def _vanished(facts: BatchFacts, recent: Sequence[BatchFacts], config: ValidateConfig) -> Iterator[Expectation | str]:
    if not facts.n_rows:
        return
    nights = _telling_nights(facts, recent, config)
    if len(nights) < config.recent.fewest_nights:
        yield _too_few_nights(len(nights), config)
        return
    taken = {action for night in facts.nights for action in night.actions}
    gone = list[str]()
    for action in sorted({action for night in nights for action in night.actions} - taken):
        least = _usual_least([night.actions.get(action, 0) / night.n_rows for night in nights])
        if least * facts.n_rows >= _FEWEST_EXPECTED:
            gone.append(f"'{action}' was {least:.2%} or more of a usual night's steps and is in none of this batch's")
    yield of_batch(
        "number of actions that vanished",
        len(gone),
        "is 0",
        f"{'; '.join(gone)}. Was it renamed or forbidden, or does the policy no longer explore it? If the log is "
        "right, say so in the contract (actions, constraints): nothing new can be learned about it.",
        low=0.0,
        high=0.0,
    )


def _propensities(
    averages: Sequence[InverseAverage] | None, config: ValidateConfig, *, high: bool
) -> Iterator[Expectation | str]:
    """TRUST: E(1[A = a] / p) = P(p > 0 | available) <= 1, so above 1 is an error, and below 1 may be a hidden mask."""
    if averages is None:
        yield "no row had a choice that was made with a known probability below 1"
        return
    limits = config.propensity
    level = 1 - (1 - limits.level) / len(averages)
    worst: tuple[float, str, float] | None = None
    off = list[str]()
    for action in averages:
        interval = action.interval(level)
        if interval is None or action.n_taken < limits.fewest_taken or action.n_effective < limits.fewest_effective:
            continue  # too rare to judge
        near = interval[0] if high else interval[1] + action.rarest
        beyond = near - 1.0 if high else 1.0 - near
        if beyond > limits.slack:
            off.append(
                f"'{action.action}' averages to {action.average:.4g}, interval [{interval[0]:.4g}, {interval[1]:.4g}]"
            )
        if worst is None or beyond > worst[0]:
            worst = (beyond, action.action, near)
    if worst is None:
        yield "every action was taken too rarely, or with too uneven probabilities"
        return
    end, relation, bound = ("least", "at most", 1 + limits.slack) if high else ("most", "at least", 1 - limits.slack)
    why = (
        "No policy can have written that: was the probability of another action logged, of the greedy action before "
        "exploration, or a percentage or score?"
        if high
        else "Either the probabilities are too large, or the action was impossible in some rows: log available_actions."
    )
    yield of_batch(
        f"the {end} that 1[action = '{worst[1]}'] / behavior_prob may average to",
        worst[2],
        f"is {relation} {bound:g}; under the true probabilities the average is 1",
        f"{'; '.join(off)}. {why} Correct the logger, or set behavior.propensity = 'estimated' in the contract.",
        low=None if high else bound,
        high=bound if high else None,
    )


def _usual_most(shares: Sequence[float]) -> float:
    return float(np.quantile(shares, _USUAL, method="higher"))


def _usual_least(shares: Sequence[float]) -> float:
    return float(np.quantile(shares, 1 - _USUAL, method="lower"))


def _upper(share: float, n: int) -> float:
    """The share that chance may make of `share` in n independent draws."""
    return share + _SIGMAS * math.sqrt(max(share * (1 - share), 1 / n) / n)


def _too_few_nights(n_known: int, config: ValidateConfig) -> str:
    return f"not enough nights yet: {max(n_known, 0)} known, {config.recent.fewest_nights} needed"
