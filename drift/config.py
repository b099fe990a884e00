"""The `[drift]` table."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from datasets.durations import seconds_of
from datasets.settings import Settings


class DriftConfig(Settings):
    """The `[drift]` table."""

    false_alarm_rate: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Share of unchanged nights that may raise drift, by whatever test and in whatever column."""
    min_psi: float = Field(default=0.02, ge=0.0)
    """Smallest PSI (nats) that matters, however significant."""
    n_bins: int = Field(default=10, ge=2, le=100)
    """Quantile bins per numeric column, cut on the reference window."""
    n_replicates: int = Field(default=2000, ge=20)
    """Unchanged worlds that the null consists of; at least 5 / false_alarm_rate."""
    floor: float = Field(default=1e-4, gt=0.0, le=0.005)
    """Smallest share that a bin is given in PSI and KL, so that an empty one does not make them infinite."""
    min_live_episodes: int = Field(default=30, ge=2)
    """Episodes below which a window is not judged: live ones, and (effective ones, where weighted) of the reference."""
    min_nights: int = Field(default=14, ge=4)
    """Reference nights from which on nights are the unit of the null; before that clusters are, optimistically."""
    live_nights: int = Field(default=1, ge=1)
    """Newest nights that make up the live window."""
    seasonality: Literal["none", "weekday", "hour", "weekday and hour"] = "none"
    """With `weekday` a night is compared with the reference's nights of the same day of the week, with `hour` what
    began in each hour of the day (of the contract's `[time] zone`, or else UTC) with what began in the same one."""
    slow_nights: int = Field(default=28, ge=1)
    """Newest nights, at most, that are put together to find a slow change; 1 looks at the live window alone."""
    max_age: str = "30d"
    """Age at which the champion is retrained even without drift, such as "30d" or "12h"."""
    cool_down: str = "1d"
    """Time after a training in which drift, performance and age ask for no other one, such as "3d"."""
    on_suspicion: Literal["hold", "retrain"] = "hold"
    """What follows where a shift looks like poisoned or gamed data: wait for a person, or retrain all the same."""
    keep_pages: int = Field(default=60, ge=1)
    """Pages of nights that stay on disk, the newest ones; `drift page --night` makes an older one again."""
    seed: int = Field(default=0, ge=0)
    """Of the null's random draws."""

    @field_validator("max_age", "cool_down")
    @classmethod
    def _duration(cls, duration: str) -> str:
        seconds_of(duration)
        return duration

    @model_validator(mode="after")
    def _enough_replicates(self) -> DriftConfig:
        if self.n_replicates * self.false_alarm_rate < 5:
            raise ValueError(
                f"n_replicates = {self.n_replicates} is too few for false_alarm_rate = {self.false_alarm_rate}; "
                f"it takes {int(np.ceil(5 / self.false_alarm_rate))}"
            )
        n_slots = 2 * self.n_bins + 2  # ties give a numeric column up to two slots a bin
        if self.floor * n_slots > 1.0:
            raise ValueError(
                f"floor = {self.floor:g} leaves nothing for {n_slots} slots, which n_bins = {self.n_bins} may come to; "
                f"it may be {1.0 / n_slots:.2g} at most"
            )
        return self

    @property
    def max_age_days(self) -> float:
        """`max_age` in days."""
        return seconds_of(self.max_age) / 86400.0

    @property
    def cool_down_days(self) -> float:
        """`cool_down` in days."""
        return seconds_of(self.cool_down) / 86400.0
