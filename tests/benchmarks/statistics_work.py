"""Estimators with their bootstrap, against the same written straight down with numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reports import estimators
from reports.estimators import RatioSum
from reports.intervals import bootstrap_replicates
from tests.benchmarks.rows import BenchRow, bench_row, seconds, side_by_side

Floats = NDArray[np.float64]
GAMMA = 0.99


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
