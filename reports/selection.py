"""Choosing one candidate of many by what can be shown of it, before any of them meets `gate`.

Every candidate gets a lower bound of its value above the baseline's: by a model of its values, or by weighting where
the log covers it and weighting is the more precise or contradicts the model. The best bound wins, except that a
candidate that the gate can certify is preferred where that costs little. What acts as the baseline does has nothing to
show, and is chosen only where there is nothing else.

`gate` is never read: choosing among many on it would spend the error that one reading of it allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from scipy import stats

from datasets.errors import OfflineDqnError
from datasets.spreading import Spread, one_by_one
from offline_dqn.candidates import Candidate
from offline_dqn.description import AnyPolicy
from offline_dqn.devices import one_thread
from offline_dqn.policy import QPolicy
from reports.assessment import Assessment
from reports.estimators import Floats
from reports.judging import Difference, Judge

DIRECT, WEIGHTED = "direct", "dr"
BASELINE = "the baseline"
_BY = {DIRECT: "the model", WEIGHTED: "weighting"}

_SAME_PROBABILITY = 1e-6

_AT_ONCE = 16
"""Candidates whose probabilities are held at once, where they are judged apart."""


class NoCandidateError(OfflineDqnError):
    """There is nothing to choose from."""


@dataclass(frozen=True)
class Judged:
    """What is known of one candidate, in reward units per episode.

    Attributes:
        name, origin: of the candidate.
        value, difference, standard_error: by the model: its value, and that minus the baseline's; no standard error
            where the episodes are one cluster.
        weighted_difference, weighted_low, weighted_error: by weighting; None where it was refused.
        weights_refused: why; None where it was not.
        estimator: "direct" or "dr", which gives the bound.
        lower_bound, upper_bound: of the difference, one-sided each; None where there are none.
        gate_bound: lower bound that the gate could find with its number of episodes; None where it would refuse.
        cannot_certify: why the gate could not certify it; None where it could.
        no_bounds: why there are none; it is ranked by its estimate, after all that have bounds.
        same_as: an earlier candidate that acts alike everywhere, or "the baseline".
        chosen: whether it became the release.
        why: why it was chosen, or lost.
    """

    name: str
    origin: str
    value: float
    difference: float
    standard_error: float | None
    weighted_difference: float | None
    weighted_low: float | None
    weighted_error: float | None
    weights_refused: str | None
    estimator: str
    lower_bound: float | None
    upper_bound: float | None
    gate_bound: float | None
    cannot_certify: str | None
    no_bounds: str | None = None
    same_as: str | None = None
    chosen: bool = False
    why: str = ""

    @property
    def ranked_difference(self) -> float:
        """The estimated difference to the baseline by the estimator that gives the bound."""
        if self.estimator == DIRECT or self.weighted_difference is None:
            return self.difference
        return self.weighted_difference

    @property
    def ranked_by(self) -> float:
        """The lower bound; the estimated difference where there is none."""
        return self.ranked_difference if self.lower_bound is None else self.lower_bound

    @property
    def certifiable(self) -> bool:
        """Whether the gate could certify it."""
        return self.cannot_certify is None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Selection:
    """One candidate, and all that it was chosen from.

    Attributes:
        policy: of the chosen one.
        candidates: best first.
        baseline_value: what differences are measured against.
        level: one-sided, of the bounds.
        n_episodes: of `select`; n_reused of `train` that the model also used, each counting `reuse_weight`.
    """

    policy: AnyPolicy
    candidates: tuple[Judged, ...]
    baseline_value: float
    level: float
    n_episodes: int
    n_reused: int
    reuse_weight: float

    @property
    def chosen(self) -> Judged:
        """The one that became the release."""
        return next(candidate for candidate in self.candidates if candidate.chosen)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the policy."""
        return {
            "baseline_value": self.baseline_value,
            "level": self.level,
            "n_episodes": self.n_episodes,
            "n_reused": self.n_reused,
            "reuse_weight": self.reuse_weight,
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }


def select_candidate(
    candidates: Iterable[Candidate],
    judge: Judge,
    *,
    other_forms: Callable[[Candidate], Iterable[Candidate]] = lambda _: (),
    as_served: Callable[[AnyPolicy], AnyPolicy] = lambda policy: policy,
    spread: Spread = one_by_one,
) -> Selection:
    """Judge every candidate and the other forms of the best ones, and choose.

    Args:
        candidates: as their origins mean them to act.
        judge: with its settings.
        other_forms: of a candidate; asked for the `n_finalists` best only that act on values or logits, each a learner
            of its own.
        as_served: the policy that would act of a candidate's, with its guard: that one is judged, and becomes the
            release.
        spread: works out the candidates, some at a time.

    Raises:
        NoCandidateError: there is none.
    """
    board = _Board(judge, as_served, spread)
    board.add(candidates)
    if not board.judged:
        raise NoCandidateError(
            "there is no candidate to choose from: [train] names no learner that ended, and no simple policy applies"
        )
    for candidate in board.best(judge.config.n_finalists):
        board.add(other_forms(candidate))
    ranked = choose(
        list(board.judged.values()), certify_share=judge.config.certify_share, tie_share=judge.config.tie_share
    )
    chosen = next(judged.name for judged in ranked if judged.chosen)
    return Selection(
        policy=as_served(board.candidates[chosen].policy),
        candidates=ranked,
        baseline_value=judge.baseline_value,
        level=judge.config.level,
        n_episodes=judge.select.n_episodes,
        n_reused=judge.train.n_episodes,
        reuse_weight=judge.config.reuse_weight,
    )


def choose(judged: Sequence[Judged], *, certify_share: float, tie_share: float) -> tuple[Judged, ...]:
    """The candidates, the best lower bound first, one of them chosen, each with the reason.

    A certifiable candidate is preferred where its bound is at most `certify_share` of the way from the baseline (0) to
    the best bound behind that; where no bound exceeds the baseline, where it is the best bound itself. Among those left
    that are judged by the same estimator as the best of them, and whose bounds are behind its bound by at most
    `tie_share` of its estimated difference, the best estimate wins: bounds of bolder and tamer forms of one policy
    share most of their error, and the tamer one would win by its width alone.

    What has no bounds is ranked by its estimate after all that have; where none has bounds, estimates take their place.
    What acts as the baseline does is chosen only where every candidate does.
    """
    ranked = sorted(judged, key=lambda j: (j.same_as is not None, *_order(j)))
    distinct = [j for j in ranked if j.same_as is None] or ranked
    best = distinct[0]
    rivals = [j for j in distinct if (j.lower_bound is None) == (best.lower_bound is None)]
    affordable = best.ranked_by - certify_share * max(0.0, best.ranked_by)
    pool = [j for j in rivals if j.certifiable and j.ranked_by >= affordable] or rivals
    tie = tie_share * max(0.0, pool[0].ranked_difference)
    tied = [j for j in pool if j.ranked_by >= pool[0].ranked_by - tie and j.estimator == pool[0].estimator]
    winner = max(tied, key=lambda j: j.ranked_difference)
    return tuple(replace(j, chosen=j is winner, why=_why(j, winner, best)) for j in ranked)


def _order(judged: Judged) -> tuple[bool, float]:
    return judged.lower_bound is None, -judged.ranked_by


def _why(judged: Judged, winner: Judged, best: Judged) -> str:
    if judged.same_as is not None:
        alike = f"acts as {judged.same_as} does"
        return f"{alike}, as all candidates do" if judged is winner else alike
    certified = "can be certified" if judged.certifiable else f"cannot be certified: {judged.cannot_certify}"
    reason = _why_chosen(judged, best, certified) if judged is winner else _why_lost(judged, winner, certified)
    return reason if judged.no_bounds is None else f"{reason}; unranked, {judged.no_bounds}"


def _why_chosen(judged: Judged, best: Judged, certified: str) -> str:
    ranked_by = "estimate" if best.lower_bound is None else "lower bound"
    if judged is best:
        return f"best {ranked_by}; {certified}"
    behind = f"{best.ranked_by - judged.ranked_by:.3g} behind the best {ranked_by} ({best.name})"
    if judged.certifiable and not best.certifiable:
        return f"can be certified, {behind}"
    return f"best estimate, {behind}; {certified}"


def _why_lost(judged: Judged, winner: Judged, certified: str) -> str:
    if judged.lower_bound is None and winner.lower_bound is not None:
        return f"no bound to compare with {winner.name}"
    if judged.ranked_by > winner.ranked_by:
        if winner.certifiable and not judged.certifiable:
            return certified
        if judged.estimator != winner.estimator:
            return f"judged by {_BY[judged.estimator]}; only bounds by {_BY[winner.estimator]} tie with {winner.name}"
        return f"estimate behind {winner.name}"
    ranked_by = "estimate" if judged.lower_bound is None else "lower bound"
    behind = f"{ranked_by} {winner.ranked_by - judged.ranked_by:.3g} behind {winner.name}"
    return behind if judged.certifiable else f"{behind}; {certified}"


@dataclass
class _Board:
    """What was judged so far."""

    judge: Judge
    as_served: Callable[[AnyPolicy], AnyPolicy]
    spread: Spread = one_by_one
    judged: dict[str, Judged] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    _alike: dict[bytes, str] = field(default_factory=dict)

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Judges those that are new; what is asked of an iterable before each is asked before its group is judged."""
        waiting = iter(candidates)
        while group := list(islice(waiting, 1 if self.spread is one_by_one else _AT_ONCE)):
            self._judge(group)

    def _judge(self, candidates: Sequence[Candidate]) -> None:
        same_as: dict[str, str | None] = {}
        seen: list[Seen] = []
        for candidate in candidates:
            if candidate.name in self.candidates:
                continue
            self.candidates[candidate.name] = candidate
            served = self.as_served(candidate.policy)
            probs, baseline = self.judge.probs(served), self.judge.baseline_probs
            if baseline is not None and np.abs(probs - baseline).max() <= _SAME_PROBABILITY:
                same: str | None = BASELINE
            else:
                first = self._alike.setdefault(np.round(probs, 6).tobytes(), candidate.name)
                same = None if first == candidate.name else first
            same_as[candidate.name] = same
            if same in (None, BASELINE):
                seen.append(Seen(candidate.name, candidate.origin, served, probs))
        self.judge.prepare(each.probs for each in seen)
        with one_thread():  # here as elsewhere: the last bits are not to depend on where a candidate is judged
            found = {each.name: each for each in self.spread("candidate", partial(_judged, self.judge), seen)}
        for name, same in same_as.items():
            if same is None:
                self.judged[name] = found[name]
            elif same == BASELINE:
                nothing = f"it acts as {BASELINE} does"
                self.judged[name] = replace(found[name], same_as=BASELINE, cannot_certify=nothing)
            else:
                origin = self.candidates[name].origin
                self.judged[name] = replace(self.judged[same], name=name, origin=origin, same_as=same)

    def best(self, n: int) -> list[Candidate]:
        """At most n that have other forms, of each learner the best step; those that act as the baseline does last."""
        own = (j for j in self.judged.values() if j.same_as in (None, BASELINE))
        distinct = sorted(own, key=lambda j: (j.same_as is not None, *_order(j)))
        found: dict[str, Candidate] = {}
        for judged in distinct:
            candidate = self.candidates[judged.name]
            if isinstance(candidate.policy, QPolicy):
                found.setdefault(candidate.learner or candidate.name, candidate)
        return list(found.values())[:n]


@dataclass(frozen=True)
class Seen:
    """A candidate as it would act: (T, A) its probabilities at the steps that judge."""

    name: str
    origin: str
    served: AnyPolicy
    probs: Floats


def _judged(judge: Judge, seen: Seen) -> Judged:
    probs = seen.probs
    direct = judge.direct(probs)
    refused, weighted, claims = judge.why_not_weighted(probs), None, None
    if refused is None:
        assessment = judge.weighted(seen.served, probs)
        weighted, refused = _weighted_difference(assessment)
        claims = _claims_too_much(assessment)
    level = judge.config.level
    deciding = _deciding(direct, weighted, level)
    bounded, gate_bound = np.isfinite(deciding.standard_error), None
    if weighted is not None:
        error = weighted.standard_error * np.sqrt(judge.select.n_episodes / max(1, judge.n_gate_episodes))
        gate_bound = float(deciding.difference - stats.norm.ppf(1 - judge.gate.alpha) * error)
    cannot = refused or claims
    if cannot is None and gate_bound is not None and gate_bound <= -judge.gate.margin:
        cannot = f"with about {judge.n_gate_episodes:,} gate episodes its lower bound would be {gate_bound:.3g}"
    return Judged(
        name=seen.name,
        origin=seen.origin,
        value=direct.value,
        difference=direct.difference,
        standard_error=direct.standard_error if np.isfinite(direct.standard_error) else None,
        weighted_difference=None if weighted is None else weighted.difference,
        weighted_low=None if weighted is None else weighted.low(level),
        weighted_error=None if weighted is None else weighted.standard_error,
        weights_refused=refused,
        estimator=DIRECT if deciding is direct else WEIGHTED,
        lower_bound=deciding.low(level) if bounded else None,
        upper_bound=deciding.high(level) if bounded else None,
        gate_bound=gate_bound,
        cannot_certify=cannot,
        no_bounds=None if bounded else "the episodes that judge are one cluster, which shows no error",
    )


def _deciding(direct: Difference, weighted: Difference | None, level: float) -> Difference:
    """The weighted estimate where it is the more precise or contradicts the model, which it does without its bias."""
    if weighted is None:
        return direct
    apart = abs(weighted.difference - direct.difference)
    together = float(np.hypot(direct.standard_error, weighted.standard_error))
    contradicts = apart > stats.norm.ppf((1 + level) / 2) * together
    return weighted if contradicts or weighted.standard_error < direct.standard_error else direct


def _weighted_difference(assessment: Assessment) -> tuple[Difference | None, str | None]:
    """The weighted difference to the baseline, or why there is none."""
    comparison = next(c for c in assessment.comparisons if c.against == "baseline" and c.binding)
    estimate = next((e for e in assessment.estimates if (e.estimator, e.policy) == ("dr", "candidate")), None)
    refused = comparison.refused or assessment.agreement.refused
    interval, value = comparison.interval, comparison.value
    if refused is None and (interval is None or value is None or estimate is None or estimate.value is None):
        refused = "its weighted value has no interval"
    apart = assessment.agreement.interval
    if refused is None and apart is not None and not apart.low <= 0.0 <= apart.high:
        refused = f"two weighted estimates differ by {apart.low:.3g} to {apart.high:.3g}"
    if refused is not None:
        return None, refused
    assert interval is not None
    assert value is not None
    assert estimate is not None
    assert estimate.value is not None
    error = (interval.high - interval.low) / (2 * float(stats.norm.ppf((1 + interval.level) / 2)))
    if not np.isfinite(error):
        return None, "its weighted value has no finite interval"
    return Difference(estimate.value, value, error), None


def _claims_too_much(assessment: Assessment) -> str | None:
    """Whether the candidate's own Q-values promise more than the log supports: the gate would refuse it."""
    claim = assessment.q_claim
    if claim is None or claim.greedy_q is None or claim.upper_bound is None or claim.greedy_q <= claim.upper_bound:
        return None
    return f"its Q-values promise {claim.greedy_q:.4g}, the log supports at most {claim.upper_bound:.4g}"
