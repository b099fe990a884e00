"""Unchanged windows on which every drift alarm is false, and changed ones on which it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

import numpy as np

from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.joint import with_joint
from tests.drift.worlds import UNCHANGED, Change, newest_night, window_of_nights


@dataclass(frozen=True, kw_only=True)
class DriftCell:
    """Seven columns of autocorrelated episodes, 60 a night; `live_nights` since the reference, the newest is judged."""

    world: str
    reference_nights: int
    live_nights: int = 1
    night_sd: float = 0.0
    """Shock that a night's episodes share, in standard deviations."""
    correlation: float = 0.7
    """Between two steps of an episode."""
    weekend: float = 0.0
    """By how much Saturdays and Sundays differ."""
    rhythm: float = 0.0
    """By how much every numeric column is higher at 6 than at midnight, and lower at 18."""
    live_hours: tuple[int, int] = (0, 24)
    """In which the newest nights' episodes begin; those of the reference begin at any hour."""
    seasonality: Literal["none", "weekday", "hour", "weekday and hour"] = "none"
    change: Change = UNCHANGED
    """Of every night since the reference."""
    false_alarm_rate: float = 0.05
    min_psi: float = 0.0
    """0 tests the null alone: a smallest size that matters only takes alarms away."""
    joint: bool = False
    """Whether the joint tests are run too: then the whole rate is used, and else half of it, or three quarters where
    nights since the reference make stretches."""
    promised: bool = True
    """False where the report itself calls the null optimistic, in a world shown as a limit, or with a change."""
    logs: float = 1.0

    @property
    def changed(self) -> bool:
        """Whether an alarm is right."""
        return self.change != UNCHANGED

    def __call__(self, seed: int) -> dict[str, Any]:
        """Whether the newest night, or a stretch of nights up to it, is called drifted."""
        rng = np.random.default_rng([seed, crc32(self.world.encode())])
        shape = {
            "episodes_per_night": 60,
            "night_sd": self.night_sd,
            "correlation": self.correlation,
            "weekend": self.weekend,
            "rhythm": self.rhythm,
        }
        reference = window_of_nights(rng, n_nights=self.reference_nights, **shape)  # type: ignore[arg-type]
        recent = window_of_nights(
            rng, n_nights=self.live_nights, first_night=self.reference_nights, change=self.change,
            hours=self.live_hours, **shape,  # type: ignore[arg-type]
        )  # fmt: skip
        config = DriftConfig(
            false_alarm_rate=self.false_alarm_rate, min_psi=self.min_psi, seasonality=self.seasonality, seed=seed
        )
        live = newest_night(recent)
        report = measure_drift(reference, live, config, recent=recent)
        if self.joint:
            report = with_joint(report, reference, live, config)
        return {"alarmed": report.status == "drifted"}


_HALF = "daily rhythm of 1 sd, live nights from 0 to 12 o'clock"
_N21 = "21 reference nights, night shocks of .2 sd, night null"


def _changed(what: str, change: Change, *, live_nights: int = 1, night_sd: float = 0.2) -> DriftCell:
    reference = f"21 reference nights, night shocks of {night_sd:g} sd, night null"
    return DriftCell(
        world=f"{reference}; {what}", reference_nights=21, night_sd=night_sd, change=change, live_nights=live_nights,
        promised=False, logs=0.4,
    )  # fmt: skip


CELLS = (
    DriftCell(world="7 reference nights, no night shocks, cluster null", reference_nights=7),
    DriftCell(world="7 reference nights, no night shocks, cluster null, rate .01", reference_nights=7,
              false_alarm_rate=0.01, logs=2.5),
    DriftCell(world="7 reference nights, no night shocks, steps of an episode correlate by .95, cluster null",
              reference_nights=7, correlation=0.95),
    DriftCell(world="7 reference nights, night shocks of .2 sd, cluster null (called optimistic)", reference_nights=7,
              night_sd=0.2, promised=False),
    DriftCell(world="14 reference nights, night shocks of .2 sd, night null", reference_nights=14, night_sd=0.2),
    DriftCell(world="21 reference nights, no night shocks, steps of an episode correlate by .95, night null",
              reference_nights=21, correlation=0.95),
    DriftCell(world="21 reference nights, night shocks of .1 sd, night null", reference_nights=21, night_sd=0.1),
    DriftCell(world=_N21, reference_nights=21, night_sd=0.2),
    DriftCell(world=f"{_N21}, rate .01", reference_nights=21, night_sd=0.2, false_alarm_rate=0.01, logs=2.5),
    DriftCell(world="21 reference nights, night shocks of .3 sd, night null", reference_nights=21, night_sd=0.3),
    DriftCell(world=f"{_N21}; 14 nights since, stretches of them too", reference_nights=21, night_sd=0.2,
              live_nights=14),
    DriftCell(world="28 reference nights, weekends 1 sd higher, night shocks of .1 sd; a Sunday among Sundays",
              reference_nights=28, night_sd=0.1, weekend=1.0, seasonality="weekday"),
    DriftCell(world="28 reference nights, weekends 1 sd higher, night shocks of .1 sd; a Sunday among all days",
              reference_nights=28, night_sd=0.1, weekend=1.0, promised=False),
    DriftCell(world=f"7 reference nights, no night shocks, {_HALF}; hours with their like, cluster null",
              reference_nights=7, rhythm=1.0, live_hours=(0, 12), seasonality="hour"),
    DriftCell(world=f"21 reference nights, night shocks of .2 sd, {_HALF}; hours with their like, night null",
              reference_nights=21, night_sd=0.2, rhythm=1.0, live_hours=(0, 12), seasonality="hour"),
    DriftCell(world=f"21 reference nights, night shocks of .2 sd, {_HALF}, 14 of them; hours with their like, "
              "stretches too", reference_nights=21, night_sd=0.2, rhythm=1.0, live_hours=(0, 12), live_nights=14,
              seasonality="hour"),
    DriftCell(world=f"28 reference nights, weekends 1 sd higher, {_HALF}; hours of a Sunday with hours of Sundays",
              reference_nights=28, night_sd=0.1, weekend=1.0, rhythm=1.0, live_hours=(0, 12),
              seasonality="weekday and hour"),
    DriftCell(world=f"21 reference nights, night shocks of .2 sd, {_HALF}; all hours alike", reference_nights=21,
              night_sd=0.2, rhythm=1.0, live_hours=(0, 12), promised=False, logs=0.5),
    DriftCell(world=f"21 reference nights, night shocks of .2 sd, {_HALF}; mean + 1 sd, hours with their like",
              reference_nights=21, night_sd=0.2, rhythm=1.0, live_hours=(0, 12), seasonality="hour",
              change=Change(shift=1.0), promised=False, logs=0.4),
    DriftCell(world="7 reference nights, no night shocks, cluster null; mean + .3 sd", reference_nights=7,
              change=Change(shift=0.3), promised=False, logs=0.4),
    DriftCell(world="7 reference nights, no night shocks, cluster null; mean + .5 sd", reference_nights=7,
              change=Change(shift=0.5), promised=False, logs=0.4),
    _changed("mean + .5 sd", Change(shift=0.5)),
    _changed("mean + 1 sd", Change(shift=1.0)),
    _changed("mean + 1.5 sd", Change(shift=1.5)),
    _changed("standard deviation x 1.3", Change(spread=1.3)),
    _changed("standard deviation x 1.6", Change(spread=1.6)),
    _changed("5 % of episodes + 4 sd", Change(tail=0.05)),
    _changed("15 % of episodes + 4 sd", Change(tail=0.15)),
    _changed("10 % of rows change their label", Change(label=0.1)),
    _changed("25 % of rows change their label", Change(label=0.25)),
    _changed("correlation of two columns 0 to .6, which no column shows", Change(joint=0.6)),
    _changed("mean + .5 sd, for 14 nights", Change(shift=0.5), live_nights=14),
    _changed("mean + .03 sd more each night, for 14 nights", Change(trend=0.03), live_nights=14),
    _changed("mean + .06 sd more each night, for 14 nights", Change(trend=0.06), live_nights=14),
    DriftCell(world="7 reference nights, no night shocks, cluster null; the whole check, 14 nights since",
              reference_nights=7, live_nights=14, joint=True, logs=0.6),
    DriftCell(world=f"{_N21}; the whole check, 14 nights since", reference_nights=21, night_sd=0.2, live_nights=14,
              joint=True, logs=0.6),
)  # fmt: skip
