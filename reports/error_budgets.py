"""Error budgets: how many events may still go wrong, how fast that is used up, and whether it is spent.

An objective says which share of events is to be good over a window of nights; the rest of them is its budget. Pure:
takes counts by night, returns what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

_DIGITS = 9
"""Kept of a ratio: 1 of 1,000 spends the budget of 0.999 exactly, which binary fractions would leave open."""

_CURRENT = timedelta(days=2)
"""Age of the newest night up to which its burn rate is news: the one before a run, and one that did not come."""


@dataclass(frozen=True)
class NightEvents:
    """What was counted in a night.

    Attributes:
        night: UTC date; where nights themselves are the events, the date of the deadline in its own time zone.
        n_events: all that are judged.
        n_bad: those of them that went wrong.
    """

    night: date
    n_events: float
    n_bad: float


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A service-level objective.

    Attributes:
        name: such as "availability".
        share: of the events that are to be good, in (0, 1).
        window_nights: over which its budget holds, the newest included.
        burn_nights: newest nights of the window that tell the burn rate.
        burn_limit: burn rate above which a person is woken.
        fewest_bad: bad events without which neither the budget counts as spent nor the burn rate as too high.
        nightly: whether there is one event a night; its budget is then that of the whole window from the start.
    """

    name: str
    share: float
    window_nights: int
    burn_nights: int
    burn_limit: float
    fewest_bad: int
    nightly: bool = False


@dataclass(frozen=True)
class ErrorBudget:
    """How an objective stands.

    Attributes:
        objective: that it is the budget of.
        n_nights: of the window, with any event.
        n_events, n_bad: in the window.
        n_allowed: events that may be bad.
        left: share of the budget; 0 or less where it is spent.
        burn_rate: share of bad events in the newest nights / the share that may be bad: 1 spends the budget in exactly
            its window. None where the newest night with events is too old to be news.
        n_burned: bad events in these nights.
    """

    objective: Objective
    n_nights: int
    n_events: float
    n_bad: float
    n_allowed: float
    left: float
    burn_rate: float | None
    n_burned: float

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.left <= 0 and self.n_bad >= self.objective.fewest_bad

    @property
    def burning(self) -> bool:
        """Whether it burns faster than the limit."""
        rate = self.burn_rate
        return rate is not None and rate > self.objective.burn_limit and self.n_burned >= self.objective.fewest_bad

    @property
    def nights_left(self) -> float | None:
        """Nights until it is spent at this rate; None where it does not burn, or is spent."""
        if not self.burn_rate or self.left <= 0:
            return None
        return self.left * self.objective.window_nights / self.burn_rate

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "objective": self.objective.share,
            "window_nights": self.objective.window_nights,
            "n_nights": self.n_nights,
            "n_events": self.n_events,
            "n_bad": self.n_bad,
            "n_allowed": round(self.n_allowed, 6),
            "left": self.left,
            "burn_rate": self.burn_rate,
            "spent": self.spent,
            "burning": self.burning,
            "nights_left": self.nights_left,
        }


def error_budget(objective: Objective, nights: Sequence[NightEvents], today: date) -> ErrorBudget | None:
    """What is left of an objective's budget; None without any event in its window.

    Args:
        nights: any, in any order, each at most once.
        today: the window's last night.

    Source: Beyer et al. 2018, The Site Reliability Workbook, chapters 2 and 5.
    """
    window = [n for n in nights if timedelta() <= today - n.night < timedelta(days=objective.window_nights)]
    counted = [n for n in window if n.n_events]
    n_events, n_bad = sum(n.n_events for n in counted), sum(n.n_bad for n in counted)
    if not counted:
        return None
    may_be_bad = 1 - objective.share
    n_allowed = may_be_bad * (objective.window_nights if objective.nightly else n_events)
    newest = max(n.night for n in counted)
    burning = [n for n in counted if newest - n.night < timedelta(days=objective.burn_nights)]
    n_burned = sum(n.n_bad for n in burning)
    of = objective.burn_nights if objective.nightly else sum(n.n_events for n in burning)
    is_news = today - newest <= _CURRENT
    return ErrorBudget(
        objective=objective,
        n_nights=len(counted),
        n_events=n_events,
        n_bad=n_bad,
        n_allowed=n_allowed,
        left=round(1 - n_bad / n_allowed, _DIGITS),
        burn_rate=round(n_burned / of / may_be_bad, _DIGITS) if is_news else None,
        n_burned=n_burned,
    )
