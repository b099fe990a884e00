"""Whether to retrain tonight, and because of what."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

from drift.config import DriftConfig
from drift.records import DriftReport

Cause = Literal["no champion", "drift", "performance", "age", "forced", "not enough data", "none"]


@dataclass(frozen=True)
class LivePerformance:
    """What the champion's evaluation promised, and what its live episodes earned. All in units of the return.

    Attributes:
        promised_low: lower confidence bound of the policy value, from the champion's evaluation.
        live_mean: mean return of the live episodes that the champion acted in, discounted as the promise was.
        live_standard_error: of that mean, over clusters.
        n_episodes: live episodes behind it (their clusters, where episodes are dependent).
    """

    promised_low: float
    live_mean: float
    live_standard_error: float
    n_episodes: int

    def live_upper(self, false_alarm_rate: float) -> float:
        """Upper confidence bound of the live value, exceeded at the given rate: mean + t quantile * standard error."""
        return self.live_mean + _t_quantile(1.0 - false_alarm_rate, self.n_episodes - 1) * self.live_standard_error


@dataclass(frozen=True)
class RetrainDecision:
    """The verdict of a night: a normal result, whichever way it falls.

    Attributes:
        retrain: whether to.
        cause: the first of `reasons` that holds, in the order no champion, drift, performance, age, forced; `not
            enough data` where nothing asks for it but drift could not be judged; `none` otherwise.
        sentence: the verdict in words and numbers.
        reasons: every reason to retrain, in words and numbers; empty if none.
    """

    retrain: bool
    cause: Cause
    sentence: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def decide_retrain(
    *,
    has_champion: bool,
    report: DriftReport | None,
    champion_age_days: float | None,
    config: DriftConfig,
    forced: bool = False,
    performance: LivePerformance | None = None,
    broken_promise: str = "",
) -> RetrainDecision:
    """Weighs drift, performance and age; a workspace without a champion always trains.

    Drift stands before age and force, because what follows differs: after a change of the world only nights after it
    may judge the candidate. The drift and the performance check each hold `false_alarm_rate` for themselves.

    Args:
        has_champion: whether a trained release acts (the rules of a fresh workspace are none).
        report: tonight's comparison, None where there was nothing to compare.
        champion_age_days: since the champion was trained; None without one.
        config: the `[drift]` table.
        forced: a person asked for it.
        performance: promise and live return of the champion, None where no live episode is its own. Fewer than
            `config.min_live_episodes` are not judged.
        broken_promise: how all nights since the champion was judged, read together and at a level of their own, break
            its promise; "" if they do not. A decline too small for any one night to show adds up there.
    """
    found: list[tuple[Cause, str]] = []
    if not has_champion:
        found.append(("no champion", "no trained policy has been promoted yet"))
    if report is not None and report.status == "drifted":
        found.append(("drift", _without_stop(report.sentence)))
    shortfall = _shortfall(performance, config)
    if shortfall:
        found.append(("performance", shortfall))
    if broken_promise:
        found.append(("performance", broken_promise))
    if has_champion and champion_age_days is not None and champion_age_days >= config.max_age_days:
        age = f"the champion is {champion_age_days:.1f} days old, and {config.max_age_days:g} are allowed"
        found.append(("age", age))
    if forced:
        found.append(("forced", "it was asked for"))
    if found:
        reasons = tuple(text for _, text in found)
        return RetrainDecision(True, found[0][0], f"Retrain: {'; '.join(reasons)}.", reasons)
    if report is None or report.status == "not enough data":
        detail = "there was nothing to compare" if report is None else _without_stop(report.sentence)
        return RetrainDecision(False, "not enough data", f"Keep the champion: {detail}.", ())
    return RetrainDecision(False, "none", f"Keep the champion: {_without_stop(report.sentence)}.", ())


def _shortfall(performance: LivePerformance | None, config: DriftConfig) -> str:
    """How the live return breaks the promise; empty if it does not, or if too few episodes tell."""
    if performance is None or performance.n_episodes < config.min_live_episodes:
        return ""
    upper = performance.live_upper(config.false_alarm_rate)
    if upper >= performance.promised_low:
        return ""
    return (
        f"over {performance.n_episodes} live episodes the champion earned {performance.live_mean:.4g} on average, at "
        f"most {upper:.4g} at a false-alarm rate of {config.false_alarm_rate:.2g}, where its evaluation promised at "
        f"least {performance.promised_low:.4g}"
    )


def _without_stop(sentence: str) -> str:
    """The sentence as a clause: lower-case at its start, no full stop."""
    return (sentence[:1].lower() + sentence[1:]).removesuffix(".")


def _t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Student's t quantile by its expansion around the normal one: within .001 from 29 degrees of freedom on.

    Source: Abramowitz and Stegun 1964, 26.7.5, first two terms.
    """
    z, nu = NormalDist().inv_cdf(probability), degrees_of_freedom
    return z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
