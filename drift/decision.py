"""Whether to retrain tonight, and because of what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from statistics import NormalDist
from typing import Any, Literal

from drift.config import DriftConfig
from drift.findings import as_clause, drift_clause, has_drifted, missing_data
from drift.records import DriftReport

Cause = Literal[
    "no champion", "drift", "performance", "age", "forced", "suspicious", "cool-down", "not enough data", "none"
]

_FORCE = "`offline-dqn nightly --force-train`"


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
        cause: of a retrain the first reason that holds, in the order no champion, drift, performance, age, forced. Of
            none: `suspicious` where a person must look first; `cool-down` where something asks for it too soon after
            the last training; `not enough data` where nothing asks for it but drift could not be judged; `none`.
        sentence: the verdict in words and numbers.
        reasons: everything that asks for a retrain, in words and numbers, also where it has to wait; empty if nothing.
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
    night: date | None = None,
    trained: date | None = None,
    nothing_to_compare: str = "",
) -> RetrainDecision:
    """Weighs drift, performance and age; a workspace without a champion always trains, and so does a forced night.

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
        night: tonight's date; None knows of no cool-down.
        trained: night of the last training before tonight, whatever became of it; None if there was none.
        nothing_to_compare: why there is no report, and when there will be one, as a clause.
    """
    found: list[tuple[Cause, str]] = []
    if not has_champion:
        found.append(("no champion", "no trained policy has been promoted yet"))
    if report is not None and has_drifted(report):
        found.append(("drift", drift_clause(report)))
    shortfall = _shortfall(performance, config)
    if shortfall:
        found.append(("performance", shortfall))
    if broken_promise:
        found.append(("performance", broken_promise))
    if has_champion and champion_age_days is not None and champion_age_days >= config.max_age_days:
        age = f"the champion is {champion_age_days:.1f} days old, and {config.max_age_days:g} are allowed"
        found.append(("age", age))
    waits = has_champion and not forced
    if forced:
        found.append(("forced", "it was asked for"))
    reasons = tuple(text for _, text in found)
    suspicions = [suspicion.sentence.rstrip(".") for suspicion in report.suspicions] if report is not None else []
    if suspicions and waits and config.on_suspicion == "hold":
        return RetrainDecision(False, "suspicious", _held(suspicions, reasons), reasons)
    until = cool_down_until(trained, config)
    if found and waits and night is not None and until is not None and trained is not None and night < until:
        sentence = (
            f"Keep the champion: cooling down until the night of {until} after the training of {trained}, although "
            f"{'; '.join(reasons)}. {_FORCE} does not wait."
        )
        return RetrainDecision(False, "cool-down", sentence, reasons)
    if found:
        although = f"; although it looks suspicious: {'; '.join(suspicions)}" if suspicions else ""
        return RetrainDecision(True, found[0][0], f"Retrain: {'; '.join(reasons)}{although}.", reasons)
    if report is None or report.status == "not enough data":
        lacking = nothing_to_compare or "there was nothing to compare"
        detail = lacking if report is None else missing_data(report, config)
        return RetrainDecision(False, "not enough data", f"Keep the champion: {detail}.", ())
    suspicious = f"; it looks suspicious, though: {'; '.join(suspicions)}" if suspicions else ""
    return RetrainDecision(False, "none", f"Keep the champion: {as_clause(report.sentence)}{suspicious}.", ())


def cool_down_until(trained: date | None, config: DriftConfig) -> date | None:
    """First night after a training in which drift, performance and age may ask for another one.

    Counted in whole nights, a begun day as one: a night that starts a minute earlier than yesterday's does not fall
    into its cool-down of "1d".
    """
    return None if trained is None else trained + timedelta(days=math.ceil(config.cool_down_days))


def _held(suspicions: Sequence[str], reasons: Sequence[str]) -> str:
    """What a person should look at, and how to go on."""
    asked = f" Held: {'; '.join(reasons)}." if reasons else ""
    return (
        f"Wait for a person: {'; '.join(suspicions)}.{asked} Look at where these rows come from. If they are as they "
        f"should be, {_FORCE} goes on; if not, stop their source and take them out (`offline-dqn erase --episode ID`)."
    )


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


def _t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Student's t quantile by its expansion around the normal one: within .001 from 29 degrees of freedom on.

    Source: Abramowitz and Stegun 1964, 26.7.5, first two terms.
    """
    z, nu = NormalDist().inv_cdf(probability), degrees_of_freedom
    return z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
