"""What share of the traffic the harm budget of a night pays for, and what any share would risk."""

from __future__ import annotations

import math
from dataclasses import dataclass

CURVE_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the traffic at which the curve is drawn: the usual steps of a rollout, and a grid beyond them."""


@dataclass(frozen=True)
class CertifiedCurve:
    """Worst-case loss of one night by the share of traffic that the candidate gets, in reward units."""

    shares: tuple[float, ...]
    harms: tuple[float, ...]
    """Share x episodes of a night, at most x largest loss per episode, as the bound on the difference allows it."""
    blind_harms: tuple[float, ...]
    """The same with all that the baseline could lose, as if nothing were known of the candidate; empty: unbounded."""
    budget: float
    """Loss of one night that may be risked."""
    certified_share: float
    night_episodes: float
    """Upper bound of the episodes of one night."""


def largest_share(loss: float, night_episodes: float, budget: float) -> float:
    """The largest share p in [0, 1] with p x `night_episodes` x `loss` <= `budget`.

    Args:
        loss: upper bound of the loss per episode, in reward units, at least 0.
        night_episodes: upper bound of the episodes of one night, at least 0.
        budget: loss of one night that may be risked, in reward units, at least 0.

    Raises:
        ValueError: an argument is negative or not finite.
    """
    _refuse_negative(loss=loss, night_episodes=night_episodes, budget=budget)
    night_loss = loss * night_episodes
    return 1.0 if night_loss <= budget else budget / night_loss


def certified_curve(
    loss: float, blind_loss: float | None, night_episodes: float, budget: float, certified_share: float
) -> CertifiedCurve:
    """The loss that each share of traffic risks in one night, beside the budget and the share that was certified.

    Args:
        loss: upper bound of value(baseline) - value(candidate) per episode, floored at 0.
        blind_loss: most that the baseline could lose per episode, whatever acts; None where rewards have no bound.
        night_episodes, budget: as for `largest_share`.
        certified_share: what the gate certified: 0 where another check failed, however small the loss.

    Raises:
        ValueError: an argument is negative or not finite.
    """
    _refuse_negative(loss=loss, blind_loss=blind_loss or 0.0, night_episodes=night_episodes, budget=budget)
    blind = () if blind_loss is None else tuple(share * night_episodes * blind_loss for share in CURVE_SHARES)
    return CertifiedCurve(
        shares=CURVE_SHARES,
        harms=tuple(share * night_episodes * loss for share in CURVE_SHARES),
        blind_harms=blind,
        budget=budget,
        certified_share=certified_share,
        night_episodes=night_episodes,
    )


def _refuse_negative(**arguments: float) -> None:
    wrong = [f"{name} = {value}" for name, value in arguments.items() if not (math.isfinite(value) and value >= 0)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: a loss, a number of episodes and a budget are finite and at least 0.")
