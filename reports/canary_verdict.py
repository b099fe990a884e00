"""What a canary's episodes allow: to stop, to take the next step, or to wait. Pure arithmetic on what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from reports.canary_comparison import Arms, Difference, compare, without_rhythm
from reports.canary_config import CanaryConfig
from reports.estimators import Floats
from reports.formatting import counted

Action = Literal["stop", "advance", "wait"]
RETURN = "return"
_TUNED_EPISODES, _TUNED_BLOCKS = 250.0, 12.0
"""Effective units (n p (1 - p)) at which the bounds are narrowest: about where equal policies are told to be so."""


@dataclass(frozen=True)
class Measure:
    """One quantity to compare: a ratio of sums over episodes.

    Attributes:
        name: "return", "success", "breaches of <constraint>" or "late decisions".
        numerators, denominators: (N,) of each episode.
        is_loss: whether more of it is worse.
        limit: of a constraint.
    """

    name: str
    numerators: Floats
    denominators: Floats
    is_loss: bool = False
    limit: float | None = None


@dataclass(frozen=True)
class Judgement:
    """One measure: what it is, and what can be said of candidate minus champion. Gains: more is better."""

    name: str
    candidate: float
    champion: float
    gain: float
    """Candidate minus champion, with its sign turned where more is worse."""
    at_least: float
    """The gain is above it at all looks together, but for a chance of the promotion's error."""
    at_most: float
    """The gain is below it at all looks together, but for this measure's part of the stopping error."""
    margin: float
    """What may be lost where the candidate has all the traffic."""
    stops: bool
    advances: bool
    """Whether the next share times the worst plausible loss is within the margin."""


@dataclass(frozen=True)
class Verdict:
    """What to do now, and the numbers that it rests on."""

    action: Action
    reason: str
    n_candidate: int
    """Independent units of the candidate's side: episodes, clusters or blocks."""
    n_champion: int
    n_episodes: int
    exposure: float | None
    """Share of the decisions in the candidate's episodes that the candidate made."""
    judgements: tuple[Judgement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def judge_canary(
    arms: Arms,
    measures: Sequence[Measure],
    config: CanaryConfig,
    *,
    next_share: float,
    at_step: Floats,
    exposure: float | None,
    in_blocks: bool,
) -> Verdict:
    """Stops what is certainly worse; advances what is certainly not worse by more than the next step may lose.

    It stops where the return is certainly lower, a rate certainly worse by more than its margin, or a constraint's
    limit certainly exceeded and the champion certainly better at it. Each measure has its part of the stopping error.
    It advances where for every measure the next share times the worst plausible loss is within the margin: early steps
    ask for little, promotion for the whole. For that each measure may use the whole error, since a candidate that is
    worse must be found good in every one.

    Args:
        arms: N complete episodes in the order of their start.
        measures: the return first.
        next_share: of the traffic, of the following step; 1 for promotion.
        at_step: (N,) whether the episode began under the current step.
        exposure: share of the candidate's decisions that the candidate made; None without any.
        in_blocks: of a switchback, whose units are few.
    """
    n_candidate, n_champion = arms.n_units(True), arms.n_units(False)
    wanted = config.min_blocks if in_blocks else config.min_episodes
    n_now = len(np.unique(arms.units[arms.candidate & (at_step > 0)]))
    unit = "block" if in_blocks else "unit" if len(np.unique(arms.units)) < len(arms) else "episode"

    def verdict(action: Action, reason: str, judgements: tuple[Judgement, ...] = ()) -> Verdict:
        return Verdict(action, reason, n_candidate, n_champion, len(arms), exposure, judgements)

    if min(n_candidate, n_champion) < wanted:
        side, n = min(("candidate", n_candidate), ("champion", n_champion), key=lambda one: one[1])
        return verdict("wait", f"the {side} has {counted(n, 'complete ' + unit)}, wanted are {wanted}")
    tuned_at = _TUNED_BLOCKS if in_blocks else _TUNED_EPISODES
    found: list[Judgement] = []
    unknown: list[str] = []
    for place, measure in enumerate(measures):
        part = 0.5 if place == 0 else 0.5 / (len(measures) - 1)
        judged = _judge(arms, measure, config, config.stop_error * part, next_share, tuned_at)
        if judged is None:
            unknown.append(measure.name)
        else:
            found.append(judged)
    judgements = tuple(found)
    stopping = [j for j in judgements if j.stops]
    if stopping:  # harm that is seen does not wait for what cannot be
        return verdict("stop", "; ".join(map(_stopping_words, stopping)), judgements)
    if unknown:
        return verdict("wait", f"nothing is known of {' and '.join(unknown)} on one side yet", judgements)
    if n_now < wanted:
        return verdict(
            "wait", f"this step has {counted(n_now, unit)} of the candidate, wanted are {wanted}", judgements
        )
    if exposure is None or exposure < config.min_exposure:
        reason = (
            f"the candidate made {exposure or 0.0:.0%} of the decisions in its episodes, wanted are "
            f"{config.min_exposure:.0%}: in the others version 0 acted, late or by the kill switch, or another release"
        )
        return verdict("wait", reason, judgements)
    waiting = [j for j in judgements if not j.advances]
    if waiting:
        reason = "; ".join(
            f"{j.name} may still be worse by {-j.at_least:.4g}, allowed are {j.margin / next_share:.4g}"
            for j in waiting
        )
        return verdict("wait", reason, judgements)
    return verdict(
        "advance", f"no measure is worse by more than a share of {next_share:g} of the traffic may lose", judgements
    )


def _judge(
    arms: Arms, measure: Measure, config: CanaryConfig, stop_alpha: float, next_share: float, tuned_at: float
) -> Judgement | None:
    numerators = measure.numerators
    is_return = measure.name == RETURN
    if is_return:
        numerators = without_rhythm(arms, measure.numerators, measure.denominators)
    compared = [
        compare(arms, numerators, measure.denominators, alpha=alpha, tuned_at=tuned_at, is_rate=not is_return)
        for alpha in (stop_alpha, config.promote_error)
    ]
    stopping, promoting = compared
    if stopping is None or promoting is None:
        return None
    gain, _, at_most = _gain(stopping, measure.is_loss)
    _, at_least, _ = _gain(promoting, measure.is_loss)
    margin = _margin(arms, measure, config)
    over_limit = measure.limit is not None and stopping.candidate.lower > measure.limit
    plain = [
        float((w * measure.numerators).sum() / (w * measure.denominators).sum())
        for w in (arms.candidate * (1 - arms.share), ~arms.candidate * arms.share)
    ]
    return Judgement(
        name=measure.name,
        candidate=plain[0],
        champion=plain[1],
        gain=gain,
        at_least=at_least,
        at_most=at_most,
        margin=margin,
        stops=at_most < (0.0 if is_return or over_limit else -margin),
        advances=next_share * at_least >= -margin,
    )


def _gain(found: Difference, is_loss: bool) -> tuple[float, float, float]:
    """Value, lower and upper bound of candidate minus champion, as more is better."""
    d = found.difference
    return (-d.value, -d.upper, -d.lower) if is_loss else (d.value, d.lower, d.upper)


def _margin(arms: Arms, measure: Measure, config: CanaryConfig) -> float:
    if measure.name == RETURN:
        return config.margin if config.margin is not None else config.margin_sd * _spread(arms, measure)
    if measure.limit is not None:
        return config.breach_margin * measure.limit
    return config.late_margin if measure.is_loss else config.success_margin


def _spread(arms: Arms, measure: Measure) -> float:
    """Standard deviation of the champion's episode returns."""
    return float(np.std(measure.numerators[~arms.candidate]))


def _stopping_words(judged: Judgement) -> str:
    return (
        f"{judged.name} is {judged.candidate:.4g} against the champion's {judged.champion:.4g}: worse by at least "
        f"{-judged.at_most:.4g}, however often one looks"
    )
