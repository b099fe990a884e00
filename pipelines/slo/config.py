"""`[slo]`: what the service promises, over how many nights, and what a spent budget does."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import time
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator

from datasets.settings import Settings
from reports.error_budgets import Objective
from reports.operating_metrics import ANSWER_BOUNDS_S, AVAILABILITY, IN_TIME, IN_TIME_S


class ObjectiveConfig(Settings):
    """What every objective has."""

    objective: float = Field(gt=0, lt=1)
    """Share of its events that are to be good; what is left to 1 is the error budget. In (0, 1): of a budget of nothing
    the first bad event would be the last."""
    burn_nights: int = Field(1, ge=1, le=60)
    """Newest nights that tell how fast the budget burns."""
    fewest_bad: int = Field(3, ge=1)
    """Bad events without which the budget is not spent and nobody is paged: a single one of a few says little."""
    stops_promotions: bool = True
    """Whether `promote` refuses, and a canary does not go on, while this budget is spent."""


class AvailabilityConfig(ObjectiveConfig):
    """Requests for decisions that the policy server answered, of these and those that it refused for a reason of its
    own."""

    objective: float = Field(AVAILABILITY, gt=0, lt=1)


class LatencyConfig(ObjectiveConfig):
    """Answers of the policy server that came in time."""

    objective: float = Field(IN_TIME, gt=0, lt=1)
    within_ms: float = Field(1000 * IN_TIME_S, gt=0)
    """Milliseconds from a request's arrival to its answer; a bound of the server's histogram."""

    @field_validator("within_ms")
    @classmethod
    def _is_bound(cls, within_ms: float) -> float:
        bounds = [f"{1000 * bound:g}" for bound in ANSWER_BOUNDS_S]
        if f"{within_ms:g}" not in bounds:
            raise ValueError(f"the server counts answers within {', '.join(bounds)} ms; choose one of these")
        return within_ms


class SafetyConfig(ObjectiveConfig):
    """Decisions that broke none of the contract's `[constraints]`, of those that any of them can judge."""


class SuccessConfig(ObjectiveConfig):
    """Decisions after which the contract's `[success]` was true, of those whose outcome is there."""


class InChargeConfig(ObjectiveConfig):
    """Decisions that the release in charge made itself: neither was it late or failed, nor did its guard step in."""


class NightsConfig(ObjectiveConfig):
    """Nights that ended in time, by the clock, and were not stopped by a held batch."""

    objective: float = Field(0.9, gt=0, lt=1)
    burn_nights: int = Field(7, ge=1, le=60)
    fewest_bad: int = Field(1, ge=1)
    after: time = time(0)
    """From when on a nightly run must have ended; where it is not before `by`, that of the day before."""
    by: time = time(6)
    """Until when it must have ended."""
    timezone: str = "UTC"
    """Of both, such as Europe/Berlin."""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name != "UTC" and name not in available_timezones():
            raise ValueError("no such time zone; wanted is a name such as Europe/Berlin, or UTC")
        return name

    @property
    def zone(self) -> ZoneInfo:
        """Of `after` and `by`."""
        return ZoneInfo(self.timezone)


class SloConfig(Settings):
    """Objectives; one that has no table is not watched."""

    window_nights: int = Field(30, ge=2, le=400)
    """Nights over which budgets hold, a rolling window."""
    page_above: float = Field(3.0, gt=0)
    """Burn rate above which a person is paged: 3 spends the budget in a third of its window."""
    availability: AvailabilityConfig | None = None
    latency: LatencyConfig | None = None
    safety: SafetyConfig | None = None
    success: SuccessConfig | None = None
    in_charge: InChargeConfig | None = None
    nights: NightsConfig | None = None

    def tables(self) -> Mapping[str, ObjectiveConfig]:
        """Those that are watched, by name."""
        names = ("availability", "latency", "safety", "success", "in_charge", "nights")
        return {name: table for name in names if (table := getattr(self, name)) is not None}

    def objectives(self) -> Mapping[str, Objective]:
        """The same, with what holds for all."""
        return {
            name: Objective(
                name=name,
                share=table.objective,
                window_nights=self.window_nights,
                burn_nights=min(table.burn_nights, self.window_nights),
                burn_limit=self.page_above,
                fewest_bad=table.fewest_bad,
                nightly=name == "nights",
            )
            for name, table in self.tables().items()
        }
