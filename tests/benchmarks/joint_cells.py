"""The joint tests on unchanged windows, and where only the correlation of two columns has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from drift.config import DriftConfig
from drift.joint import joint_drift
from tests.drift.worlds import Change, window_of_nights


@dataclass(frozen=True, kw_only=True)
class JointCell:
    """Seven columns of autocorrelated episodes; one live night of 60 episodes; alarms of either test."""

    world: str
    reference_nights: int
    night_sd: float = 0.0
    """Shock that a night's episodes share, in standard deviations."""
    together: float = 0.0
    """Correlation of two columns in the live night, 0 in the reference. The distribution of either stays as it is."""
    false_alarm_rate: float = 0.05
    """Of both tests together."""
    min_psi: float = 0.0
    """0 tests the nulls alone: a smallest size that matters only takes alarms away."""
    promised: bool = True
    """False where the report itself calls the null optimistic, or with a shift."""
    logs: float = 1.0

    @property
    def changed(self) -> bool:
        """Whether an alarm is right."""
        return self.together != 0.0

    def __call__(self, seed: int) -> dict[str, Any]:
        """Whether either test alarms."""
        rng = np.random.default_rng([seed, crc32(self.world.encode())])
        shape = {"episodes_per_night": 60, "night_sd": self.night_sd}
        reference = window_of_nights(rng, n_nights=self.reference_nights, **shape)  # type: ignore[arg-type]
        live = window_of_nights(
            rng, n_nights=1, first_night=self.reference_nights, change=Change(joint=self.together), **shape  # type: ignore[arg-type]
        )  # fmt: skip
        config = DriftConfig(false_alarm_rate=self.false_alarm_rate, min_psi=self.min_psi, seed=seed)
        return {"alarmed": any(test.drifted for test in joint_drift(reference, live, config, self.false_alarm_rate))}


CELLS = (
    JointCell(world="7 reference nights, no night shocks, joint tests by cluster", reference_nights=7),
    JointCell(world="21 reference nights, no night shocks, joint tests by night", reference_nights=21, logs=0.5),
    JointCell(world="21 reference nights, night shocks of .2 sd, joint tests by night", reference_nights=21,
              night_sd=0.2, logs=0.5),
    JointCell(world="7 reference nights, correlation 0 -> .6, joint tests by cluster", reference_nights=7,
              together=0.6, promised=False, logs=0.3),
    JointCell(world="21 reference nights, correlation 0 -> .6, joint tests by night", reference_nights=21,
              together=0.6, promised=False, logs=0.3),
    JointCell(world="21 reference nights, night shocks of .2 sd, correlation 0 -> .6, joint tests by night",
              reference_nights=21, night_sd=0.2, together=0.6, promised=False, logs=0.3),
)  # fmt: skip
