"""Estimators with their bootstrap, and divergences, against the same written straight down with numpy and pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from drift.binning import histogram, numeric_bins
from drift.divergence import kl_divergence, population_stability_index
from reports import estimators
from reports.estimators import RatioSum
from reports.intervals import bootstrap_replicates
from tests.benchmarks.rows import BenchRow, bench_row, seconds, side_by_side

Floats = NDArray[np.float64]
GAMMA, FLOOR = 0.99, 1e-4


def estimator_rows(n_episodes: int = 20_000, horizon: int = 50, n_replicates: int = 2_000) -> list[BenchRow]:
    """All estimators with one shared bootstrap, from the steps to the replicates."""
    log = _Log(n_episodes, horizon)
    size = f"{n_episodes:,} x {horizon} steps, {n_replicates:,} replicates"
    written = f"straightforward resampling of episodes, numpy {np.__version__}"
    plain = ("direct", "is", "wis", "pdis", "dr")
    every = (*plain, "wpdis", "wdr")
    n_peer = max(1, n_replicates // 40)
    one_by_one = n_replicates / n_peer  # a replicate of the peer gathers whole tables: fewer, and scaled up
    took_plain = side_by_side(
        lambda: seconds(lambda: log.bootstrap(plain, n_replicates)),
        lambda: seconds(lambda: _resample(log.tables(plain), n_replicates)),
        rounds=3,
    )
    took_every = side_by_side(
        lambda: seconds(lambda: log.bootstrap(every, n_replicates)),
        lambda: seconds(lambda: _resample(log.tables(every), n_peer)) * one_by_one,
        rounds=1,
    )
    return [
        bench_row(f"estimators {', '.join(plain)} on {size}", *took_plain, written, "s"),
        bench_row(
            f"estimators {', '.join(every)} on {size}", *took_every,
            f"{written}; {n_peer} replicates, scaled to {n_replicates:,}", "s",
        ),
    ]  # fmt: skip


class _Log:
    """Episodes of equal length under a policy near the logging one; values do not matter, sizes do."""

    def __init__(self, n_episodes: int, horizon: int) -> None:
        rng = np.random.default_rng(0)
        n = n_episodes * horizon
        self.offsets = np.arange(n_episodes + 1) * horizon
        self.rewards, self.q_taken, self.values = rng.standard_normal((3, n))
        self.behavior = rng.uniform(0.4, 0.6, n)
        self.evaluation = self.behavior * rng.uniform(0.95, 1.05, n)

    def tables(self, names: tuple[str, ...]) -> dict[str, RatioSum]:
        """The estimators by name."""
        weights = estimators.cumulative_log_weights(self.evaluation, self.behavior, self.offsets)
        returns = estimators.on_policy_returns(self.rewards, self.offsets, GAMMA)
        whole = estimators.episode_log_weights(weights, self.offsets)
        model = self.rewards, self.q_taken, self.values
        made = {
            "direct": lambda: estimators.mean_of(self.values[self.offsets[:-1]]),
            "is": lambda: estimators.importance_sampling(returns, whole),
            "wis": lambda: estimators.weighted_importance_sampling(returns, whole),
            "pdis": lambda: estimators.per_decision(self.rewards, weights, self.offsets, GAMMA),
            "dr": lambda: estimators.doubly_robust(*model, weights, self.offsets, GAMMA),
            "wpdis": lambda: estimators.weighted_per_decision(self.rewards, weights, self.offsets, GAMMA),
            "wdr": lambda: estimators.weighted_doubly_robust(*model, weights, self.offsets, GAMMA),
        }
        return {name: made[name]() for name in names}

    def bootstrap(self, names: tuple[str, ...], n_replicates: int) -> dict[str, Floats]:
        """Estimators and replicates, by the project."""
        clusters = np.arange(len(self.offsets) - 1)
        rng = np.random.default_rng(0)
        return bootstrap_replicates(self.tables(names), clusters, n_replicates=n_replicates, rng=rng)


def _resample(tables: dict[str, RatioSum], n_replicates: int) -> dict[str, Floats]:
    """A loop over replicates that picks episodes and computes every estimator on them again."""
    rng = np.random.default_rng(0)
    n = len(next(iter(tables.values())).numerators)
    values = {name: np.empty(n_replicates) for name in tables}
    for replicate in range(n_replicates):
        drawn = rng.integers(n, size=n)
        for name, table in tables.items():
            sums = table.numerators[drawn].sum(axis=0), table.denominators[drawn].sum(axis=0)
            values[name][replicate] = (sums[0] / sums[1]).sum()
    return values


def drift_rows(n_rows: int = 500_000, n_features: int = 12, n_bins: int = 10) -> list[BenchRow]:
    """PSI and KL of every feature between two windows, from values to numbers."""
    rng = np.random.default_rng(0)
    reference, live = rng.standard_normal((2, n_features, n_rows))

    def ours() -> list[tuple[float, float]]:
        return [_divergences(before, now, n_bins) for before, now in zip(reference, live, strict=True)]

    def peer() -> list[tuple[float, float]]:
        return [_divergences_written_down(before, now, n_bins) for before, now in zip(reference, live, strict=True)]

    np.testing.assert_allclose(ours(), peer(), rtol=0.05, atol=1e-6)
    took = side_by_side(lambda: seconds(ours), lambda: seconds(peer), rounds=3)
    who = f"qcut, cut and value_counts of pandas {pd.__version__}, entropy of scipy {scipy.__version__}"
    work = f"drift: PSI and KL of {n_features} features, {n_rows:,} + {n_rows:,} rows"
    return [bench_row(work, *took, f"straightforward: {who}", "s")]


def _divergences(before: Floats, now: Floats, n_bins: int) -> tuple[float, float]:
    bins = numeric_bins(before, n_bins=n_bins)
    probs, live = (histogram(bins.assign(x), len(bins.labels)) / len(x) for x in (before, now))
    return population_stability_index(probs, live, floor=FLOOR), kl_divergence(probs, live, floor=FLOOR)


def _divergences_written_down(before: Floats, now: Floats, n_bins: int) -> tuple[float, float]:
    binned, edges = pd.qcut(before, n_bins, retbins=True)
    edges[0], edges[-1] = -np.inf, np.inf
    probs = pd.Series(binned).value_counts(sort=False, normalize=True).to_numpy().clip(FLOOR)
    live = pd.Series(pd.cut(now, edges)).value_counts(sort=False, normalize=True).to_numpy().clip(FLOOR)
    return float(((live - probs) * np.log(live / probs)).sum()), float(scipy.stats.entropy(live, probs))
