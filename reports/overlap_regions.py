"""Where in the features the log shows too little of what the candidate does, and what log would repair it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from datasets.propensities import clustered_error, log_scale_interval
from reports.estimators import Floats, Ints
from reports.feature_tree import cut_regions
from reports.intervals import STUDENT_T, cluster_codes
from reports.records import Interval, OverlapMap, OverlapRegion, WeightHistogram

_MOST_REGIONS = 8
_SMALLEST_SHARE = 0.02
_FEWEST_STEPS = 50
_LARGEST_DEPARTURE = 3.0
"""Ratios further from 1 than this count alike when regions are cut: a few rare rows must not cut them all."""
_LEVEL = 0.99
_N_BINS = 24


def map_overlap(
    contract: Contract,
    observations: Observations,
    *,
    probs: Floats,
    actions: Ints,
    behavior_probs: Floats,
    clusters: NDArray[np.generic],
    offsets: Ints,
    n_nights: int,
    smallest_sample_size: float,
    products: bool,
) -> OverlapMap:
    """Regions of the features, with how much of the candidate the log shows in each.

    Within any region the ratio pi(a) / p of the logged action has mean 1 under the log, less the probability that the
    candidate gives to actions which the log never takes there. What it lacks from 1 is therefore mass without support.
    Its mean square is how many logged steps one step of the candidate costs. The regions are those of a small tree on
    how far the ratio lies from 1.

    A region is flagged where its mean ratio's interval lies below 1, or where fewer effective steps are left than the
    gate wants effective episodes, or where its cost must fall for the gate to reach that many.

    Args:
        contract: the decision problem.
        observations: T rows, those of the gate steps.
        probs: (T, A) of the candidate.
        actions: (T,).
        behavior_probs: (T,) in (0, 1].
        clusters: (N,) of the episodes.
        offsets: (N + 1,).
        n_nights: over which the episodes came.
        smallest_sample_size: effective episodes that the gate asks for.
        products: whether ratios multiply over an episode in the deciding estimator, or count by their step alone.
    """
    n_steps, n_episodes = len(actions), len(offsets) - 1
    ratios = probs[np.arange(n_steps), actions] / behavior_probs
    cut = cut_regions(
        contract,
        observations,
        np.minimum(np.abs(ratios - 1), _LARGEST_DEPARTURE),
        most=_MOST_REGIONS,
        smallest=max(_FEWEST_STEPS, int(_SMALLEST_SHARE * n_steps)),
    )
    episode = np.repeat(np.arange(n_episodes), np.diff(offsets))
    step_clusters = cluster_codes(clusters)[episode]
    names = contract.actions.names
    level = 1 - (1 - _LEVEL) / len(cut.words)
    regions = [
        _region(where, cut.region == r, ratios, probs, actions, episode, step_clusters, names, level)
        for r, where in enumerate(cut.words)
    ]
    visits = np.bincount(cut.region, minlength=len(cut.words)) / (n_episodes if products else n_steps)
    allowed = _allowed_costs([r.cost for r in regions], visits, math.log(max(n_episodes / smallest_sample_size, 1.0)))
    judged = [
        _judged(region, wanted, smallest_sample_size, n_episodes, n_nights)
        for region, wanted in zip(regions, allowed, strict=True)
    ]
    judged.sort(
        key=lambda region: (region.flagged is None, -region.step_share * math.log(max(region.cost or 1.0, 1.0)))
    )
    return OverlapMap(regions=tuple(judged), histogram=_histogram(ratios, episode, n_episodes, products=products))


def needed_exploration(taken: float, cost: float) -> float:
    """The smallest share e in which the log must take an action that the candidate takes with probability `taken`.

    With all other actions scaled alike the mean square of the ratio is taken^2 / e + (1 - taken)^2 / (1 - e); the
    smaller root of its meeting `cost`. At cost 1 the log must act like the candidate.

    Raises:
        ValueError: if taken is outside [0, 1] or cost is below 1.
    """
    if not (0 <= taken <= 1 and cost >= 1):
        raise ValueError(f"taken is {taken} and cost {cost}: wanted a probability, and a cost of at least 1.")
    middle = 2 * taken + cost - 1
    return (middle - math.sqrt(max(middle**2 - 4 * cost * taken**2, 0.0))) / (2 * cost)


def _region(
    where: str,
    inside: NDArray[np.bool_],
    ratios: Floats,
    probs: Floats,
    actions: Ints,
    episode: Ints,
    step_clusters: Ints,
    names: Sequence[str],
    level: float,
) -> OverlapRegion:
    found, n = ratios[inside], int(inside.sum())
    largest = float(found.max())
    scaled = found / largest if largest > 0 else found  # squares of the ratios themselves may overflow
    effective = float(scaled.sum() ** 2 / (scaled**2).sum()) if largest > 0 else 0.0
    wanted = probs[inside].mean(axis=0)
    logged = np.bincount(actions[inside], minlength=len(names)) / n
    # More often than the log by more than chance would show.
    more = wanted - logged > 3 * np.sqrt(np.maximum(logged * (1 - logged), 1 / n) / n)
    lacking = int(np.argmax(np.where(more, wanted**2 / np.maximum(logged, 1 / (n + 1)), 0.0)))
    return OverlapRegion(
        where=where,
        n_steps=n,
        step_share=n / len(ratios),
        n_episodes=len(np.unique(episode[inside])),
        mean_ratio=float(found.mean()) if math.isfinite(float(found.mean())) else None,
        mean_ratio_interval=_mean_interval(found, cluster_codes(step_clusters[inside]), level),
        largest_ratio=largest if math.isfinite(largest) else None,
        effective_steps=effective,
        cost=n / effective if effective > 0 else None,
        action=names[lacking] if more[lacking] else None,
        candidate_share=float(wanted[lacking]),
        log_share=float(logged[lacking]),
    )


def _mean_interval(ratios: Floats, clusters: Ints, level: float) -> Interval | None:
    """Student t on the log scale by cluster, as ratios are skewed; None for one cluster, or without any ratio."""
    n_clusters, mean = int(clusters.max()) + 1, float(ratios.mean())
    if n_clusters < 2 or mean <= 0:
        return None
    residuals = np.bincount(clusters, weights=ratios - mean)
    with np.errstate(over="ignore"):
        error = clustered_error(float((residuals**2).sum()), n_clusters, len(ratios))
    if not math.isfinite(error):
        return None
    return Interval(*log_scale_interval(mean, error, n_clusters, level), level, STUDENT_T)


def _allowed_costs(costs: Sequence[float | None], visits: Floats, budget: float) -> list[float | None]:
    """For each region the cost it may have for all together to cost exp(budget) episodes; None where it may stay.

    Costs multiply over visits: log cost = sum of visits x ln cost. The costliest per visit are brought down to one
    common cost, as the water of a dam: cheaper regions are left alone.
    """
    logs = np.array([math.log(cost) if cost else 30.0 for cost in costs])
    order = np.argsort(-logs, kind="stable")
    if float((visits * logs).sum()) <= budget:
        return [None] * len(costs)
    found: list[float | None] = [None] * len(costs)
    for k in range(1, len(order) + 1):
        lowered, kept = order[:k], order[k:]
        common = (budget - float((visits[kept] * logs[kept]).sum())) / float(visits[lowered].sum())
        if k == len(order) or common >= logs[order[k]]:
            for i in lowered.tolist():
                found[i] = math.exp(max(common, 0.0))
            break
    return found


def _judged(
    region: OverlapRegion, allowed: float | None, smallest: float, n_episodes: int, n_nights: int
) -> OverlapRegion:
    """The region with why it is flagged and what would repair it, in words."""
    interval, causes = region.mean_ratio_interval, []
    missing = region.mean_ratio == 0 or (interval is not None and interval.high < 1)
    if missing:
        lacks = 1 - (region.mean_ratio or 0.0)
        causes.append(f"the log never takes about {lacks:.0%} of what the candidate does there")
    if region.effective_steps < smallest:
        causes.append(f"its {region.n_steps:,} steps are worth {region.effective_steps:.3g} of the candidate's")
    elif allowed is not None and region.cost is not None:
        causes.append(
            f"one step of the candidate there costs {region.cost:.3g} logged ones, and the gate affords {allowed:.3g}"
        )
    if not causes:
        return region
    return replace(
        region, flagged="; ".join(causes), repair=_repair(region, allowed, missing, smallest, n_episodes, n_nights)
    )


def _repair(
    region: OverlapRegion, allowed: float | None, missing: bool, smallest: float, n_episodes: int, n_nights: int
) -> str:
    said = []
    if region.action is not None:
        affordable = allowed if allowed is not None else max(region.n_steps / smallest, 1.0)
        share = max(needed_exploration(region.candidate_share, affordable), 0.0)
        if share > region.log_share:
            said.append(
                f"let the acting policy take '{region.action}' in at least {_percent(share)} of these steps (it took "
                f"it in {_percent(region.log_share)}, the candidate would in {_percent(region.candidate_share)})"
            )
        else:
            said.append(
                f"let the acting policy explore more evenly there: it took '{region.action}' in "
                f"{_percent(region.log_share)} of these steps, but hardly where the candidate would"
            )
    if missing:
        said.append("more nights like these show none of it")
    elif region.effective_steps > 0 and region.effective_steps < smallest:
        more = math.ceil(n_episodes * (smallest / region.effective_steps - 1))
        nights = math.ceil(more * n_nights / n_episodes)
        said.append(
            f"or log about {more:,} more episodes, {nights:,} {'night' if nights == 1 else 'nights'} like these"
        )
    said.append("or let the candidate stay closer to the log there")
    return ", ".join(said)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.2g}" if share < 1e-4 else f"{100 * share:.2g}%"


def _histogram(ratios: Floats, episode: Ints, n_episodes: int, *, products: bool) -> WeightHistogram | None:
    """How episodes (or steps), and their weight, spread over the size of the weight."""
    with np.errstate(divide="ignore"):
        logs = np.log10(ratios)
    if products:
        logs = np.bincount(episode, weights=np.where(np.isfinite(logs), logs, 0.0), minlength=n_episodes)
        logs[np.bincount(episode, weights=ratios == 0, minlength=n_episodes) > 0] = -np.inf
    known = logs[np.isfinite(logs)]
    if not len(known):
        return None
    low, high = math.floor(float(known.min())), math.ceil(float(known.max()))
    edges = np.linspace(low, max(high, low + 1), _N_BINS + 1)
    weights = 10 ** (known - known.max())
    return WeightHistogram(
        unit="episode" if products else "step",
        log10_edges=tuple(edges.tolist()),
        shares=tuple((np.histogram(known, edges)[0] / len(logs)).tolist()),
        weight_shares=tuple((np.histogram(known, edges, weights=weights)[0] / weights.sum()).tolist()),
        zero_share=float(1 - len(known) / len(logs)),
    )
