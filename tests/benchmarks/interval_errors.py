"""How often one-sided bounds of a mean miss it: `python -m tests.benchmarks.interval_errors` prints the table.

Terms are lognormal, whose mean is known, so costs and rare large weights look like this; clusters are single episodes
or of unequal sizes with a shock of their own. A lower bound errs where it lies above the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reports.estimators import Floats, mean_of
from reports.intervals import bootstrap, lower_bound, student_t_interval, upper_bound
from reports.studentized import bca_bounds, jackknife_acceleration, studentized_bounds

METHODS = ("percentile", "BCa", "studentized", "Student t")
Draw = Callable[[np.random.Generator, int], tuple[Floats, NDArray[np.int64]]]


@dataclass(frozen=True)
class ErrorRates:
    """Shares of seeds in which each method's bound misses the true mean."""

    n_seeds: int
    lower: dict[str, float]
    """The lower bound lies above the mean."""
    upper: dict[str, float]
    """The upper bound lies below the mean."""
    refused: dict[str, float]
    """A side is missing; it then does not err."""


def lognormal(sigma: float) -> Draw:
    """Single episodes with terms exp(sigma Z), centered at their true mean."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Floats, NDArray[np.int64]]:
        return np.exp(sigma * rng.standard_normal(n)) - np.exp(sigma**2 / 2), np.arange(n)

    return draw


def unequal(sigma: float) -> Draw:
    """n clusters of 1 to 9 episodes; the terms of one share half of their variance, and are skewed."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Floats, NDArray[np.int64]]:
        clusters = np.repeat(np.arange(n), rng.integers(1, 10, n))
        shared = rng.standard_normal(n)[clusters] + rng.standard_normal(len(clusters))
        return np.exp(sigma * shared / np.sqrt(2)) - np.exp(sigma**2 / 2), clusters

    return draw


def error_rates(draw: Draw, n: int, alpha: float, *, n_seeds: int, n_replicates: int) -> ErrorRates:
    """Each method's errors over logs of n clusters whose true mean is 0."""
    missed = {side: dict.fromkeys(METHODS, 0) for side in ("lower", "upper", "refused")}
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        terms, clusters = draw(rng, n)
        for method, (low, high) in _bounds(terms, clusters, alpha, n_replicates, rng).items():
            missed["lower"][method] += low is not None and low > 0
            missed["upper"][method] += high is not None and high < 0
            missed["refused"][method] += low is None or high is None
    shares = {side: {m: k / n_seeds for m, k in found.items()} for side, found in missed.items()}
    return ErrorRates(n_seeds, shares["lower"], shares["upper"], shares["refused"])


def _bounds(
    terms: Floats, clusters: NDArray[np.int64], alpha: float, n_replicates: int, rng: np.random.Generator
) -> dict[str, tuple[float | None, float | None]]:
    mean = mean_of(terms)
    drawn = bootstrap({"m": mean}, clusters, n_replicates=n_replicates, rng=rng, with_errors={"m"})["m"]
    bca = bca_bounds(drawn, jackknife_acceleration(mean, clusters), alpha)
    studentized = studentized_bounds(drawn, alpha)
    t = student_t_interval(terms, clusters, 1 - 2 * alpha)
    return {
        "percentile": (lower_bound(drawn.values, alpha), upper_bound(drawn.values, alpha)),
        "BCa": (bca.lower, bca.upper),
        "studentized": (studentized.lower, studentized.upper),
        "Student t": (t.low, t.high),
    }


def main() -> None:
    """Prints errors of both sides for every world, number of clusters and level."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.interval_errors", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000)
    n_seeds = parser.parse_args().seeds
    worlds = {"lognormal .5": lognormal(0.5), "lognormal 1": lognormal(1.0), "lognormal 1, unequal": unequal(1.0)}
    heads = "".join(f"{m + ' <':>14}{'>':>8}" for m in METHODS)
    print(f"{'terms':<22}{'n':>5}{'alpha':>7}{heads}   '<': lower bound above the mean, '>': upper below it")
    for name, draw in worlds.items():
        for n in (50, 200):
            for alpha in (0.05, 0.01):
                found = error_rates(draw, n, alpha, n_seeds=n_seeds, n_replicates=round(20 / alpha))
                cells = "".join(f"{found.lower[m]:>14.4f}{found.upper[m]:>8.4f}" for m in METHODS)
                print(f"{name:<22}{n:>5}{alpha:>7}{cells}")
    margin = stats.norm.ppf(0.975) * np.sqrt(0.05 * 0.95 / n_seeds)
    print(f"{n_seeds} logs a row: a rate of .05 is measured to within {margin:.4f}.")


if __name__ == "__main__":
    main()
