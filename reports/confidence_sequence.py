"""A confidence sequence for a bounded mean: bounds that hold at every look at once, so they may be read every night.

A fixed-time interval that is read night after night is wrong on some night far more often than it says. Here a
fictional player bets against every possible mean m with money that cannot grow on average if m is true; a mean against
which the money ever reached 1 / alpha is out for good (Ville's inequality).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.estimators import Floats, Ints

_PRECISION = 1e-6
"""Of a bound, as a share of the range; it errs on the safe side."""
_LARGEST_BET = 0.75
"""Share of the money that one bet may lose; below 1, so that no single value ends the game."""


@dataclass(frozen=True)
class RunningBounds:
    """Bounds at each of L looks, in the unit of the values."""

    lower: Floats
    """(L,) never falls; with confidence 1 - alpha it is below the mean at all times together."""
    upper: Floats
    """(L,) never rises; with confidence 1 - alpha it is above the mean at all times together."""
    alpha: float
    """Of each side."""

    @property
    def moved(self) -> bool:
        """Whether the two sides have crossed: then the mean did not stay the same."""
        return bool(self.lower[-1] > self.upper[-1])


@dataclass(frozen=True)
class NightBounds:
    """What is known after one night."""

    night: object
    n_clusters: int
    """Clusters seen up to this night."""
    mean: float
    """Of their means, up to this night."""
    lower: float
    upper: float


def confidence_sequence(
    values: Floats, low: float, high: float, alpha: float, looks: Ints | None = None
) -> RunningBounds:
    """Lower and upper bounds of a mean at each look, each valid at all looks together with confidence 1 - alpha.

    Nothing is assumed but the range, and that given everything before it each value has the same expectation. No
    tuning by the data to come, no fixed end; a bound that was read stays what it was when values are added.

    Args:
        values: (C,) in the order of time: one per independent unit (a cluster's mean), in [low, high].
        low, high: what a value can be at all; from the contract, never from the values.
        alpha: chance that the lower bound is ever above the mean; the same for the upper bound.
        looks: (L,) ascending numbers of values after which the bounds are read; after every value by default.

    Raises:
        ValueError: there is no value, the looks are not ascending numbers from 1 to C, the range is not finite, or a
            value lies outside it.

    Source: Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting (arXiv:2010.09686),
    theorem 3 with the predictable plug-in bets of eq. 26; each side by itself, at its own alpha.
    """
    if not np.isfinite(low) or not np.isfinite(high) or low >= high:
        raise ValueError(f"The range [{low}, {high}] is not finite and increasing: set reward.min and reward.max.")
    if len(values) == 0:
        raise ValueError("There is no value to bound a mean by.")
    slack = 1e-9 * (high - low)
    outside = ~((values >= low - slack) & (values <= high + slack))
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"{int(outside.sum())} of {len(values)} values lie outside [{low:g}, {high:g}], first {values[first]:g} at "
            f"position {first}: the range must be what a value can be at all."
        )
    looks = np.arange(1, len(values) + 1) if looks is None else looks
    if len(looks) == 0 or looks[0] < 1 or looks[-1] > len(values) or np.any(np.diff(looks) < 0):
        raise ValueError(f"looks must be ascending numbers of values from 1 to {len(values)}.")
    scaled = np.clip((values - low) / (high - low), 0.0, 1.0)
    bets = _bets(scaled, alpha)
    lower = _running_lower(scaled, bets, looks, alpha)
    upper = 1.0 - _running_lower(1.0 - scaled, bets, looks, alpha)
    return RunningBounds(low + (high - low) * lower, low + (high - low) * upper, alpha)


def nightly_bounds(
    values: Floats,
    clusters: NDArray[np.generic],
    nights: NDArray[np.generic],
    *,
    low: float,
    high: float,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[NightBounds, ...]:
    """The confidence sequence of episodes as they came, read after each night.

    A cluster counts once, with the mean of its episodes in the first night it appears in: what it does later depends
    on that, and would not be new evidence. The mean is thus over clusters; it is the mean over episodes where a
    cluster's size says nothing of its values. Pass `nights` as the clusters where nights share shocks.

    Within a night clusters are taken in a random order: a day has its rhythm, and where mornings differ from evenings
    values in the order of the clock do not all have the same expectation.

    Args:
        values: (N,) one per episode, in [low, high], in the order of time.
        clusters: (N,) cluster of each episode.
        nights: (N,) night in which each episode started; they sort by time.
        low, high, alpha: as for `confidence_sequence`.
        rng: of the order within nights; one of the same seed gives earlier nights the same order when nights are added.

    Raises:
        ValueError: as `confidence_sequence`.
    """
    if len(values) == 0:
        raise ValueError("There is no value to bound a mean by.")
    named, night_of = np.unique(nights, return_inverse=True)
    _, first_row, codes = np.unique(clusters, return_index=True, return_inverse=True)
    first_night = np.full(int(codes.max()) + 1, len(named))
    np.minimum.at(first_night, codes, night_of)
    counted = night_of == first_night[codes]
    sums, sizes = (np.bincount(codes, weights=w) for w in (np.where(counted, values, 0.0), counted.astype(np.float64)))
    drawn = rng.random(len(first_row))[first_row.argsort().argsort()]  # by first appearance
    order = np.lexsort((drawn, first_night))
    means = (sums / sizes)[order]
    ends = np.searchsorted(first_night[order], np.arange(len(named)), side="right")  # clusters up to each night
    bounds = confidence_sequence(means, low, high, alpha, ends)
    running = np.cumsum(means)
    return tuple(
        NightBounds(night, int(end), float(running[end - 1] / end), float(low_now), float(high_now))
        for night, end, low_now, high_now in zip(named.tolist(), ends, bounds.lower, bounds.upper, strict=True)
    )


def _bets(scaled: Floats, alpha: float) -> Floats:
    """(C,) size of each bet per unit of distance, known before its value: eq. 26 with the variance seen so far."""
    steps = np.arange(1, len(scaled) + 1)
    means = (0.5 + np.cumsum(scaled)) / (steps + 1)
    variances = (0.25 + np.cumsum((scaled - means) ** 2)) / (steps + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    return np.asarray(np.sqrt(2 * np.log(1 / alpha) / (before * steps * np.log1p(steps))))


def _running_lower(scaled: Floats, bets: Floats, looks: Ints, alpha: float) -> Floats:
    """(L,) largest mean that betting on larger values has ruled out by each look; 0 before any has been.

    Money falls in m, so whatever lies below a mean that is out is out as well, and halving finds the last one.
    """
    found, best, goal = np.zeros(len(looks)), 0.0, float(np.log(1 / alpha))
    for i, n in enumerate(looks.tolist()):
        x, bet = scaled[:n], bets[:n]

        def out(mean: float, x: Floats = x, bet: Floats = bet) -> bool:
            return float(np.log1p(np.minimum(bet, _LARGEST_BET / mean) * (x - mean)).sum()) >= goal

        if out(best + _PRECISION):
            inside, best = float(x.max()), best + _PRECISION  # a mean of at least every value makes no money
            while inside - best > _PRECISION:
                middle = (inside + best) / 2
                inside, best = (inside, middle) if out(middle) else (middle, best)
        found[i] = best
    return found
