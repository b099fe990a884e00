"""Unchanged windows on which every drift alarm is false, and shifted ones on which it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from drift.config import DriftConfig
from drift.detection import measure_drift
from tests.drift.worlds import window_of_nights


@dataclass(frozen=True, kw_only=True)
class DriftCell:
    """Seven columns of autocorrelated episodes; one live night of 60 episodes."""

    world: str
    reference_nights: int
    night_sd: float = 0.0
    """Shock that a night's episodes share, in standard deviations."""
    shift: float = 0.0
    """Of one column in the live night, in standard deviations."""
    false_alarm_rate: float = 0.05
    min_psi: float = 0.0
    """0 tests the null alone: a smallest size that matters only takes alarms away."""
    promised: bool = True
    """False where the report itself calls the null optimistic, or with a shift."""
    logs: float = 1.0

    def __call__(self, seed: int) -> dict[str, Any]:
        """Whether the live night is called drifted."""
        rng = np.random.default_rng([seed, crc32(self.world.encode())])
        shape = {"episodes_per_night": 60, "night_sd": self.night_sd}
        reference = window_of_nights(rng, n_nights=self.reference_nights, **shape)  # type: ignore[arg-type]
        live = window_of_nights(rng, n_nights=1, first_night=self.reference_nights, shift=self.shift, **shape)  # type: ignore[arg-type]
        config = DriftConfig(false_alarm_rate=self.false_alarm_rate, min_psi=self.min_psi, seed=seed)
        return {"alarmed": measure_drift(reference, live, config).status == "drifted"}


CELLS = (
    DriftCell(world="7 reference nights, no night shocks, cluster null", reference_nights=7),
    DriftCell(world="7 reference nights, no night shocks, cluster null, rate .01", reference_nights=7,
              false_alarm_rate=0.01, logs=2.5),
    DriftCell(world="7 reference nights, night shocks of .2 sd, cluster null (called optimistic)", reference_nights=7,
              night_sd=0.2, promised=False),
    DriftCell(world="21 reference nights, night shocks of .2 sd, night null", reference_nights=21, night_sd=0.2),
    DriftCell(world="7 reference nights, a shift of .5 sd, cluster null", reference_nights=7, shift=0.5,
              promised=False),
)  # fmt: skip
