"""Reward that rises while a declared outcome falls: a policy, or a log, that games the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drift.cells import dense
from drift.config import DriftConfig
from drift.hours import in_same_hours
from drift.records import Suspicion
from drift.seasons import N_STRATA, strata
from drift.windows import DriftWindow

SMALLEST_CHANGE = 0.01
"""Of an outcome's rate, below which it is no matter, however significant."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StepRate:
    """What a window's T steps say of a reward or an outcome: the mean of `values` over the steps where it is known.

    Attributes:
        values: (T,) rewards, or 1 where the outcome's condition holds and 0 where it does not.
        known: (T,) bool.
    """

    values: Floats
    known: NDArray[np.bool_]

    def among(self, steps: NDArray[np.bool_]) -> StepRate:
        """The same, known of these steps alone."""
        return replace(self, known=self.known & steps)


@dataclass(frozen=True)
class DeclaredOutcome:
    """An outcome of the contract in both windows; `good` says whether more of it is better."""

    name: str
    good: bool
    reference: StepRate
    live: StepRate


def reward_against_outcomes(
    reference: DriftWindow,
    live: DriftWindow,
    rewards: tuple[StepRate, StepRate],
    outcomes: Sequence[DeclaredOutcome],
    config: DriftConfig,
) -> tuple[Suspicion, ...]:
    """Outcomes that fell beyond chance while the mean reward of a step rose beyond chance.

    Both tests are one-sided at `false_alarm_rate`, that of the outcomes shared between them. As both must hold, at most
    that rate of nights in which the reward did not rise, or no outcome fell, are suspicious: it is a rate beside that
    of drift, and in practice far less. Rates are ratios over steps, weighted as the reference is; nights are the unit
    of their errors from `min_nights` reference nights on, clusters before.

    Args:
        reference, live: windows with at least one step each.
        rewards: of the reference and of live.
        outcomes: declared in the contract; none finds nothing.

    Source: Linearized variance of a ratio over clusters: Cochran 1977, Sampling Techniques, 6.3. Berger 1982 for the
    level of two tests that must both reject.
    """
    reference, kept = _in_the_same_seasons(reference, live, config)
    rewards = rewards[0], rewards[1].among(kept)
    outcomes = [replace(outcome, live=outcome.live.among(kept)) for outcome in outcomes]
    if not outcomes or live.n_episodes < config.min_live_episodes or reference.n_episodes < config.min_live_episodes:
        return ()
    rate = config.false_alarm_rate
    reward = _difference(reference, live, *rewards, config)
    if reward is None or not reward.change > 0 or reward.p_value("rose") > rate:
        return ()
    found = []
    for outcome in outcomes:
        moved = _difference(reference, live, outcome.reference, outcome.live, config)
        worse: Literal["rose", "fell"] = "fell" if outcome.good else "rose"
        if moved is None or abs(moved.change) < SMALLEST_CHANGE or moved.p_value(worse) > rate / len(outcomes):
            continue
        found.append(
            Suspicion(
                kind="reward against outcome",
                column="reward",
                where=(outcome.name,),
                share=1.0,
                sentence=(
                    f"the mean reward of a step rose from {reward.before:.4g} to {reward.now:.4g} while {outcome.name} "
                    f"{worse} from {moved.before:.2%} to {moved.now:.2%} of the steps, both beyond chance (p "
                    f"{_chance(reward.p_value('rose'))} and {_chance(moved.p_value(worse))}): what is rewarded is not "
                    "what is wanted, or the log is not true"
                ),
            )
        )
    return tuple(found)


def _chance(p_value: float) -> str:
    """In words that never say that something cannot happen."""
    return "below 0.0001" if p_value < 1e-4 else f"{p_value:.1g}"


def _in_the_same_seasons(
    reference: DriftWindow, live: DriftWindow, config: DriftConfig
) -> tuple[DriftWindow, NDArray[np.bool_]]:
    """The reference weighted to the seasons of the live steps, and (T,) which of these it knows at all."""
    if config.seasonality == "none" or not live.n_rows or not reference.n_rows:
        return reference, np.ones(live.n_rows, dtype=bool)
    same = in_same_hours([reference], live, live, config)
    before = strata(reference.day_numbers, reference.hours, config.seasonality)[reference.episode_of_row].clip(min=0)
    now = strata(live.day_numbers, live.hours, config.seasonality)[live.episode_of_row].clip(min=0)
    weights = np.ones(reference.n_rows) if reference.weights is None else reference.weights
    held = np.bincount(before, weights, minlength=N_STRATA)
    kept = same.kept[live.episode_of_row] & (held[now] > 0)
    wanted = np.bincount(now[kept], minlength=N_STRATA) / np.where(held > 0, held, 1.0)
    return replace(reference, weights=weights * wanted[before]), kept


@dataclass(frozen=True)
class _Difference:
    """Two rates and the standard error of their difference, with its degrees of freedom."""

    before: float
    now: float
    standard_error: float
    freedom: float

    @property
    def change(self) -> float:
        return self.now - self.before

    def p_value(self, direction: Literal["rose", "fell"]) -> float:
        """Chance that rates which did not change move as far in that direction."""
        from scipy import stats  # not at import: `import drift` is quick

        change = self.change if direction == "rose" else -self.change
        if self.standard_error == 0.0:
            return 0.0 if change > 0 else 1.0
        return float(stats.t.sf(change / self.standard_error, self.freedom))


def _difference(
    reference: DriftWindow, live: DriftWindow, before: StepRate, now: StepRate, config: DriftConfig
) -> _Difference | None:
    """None where a side has no known step, or only one unit."""
    by_nights = reference.n_nights >= config.min_nights
    weights = np.ones(reference.n_rows) if reference.weights is None else reference.weights
    old = _rate(reference, before, weights, reference.day_numbers if by_nights else reference.clusters)
    new = _rate(live, now, np.ones(live.n_rows), live.clusters)
    if old is None or new is None:
        return None
    if by_nights:  # a few live nights say nothing of how nights differ: the reference's do
        standard_error = old.spread * np.sqrt(1.0 / live.n_nights + 1.0 / old.n_units)
        standard_error = max(standard_error, float(np.hypot(old.standard_error, new.standard_error)))
        freedom = old.n_units - 1.0
    else:
        standard_error = float(np.hypot(old.standard_error, new.standard_error))
        freedom = min(old.n_units, new.n_units) - 1.0
    return _Difference(old.rate, new.rate, float(standard_error), freedom)


@dataclass(frozen=True)
class _Rate:
    """A rate over U units; `spread` is the standard deviation of one unit of average size."""

    rate: float
    spread: float
    n_units: int

    @property
    def standard_error(self) -> float:
        return float(self.spread / np.sqrt(self.n_units))


def _rate(window: DriftWindow, of: StepRate, weights: Floats, unit_of_episode: NDArray[np.int64]) -> _Rate | None:
    units = dense(unit_of_episode)[window.episode_of_row]
    known = np.where(of.known, weights, 0.0)
    size = np.bincount(units, known)
    hits = np.bincount(units, known * np.where(of.known, of.values, 0.0), minlength=len(size))
    there = size > 0
    n = int(there.sum())
    if n < 2:
        return None
    rate = float(hits.sum() / size.sum())
    deviations = (hits - rate * size)[there] / (size.sum() / n)
    return _Rate(rate, float(np.sqrt((deviations**2).sum() / (n - 1))), n)
