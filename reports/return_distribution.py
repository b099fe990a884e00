"""The distribution of the episode return: what share of episodes ends below a return, its quantiles, its worst tail.

A mean hides what a few bad episodes cost. Products of ratios weigh whole episodes, so where they have no overlap, as on
long horizons, nothing is said of a candidate; marginalized weights know of single steps and not of their sum.

Returns are sorted into cells, each standing for the mean of the logged returns in it; with few distinct returns every
one has its own cell and nothing is rounded. What lies below the smallest logged return is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from reports.draws import counts_in_chunks
from reports.estimators import (
    Floats,
    Ints,
    discounted,
    episode_log_weights,
    on_policy_returns,
    scaled_weights,
    step_in_episode,
)
from reports.intervals import cluster_codes, percentile_interval
from reports.records import LevelValue, ReturnDistribution
from reports.trial import Trial

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TAILS = (0.05, 0.25)
"""Shares of the worst episodes whose mean return is shown."""
_MOST_CELLS = 100
_FEWEST_CELLS = 20
_MOST_EVALUATIONS = 300_000_000
"""Of the model, in the doubly robust form; longer logs have fewer cells."""


@dataclass(frozen=True)
class Cells:
    """(K,) cells of ascending returns.

    Attributes:
        values: (K,) mean logged return of each.
        upper: (K,) largest logged return of each.
        of_episode: (N,) the cell of each episode.
    """

    values: Floats
    upper: Floats
    of_episode: Ints


def return_distributions(
    trial: Trial, log_weights: Floats | None, refused: str | None, *, level: float, rng: np.random.Generator
) -> tuple[ReturnDistribution, ...]:
    """Of the log, and of the candidate by weights and doubly robust, or the cause why there is none.

    Args:
        trial: episodes, and the candidate with a model not fitted on the episode it is used on.
        log_weights: (T,) cumulative products of the candidate's ratios; None where there are none.
        refused: why the candidate's products of ratios are not to be trusted; None where they are.
        level: of the intervals, two-sided.
        rng: draws the bootstrap by cluster.
    """
    codes = cluster_codes(trial.clusters)
    returns = on_policy_returns(trial.rewards, trial.offsets, trial.gamma)
    weights = None
    if log_weights is not None and refused is None:
        weights = scaled_weights(episode_log_weights(log_weights, trial.offsets))
    affordable = _MOST_EVALUATIONS // (len(trial.actions) * (len(trial.names) + 1))
    cells = cells_of(returns, weights, int(np.clip(affordable, _FEWEST_CELLS, _MOST_CELLS)))
    if codes.max() < 1:
        cause = "there is no interval: fewer than two clusters"
        return (_refused("log", "on_policy", cause), *_candidate_refused(refused or cause))
    tables = {"on_policy": weighted_shares(cells, np.ones(len(returns)), codes)}
    if weights is not None and log_weights is not None:
        tables["wis"] = weighted_shares(cells, weights, codes)
        tables["dr"] = doubly_robust_shares(trial, log_weights, cells.upper, codes)
    n_replicates = max(1_000, int(np.ceil(20 / (1 - level))))
    drawn: dict[str, list[Floats]] = {name: [] for name in tables}
    for counts in counts_in_chunks(int(codes.max()) + 1, n_replicates, rng):
        for name, (numerators, denominators) in tables.items():
            drawn[name].append(_as_distribution(counts @ numerators, counts @ denominators))
    found = []
    for name, (numerators, denominators) in tables.items():
        shares = _as_distribution(numerators.sum(axis=0)[None, :], np.array([denominators.sum()]))[0]
        policy = "log" if name == "on_policy" else "candidate"
        found.append(_record(policy, name, cells, shares, np.concatenate(drawn[name]), level))
    return tuple(found) if weights is not None else (*found, *_candidate_refused(refused or "there are no weights"))


def cells_of(returns: Floats, weights: Floats | None, n_cells: int) -> Cells:
    """At most about `n_cells` cells with bounds at quantiles of (N,) returns, half of them weighted by (N,) weights."""
    upper = np.unique(returns)
    if len(upper) > n_cells:
        order = np.argsort(returns, kind="stable")
        chosen = [upper[-1:]]
        kinds = [np.ones(len(returns))] if weights is None else [np.ones(len(returns)), weights]
        for kind in kinds:
            reached = np.cumsum(kind[order]) / kind.sum()
            wanted = np.linspace(0.0, 1.0, n_cells // len(kinds) + 1)[1:]
            places = np.minimum(np.searchsorted(reached, wanted - 1e-12), len(returns) - 1)
            chosen.append(returns[order][places])
        upper = np.unique(np.concatenate(chosen))
    of_episode = np.searchsorted(upper, returns)
    values = np.bincount(of_episode, weights=returns) / np.bincount(of_episode)
    return Cells(values, upper, np.asarray(of_episode, dtype=np.int64))


def weighted_shares(cells: Cells, weights: Floats, codes: Ints) -> tuple[Floats, Floats]:
    """(C, K) weight of each cluster's episodes at or below each cell, and (C,) their weight in all.

    The share of episodes is the ratio of the two sums: a distribution by construction, of (N,) weights of any scale.

    Source: Chandak et al. 2021, Universal off-policy evaluation (arXiv:2104.12820), eq. 5, normalized; Huang et al.
    2021, Off-policy risk assessment in contextual bandits (arXiv:2104.08977), section 4.
    """
    n_clusters, n_cells = int(codes.max()) + 1, len(cells.upper)
    places = codes * n_cells + cells.of_episode
    table = np.bincount(places, weights=weights, minlength=n_clusters * n_cells).reshape(n_clusters, n_cells)
    totals = np.bincount(codes, weights=weights)
    return np.asarray(np.cumsum(table, axis=1), dtype=np.float64), np.asarray(totals, dtype=np.float64)


def doubly_robust_shares(trial: Trial, log_weights: Floats, upper: Floats, codes: Ints) -> tuple[Floats, Floats]:
    """(C, K) sums over each cluster's episodes of the doubly robust share below each return, and (C,) their number.

    The model says of a step: the episode's return is what was earned before, plus Q, plus logistic noise as wide as the
    log's residuals at about that step. `doubly_robust` with the indicator of the return as the only reward then
    corrects it; the sums may leave [0, 1] and are brought back later.

    Args:
        trial: with the candidate's model.
        log_weights: (T,) cumulative.
        upper: (K,) returns.
        codes: (N,) cluster of each episode.

    Source: Huang, Leqi, Lipton, Azizzadenesheli 2022, Off-policy risk assessment in Markov decision processes
    (arXiv:2209.10444), eq. 6. Differs from it: the model of the return is a location and scale family around Q.
    """
    q, offsets = trial.candidate.q, trial.offsets
    assert q is not None
    returns = on_policy_returns(trial.rewards, offsets, trial.gamma)
    steps = step_in_episode(offsets)
    lengths = np.diff(offsets)
    gains = discounted(trial.rewards, offsets, trial.gamma)
    before = np.cumsum(gains) - gains
    before -= np.repeat(before[offsets[:-1]], lengths)
    expected = before[:, None] + trial.gamma ** steps[:, None] * q  # (T, A) of the whole episode's return
    taken = expected[np.arange(len(steps)), trial.actions]
    scale = _scales(np.repeat(returns, lengths) - taken, steps, np.repeat(codes, lengths))
    weights, last = np.exp(log_weights), offsets[1:] - 1
    numerators = np.empty((int(codes.max()) + 1, len(upper)))
    for k, threshold in enumerate(upper):
        states = (trial.candidate.probs * expit((threshold - expected) / scale[:, None])).sum(axis=1)
        following = np.append(states[1:], 0.0)
        following[last] = returns <= threshold
        corrections = weights * (following - expit((threshold - taken) / scale))
        terms = states[offsets[:-1]] + np.add.reduceat(corrections, offsets[:-1])
        numerators[:, k] = np.bincount(codes, weights=terms)
    return numerators, np.bincount(codes).astype(np.float64)


def quantile(values: Floats, shares: Floats, u: float) -> Floats:
    """(R,) the smallest of (K,) ascending values at or below which at least u of the episodes lie, by (R, K) shares."""
    return np.asarray(values[np.minimum((shares < u - 1e-12).sum(axis=1), len(values) - 1)])


def tail_mean(values: Floats, shares: Floats, u: float) -> Floats:
    """(R,) mean of the worst u of the episodes (CVaR of the return), u in (0, 1]; values (K,) ascending, shares (R, K).

    Source: Rockafellar and Uryasev 2002, Conditional value-at-risk for general loss distributions, for returns: of the
    value at the quantile only the part that fills up u counts.
    """
    below = np.concatenate([np.zeros((len(shares), 1)), shares[:, :-1]], axis=1)
    parts = np.minimum(shares, u) - np.minimum(below, u)
    return np.asarray(parts @ values / u)


def _scales(residuals: Floats, steps: Ints, codes: Ints) -> Floats:
    """(T,) scale of logistic noise with the root mean square of the residuals of other clusters at about that step."""
    buckets = np.floor(np.log2(steps + 1)).astype(np.int64)
    half = codes % 2
    squares = np.stack([np.bincount(buckets[half == h], residuals[half == h] ** 2, buckets.max() + 1) for h in (0, 1)])
    counts = np.stack([np.bincount(buckets[half == h], minlength=buckets.max() + 1) for h in (0, 1)])
    everywhere = float(np.sqrt((residuals**2).mean()))
    spread = np.sqrt(squares / np.maximum(counts, 1))
    spread = np.where(counts > 0, spread, everywhere)[1 - half, buckets]
    return np.asarray(np.maximum(spread, 1e-9 + 1e-6 * everywhere) * np.sqrt(3) / np.pi)


def _as_distribution(numerators: Floats, denominators: Floats) -> Floats:
    """(R, K) shares out of (R, K) and (R,) sums: within [0, 1], ascending, 1 at the end.

    Sorting a curve that ought to ascend never takes it further from the truth.

    Source: Chernozhukov, Fernandez-Val, Galichon 2010, Quantile and probability curves without crossing.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.sort(np.clip(numerators / denominators[:, None], 0.0, 1.0), axis=1)
    shares[:, -1] = np.where(np.isnan(shares[:, -1]), np.nan, 1.0)
    return np.asarray(shares)


def _record(
    policy: str, estimator: str, cells: Cells, shares: Floats, replicates: Floats, level: float
) -> ReturnDistribution:
    if not np.all(np.isfinite(shares)) or not np.all(np.isfinite(replicates)):
        return _refused(policy, estimator, "no episode has any weight, in the log or in a replicate of it")

    def at(levels: Sequence[float], measure: Callable[[Floats, Floats, float], Floats]) -> tuple[LevelValue, ...]:
        found = []
        for u in levels:
            interval = percentile_interval(measure(cells.values, replicates, u), level)
            assert interval is not None  # every replicate is finite
            found.append(LevelValue(u, float(measure(cells.values, shares[None, :], u)[0]), interval))
        return tuple(found)

    return ReturnDistribution(
        policy=policy,
        estimator=estimator,
        returns=tuple(cells.upper.tolist()),
        shares=tuple(shares.tolist()),
        quantiles=at(QUANTILES, quantile),
        tail_means=at(TAILS, tail_mean),
    )


def _candidate_refused(cause: str) -> tuple[ReturnDistribution, ...]:
    return tuple(_refused("candidate", name, cause) for name in ("wis", "dr"))


def _refused(policy: str, estimator: str, cause: str) -> ReturnDistribution:
    return ReturnDistribution(policy, estimator, (), (), (), (), cause)
