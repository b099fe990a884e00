"""Breach and success rates: how often a condition holds under a policy, with a bound that knows rare events.

The rate of a condition is the expected number of steps of an episode on which it is true over the expected number on
which it is known, not discounted: the share of steps that a service-level objective speaks of. It is estimated with the
weights of the estimator that decides,

    rate = sum_t w_t 1[true at t] / sum_t w_t 1[known at t],

over all steps of all gate episodes, so that it lies in [0, 1] whatever the weights are. A condition that is null at an
episode's last step for want of a next observation is not known there. Null anywhere else, such as for telemetry that
failed together with the service, it counts as breached, or as no success: what fails to be measured must not make a
policy look better, and no bound on a share of the steps holds for steps that were left out by what happened on them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from datasets.step_rules import Judged
from reports.estimators import Floats, Ints, RatioSum, scaled_weights
from reports.intervals import bootstrap_replicates, cluster_codes, lower_bound, percentile_interval, upper_bound
from reports.outcomes import Outcomes
from reports.records import BreachRate, Rate, Safety, SuccessRate

Masks = NDArray[np.bool_]


def assess_safety(
    outcomes: Outcomes,
    log_weights: Mapping[str, Floats],
    offsets: Ints,
    clusters: NDArray[np.generic],
    *,
    refusals: Mapping[str, str | None],
    alpha: float,
    level: float,
    n_replicates: int,
    rng: np.random.Generator,
) -> Safety:
    """Breach rates with their upper bounds, and success rates.

    Args:
        outcomes: conditions on T steps; steps at which one is unanswered count as breached, and as no success.
        log_weights: (T,) by role, those of the deciding estimator, "candidate" among them; a baseline that is missing
            here wrote the log.
        offsets: (N + 1,) of the episodes.
        clusters: (N,).
        refusals: why weighted estimates of a role are not trusted, by role; None or absent where they are.
        alpha: one-sided, of all constraints together.
        level: of the intervals shown.
        n_replicates: at least; raised to 100 per tail.
        rng: draws the bootstrap.
    """
    n_constraints = len(outcomes.breaches)
    each = alpha / max(1, n_constraints)
    n_replicates = max(n_replicates, int(np.ceil(100 / each)))
    roles = {"log": np.zeros(offsets[-1])} | {r: log_weights[r] for r in ("candidate", "baseline") if r in log_weights}
    cause = None if "candidate" in roles else "the behavior probabilities carry no weights"
    if len(np.unique(clusters)) < 2:
        cause = cause or "fewer than two clusters"
    causes = {role: cause or refusals.get(role) for role in ("log", "candidate", "baseline")} | {"log": None}
    logged = {f"breach/{name}": judged for name, judged in outcomes.breaches.items()}
    conditions = {key: judged.charged(as_true=True) for key, judged in logged.items()}
    if outcomes.success is not None:
        logged["success"] = outcomes.success
        conditions["success"] = outcomes.success.charged(as_true=False)
    sums = {
        f"{key}/{role}": rate_of(judged, weights, offsets)
        for key, judged in conditions.items()
        for role, weights in roles.items()
    }
    replicates: dict[str, Floats] = {}
    if len(np.unique(clusters)) > 1 and sums:
        replicates = bootstrap_replicates(sums, clusters, n_replicates=n_replicates, rng=rng)
    rates = {
        key: tuple(
            _rate(role, sums.get(f"{key}/{role}"), replicates.get(f"{key}/{role}"), causes[role], logged[key], level)
            for role in (*roles, *(() if "candidate" in roles else ("candidate",)))
        )
        for key in conditions
    }
    breaches = []
    for name, judged in outcomes.breaches.items():
        key = f"breach/{name}/candidate"
        found = next(rate for rate in rates[f"breach/{name}"] if rate.policy == "candidate")
        weights = scaled_weights(roles.get("candidate", roles["log"])) * conditions[f"breach/{name}"].known
        breaches.append(
            BreachRate(
                constraint=name,
                condition=outcomes.conditions[name],
                limit=outcomes.limits[name],
                rates=rates[f"breach/{name}"],
                upper_bound=None
                if found.refused
                else rate_upper_bound(sums[key], replicates[key], weights, clusters, each),
                alpha=each,
                n_breaches=int(judged.true.sum()),
                n_judged=int(judged.known.sum()),
                n_unjudged=int((~judged.known).sum()),
                n_charged=int(judged.unanswered.sum()),
                n_effective=0.0 if found.refused else _effective(_totals(sums[key], clusters)[1]),
                refused=found.refused,
            )
        )
    success = None
    if outcomes.success is not None:
        success = _success(outcomes, rates["success"], sums, replicates, alpha)
    return Safety(tuple(breaches), outcomes.forbidden, success, outcomes.n_safe_only)


def rate_of(judged: Judged, log_weights: Floats, offsets: Ints) -> RatioSum:
    """The rate of a condition under (T,) step weights, as one ratio of sums over N episodes."""
    weights = scaled_weights(log_weights)
    hits, steps = (np.add.reduceat(weights * mask, offsets[:-1]) for mask in (judged.true, judged.known))
    return RatioSum(hits[:, None], steps[:, None])


def rate_upper_bound(
    rate: RatioSum, replicates: Floats, weights: Floats, clusters: NDArray[np.generic], alpha: float
) -> float | None:
    """One-sided upper confidence bound of a rate at 1 - alpha, in (0, 1]; None where a replicate is undefined.

    The largest of three, since each fails where another holds: the bootstrap's quantile (too low where few hits were
    seen); the exact binomial bound on as many independent steps as the variance between clusters says; and, as if not
    a single hit had been seen, 1 - alpha^(1/n) over n effective clusters, about ln(1/alpha) / n (3 / n at 95 %).

    Args:
        rate: from `rate_of`.
        replicates: (R,) of it.
        weights: (T,) step weights, 0 where the condition is null.
        clusters: (N,) of the episodes.
        alpha: one-sided.

    Source: Korn and Graubard 1998, Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data (the binomial bound at an effective sample size); Hanley and Lippman-Hand 1983, If
    nothing goes wrong, is everything all right? (the rule of three).
    """
    drawn = upper_bound(replicates, alpha)
    if drawn is None:
        return None
    hits, steps = _totals(rate, clusters)
    n_clusters, total = len(steps), steps.sum()
    value = float(hits.sum() / total)
    nothing_seen = 1 - alpha ** (1 / _effective(steps))
    variance = n_clusters / (n_clusters - 1) * float(((hits - value * steps) ** 2).sum()) / total**2
    n = min(value * (1 - value) / variance, _effective(weights)) if variance > 0 else _effective(steps)
    binomial = float(stats.beta.ppf(1 - alpha, value * n + 1, n * (1 - value))) if value < 1 else 1.0
    return float(min(1.0, max(drawn, binomial, nothing_seen)))


def _totals(rate: RatioSum, clusters: NDArray[np.generic]) -> tuple[Floats, Floats]:
    """(C,) weighted hits and steps of each cluster."""
    codes = cluster_codes(clusters)
    hits, steps = (np.bincount(codes, weights=table[:, 0]) for table in (rate.numerators, rate.denominators))
    return hits.astype(np.float64), steps.astype(np.float64)


def _effective(weights: Floats) -> float:
    """(sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _rate(
    role: str,
    estimator: RatioSum | None,
    replicates: Floats | None,
    cause: str | None,
    judged: Judged,
    level: float,
) -> Rate:
    if not judged.known.any():
        cause = "the condition is null on every step, such as for want of next observations"
    if cause is None and (estimator is None or not np.isfinite(estimator.value)):
        cause = "no judged step has weight"
    if cause is not None or estimator is None:
        return Rate(role, None, None, cause)
    interval = None if replicates is None else percentile_interval(replicates, level)
    if interval is None and role != "log":
        return Rate(role, None, None, "there is no interval: a replicate holds no judged step of any weight")
    return Rate(role, estimator.value, interval)


def _success(
    outcomes: Outcomes,
    rates: tuple[Rate, ...],
    sums: Mapping[str, RatioSum],
    replicates: Mapping[str, Floats],
    alpha: float,
) -> SuccessRate:
    assert outcomes.success is not None
    by_role = {rate.policy: rate for rate in rates}
    against = "baseline" if "baseline" in by_role else "log"
    cause = by_role["candidate"].refused or by_role[against].refused
    ours, theirs = "success/candidate", f"success/{against}"
    return SuccessRate(
        condition=outcomes.success_condition,
        rates=rates,
        difference=None if cause else sums[ours].value - sums[theirs].value,
        lower_bound=None if cause else lower_bound(replicates[ours] - replicates[theirs], alpha),
        alpha=alpha,
        n_judged=int(outcomes.success.known.sum()),
        n_unjudged=int((~outcomes.success.known).sum()),
        n_charged=int(outcomes.success.unanswered.sum()),
        refused=cause,
    )
