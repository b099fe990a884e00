"""A promotion with unchanged traffic, after which every drift alarm is false, and one with a world that changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from datasets.replay import Replay
from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.windows import DriftWindow, window_from_replay
from pipelines.live_nights import weights_to
from reports.drift_columns import dynamics_columns, episode_columns, policy_columns
from reports.dynamics_models import DynamicsModels, fit_dynamics
from tests.reports.promotion_world import Leaning, logged

_LOGGER, _PROMOTED = Leaning(-0.3), Leaning(-1.1, 0.5)


@dataclass(frozen=True, kw_only=True)
class PromotionCell:
    """Episodes of 6 steps, 60 a night; the promoted policy wrote the live night, another one its `gate` episodes."""

    world: str
    gate_nights: int
    own_nights: int = 0
    """Nights of its own that the promoted policy has as a reference."""
    night_sd: float = 0.0
    """Shock of the weather that a night's episodes share, in standard deviations."""
    push: float = 0.5
    """By how much an action moves the load in the live night; .5 before."""
    false_alarm_rate: float = 0.05
    min_psi: float = 0.0
    """0 tests the null alone: a smallest size that matters only takes alarms away."""
    promised: bool = True
    """False where the report itself calls the null optimistic, or with a change."""
    logs: float = 0.5

    @property
    def changed(self) -> bool:
        """Whether an alarm is right."""
        return self.push != 0.5

    def __call__(self, seed: int) -> dict[str, Any]:
        """Whether the live night is called drifted."""
        rng = np.random.default_rng([seed, crc32(self.world.encode())])
        shape: dict[str, Any] = {"per_night": 60, "night_sd": self.night_sd}
        train = logged(rng, _LOGGER, n_nights=self.gate_nights, **shape)
        gate = logged(rng, _LOGGER, n_nights=self.gate_nights, **shape)
        first = self.gate_nights
        models = fit_dynamics(train, seed=seed)
        references = [_window(gate, models, 3 * seed, weights_to(_PROMOTED, gate))]
        if self.own_nights:
            own = logged(rng, _PROMOTED, n_nights=self.own_nights, first_night=first, version="1", **shape)
            references.append(_window(own, models, 3 * seed + 1))
        live = logged(
            rng, _PROMOTED, n_nights=1, first_night=first + self.own_nights, version="1", push=self.push, **shape
        )
        config = DriftConfig(false_alarm_rate=self.false_alarm_rate, min_psi=self.min_psi, seed=seed)
        report = measure_drift(references, _window(live, models, 3 * seed + 2), config)
        return {"alarmed": report.status == "drifted"}


def _window(
    replay: Replay, models: DynamicsModels, seed: int, weights: NDArray[np.float64] | None = None
) -> DriftWindow:
    base = window_from_replay(replay, weights)
    more = (
        episode_columns(replay)
        | policy_columns(_PROMOTED, replay, acting=_PROMOTED)
        | dynamics_columns(models, replay, seed=seed)
    )
    return replace(base, columns={**base.columns, **more})


CELLS = (
    PromotionCell(world="promotion, unchanged traffic, 7 gate nights", gate_nights=7),
    PromotionCell(world="promotion, unchanged traffic, 21 gate nights", gate_nights=21),
    PromotionCell(world="promotion, unchanged traffic, 21 gate nights with shocks of .2 sd", gate_nights=21,
                  night_sd=0.2),
    PromotionCell(world="promotion, unchanged traffic, 21 gate and 14 own nights", gate_nights=21, own_nights=14),
    PromotionCell(world="promotion, actions no longer move the load, 7 gate nights", gate_nights=7, push=0.0,
                  promised=False, logs=0.2),
    PromotionCell(world="promotion, actions no longer move the load, 21 gate nights", gate_nights=21, push=0.0,
                  promised=False, logs=0.2),
)  # fmt: skip
