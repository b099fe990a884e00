"""Candidate against champion on traffic that a hash divided: a difference whose bounds hold at every look at once.

An episode counts for the policy that it was assigned to, whoever acted in it, and every number is a ratio of sums: of
returns over episodes, of breaches over steps. The candidate's episodes are weighted by the champion's share p' = 1 - p
at their start and the champion's by the candidate's share p. So each stretch of time weighs as much on both sides, and
a rising share that meets a changing world makes no difference where there is none; nor do the few, heavily weighted
episodes of the first step drown the many later ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reports.estimators import Floats, Ints

_WORST_SEEN = 2.0
"""Worst possible units that each side of a rate takes for seen: without a breach so far is not without any ever."""


@dataclass(frozen=True)
class Arms:
    """N episodes in the order of their start.

    Attributes:
        candidate: (N,) bool, assigned to the candidate.
        share: (N,) probability of that, in (0, 1), when the episode began.
        units: (N,) codes of what is independent: episodes, clusters, or the blocks of a switchback.
        hours: (N,) hours since 1970 at the start of the episode.
    """

    candidate: NDArray[np.bool_]
    share: Floats
    units: Ints
    hours: Ints

    def __len__(self) -> int:
        return len(self.candidate)

    @cached_property
    def codes(self) -> Ints:
        """(N,) units, numbered from 0 without a gap."""
        return np.unique(self.units, return_inverse=True)[1]

    @cached_property
    def information(self) -> float:
        """Effective number of units on both sides: p(1 - p) for each, as the spread grows."""
        first = np.unique(self.units, return_index=True)[1]
        return float((self.share * (1 - self.share))[first].sum())

    def n_units(self, candidate: bool) -> int:
        """How many units have an episode on one side."""
        return int((np.bincount(self.codes, weights=self.candidate == candidate) > 0).sum())


@dataclass(frozen=True)
class Bounded:
    """A number with bounds, each below or above the truth at all looks together with confidence 1 - alpha."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Difference:
    """One quantity of both policies, and candidate minus champion."""

    candidate: Bounded
    champion: Bounded
    difference: Bounded


def compare(
    arms: Arms, numerators: Floats, denominators: Floats, *, alpha: float, tuned_at: float, is_rate: bool = False
) -> Difference | None:
    """Ratios of both sides and their difference, with bounds that hold however often one looks.

    Asymptotic: they hold from a first look on that has some dozens of units on each side, not before.

    Args:
        arms: the episodes.
        numerators, denominators: (N,) of each episode, such as its return and 1, or its breaches and its steps.
        alpha: chance that a bound is ever on the wrong side; of each bound by itself.
        tuned_at: effective units at which the bounds are narrowest; they hold everywhere.
        is_rate: a ratio that lies in [0, 1]. Where it is rare the spread of what was seen says too little, so each
            side is charged with the spread of some of the worst possible units.

    Returns:
        None where one side has fewer than two units, or nothing in its denominator.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, Time-uniform central limit theory and asymptotic
    confidence sequences (arXiv:2103.06476), for treatment effects in a randomized experiment; the one-sided boundary is
    that of Howard, Ramdas, McAuliffe and Sekhon 2021 (arXiv:1810.08240), eq. 3.7.
    Differs from it: ratios of sums in place of means (through their influence on the difference), spread between units
    that may hold several episodes, and weights p(1 - p) in time (Li, Morgan and Zaslavsky 2018, overlap weights).
    """
    z, p = arms.candidate, arms.share
    sides = [_Side.of(arms, numerators, denominators, np.where(w, x, 0.0)) for w, x in ((z, 1 - p), (~z, p))]
    if any(side is None for side in sides):
        return None
    ours, theirs = (side for side in sides if side is not None)
    factor = _boundary(arms.information, alpha, tuned_at)
    largest = max(ours.spread, theirs.spread)
    charged = [side.charge(largest, _WORST_SEEN if is_rate else 0.0) for side in (ours, theirs)]

    def bounded(value: float, influence: Floats, charge: float, n: int) -> Bounded:
        radius = factor * math.sqrt((float((influence**2).sum()) + charge) * n / (n - 1))
        return Bounded(value, value - radius, value + radius)

    return Difference(
        candidate=bounded(ours.value, ours.influence, charged[0], ours.n_units),
        champion=bounded(theirs.value, theirs.influence, charged[1], theirs.n_units),
        difference=bounded(
            ours.value - theirs.value,
            ours.influence - theirs.influence,
            sum(charged),
            min(ours.n_units, theirs.n_units),
        ),
    )


@dataclass(frozen=True)
class _Side:
    value: float
    influence: Floats
    """(U,) of each unit on the value."""
    n_units: int

    @property
    def spread(self) -> float:
        """Variance of one unit."""
        return float((self.influence**2).sum()) * self.n_units

    def charge(self, largest: float, worst_seen: float) -> float:
        """What is added to the variance of the value for what was not seen.

        Each side is taken to spread as much as the other: of a loss that one episode in a hundred makes, fifty episodes
        of the candidate may show nothing, and the champion's thousand do. A mean unit in which everything is as far
        from the value as a rate can be has the influence 1 / n.
        """
        return (largest - self.spread) / self.n_units + worst_seen / self.n_units**2

    @classmethod
    def of(cls, arms: Arms, numerators: Floats, denominators: Floats, weights: Floats) -> _Side | None:
        codes = arms.codes
        total = float((weights * denominators).sum())
        used = np.bincount(codes, weights=weights > 0) > 0
        n_units = int(used.sum())
        if n_units < 2 or total <= 0:
            return None
        value = float((weights * numerators).sum()) / total
        residuals = weights * (numerators - value * denominators)
        influence = np.bincount(codes, weights=residuals) / total
        return cls(value, influence, n_units)


def _boundary(information: float, alpha: float, tuned_at: float) -> float:
    """How many standard errors a sum of many small centered terms is ever off, but for a chance of alpha."""
    log = -2 * math.log(alpha)
    mixed = tuned_at / (log + math.log(log) + 1)  # variance of the mixture that is narrowest there
    ratio = (information + mixed) / mixed
    return math.sqrt(2 * (1 + mixed / information) * math.log1p(math.sqrt(ratio) / (2 * alpha)))


def without_rhythm(arms: Arms, numerators: Floats, denominators: Floats) -> Floats:
    """(N,) numerators less what episodes of the same hour of the day showed on the days before.

    Both sides lose the same, so their difference stays what it is, and the rhythm of the day is no noise in it. What
    is taken off was known before the episode began, which is all that the bounds ask for.
    """
    hours, rows = np.unique(arms.hours, return_inverse=True)
    sums, counts = (np.bincount(rows, weights=w) for w in (numerators, denominators))
    of_day = hours % 24
    expected = np.zeros(len(hours))
    seen_sums, seen_counts = np.zeros(24), np.zeros(24)
    for i, hour in enumerate(of_day.tolist()):
        total = seen_counts.sum()
        if seen_counts[hour] > 0:
            expected[i] = seen_sums[hour] / seen_counts[hour]
        elif total > 0:
            expected[i] = seen_sums.sum() / total
        seen_sums[hour] += sums[i]
        seen_counts[hour] += counts[i]
    return np.asarray(numerators - expected[rows] * denominators)
