from __future__ import annotations

from dataclasses import replace

import numpy as np

from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.windows import window_from_replay
from pipelines.live_nights import weights_to
from tests.benchmarks.promotion_cells import PromotionCell
from tests.reports.promotion_world import Leaning, logged


def test_promotion_with_unchanged_traffic_alarms_no_more_often_than_promised() -> None:
    unchanged = PromotionCell(world="unchanged", gate_nights=7)
    # At 5 % each, 3 alarms or more in 8 nights have a chance of .6 %.
    assert sum(unchanged(seed)["alarmed"] for seed in range(8)) < 3


def test_actions_that_no_longer_do_anything_are_found_after_a_promotion() -> None:
    changed = PromotionCell(world="changed", gate_nights=7, push=0.0)
    assert all(changed(seed)["alarmed"] for seed in range(3))


def test_without_weights_the_promotion_itself_would_be_drift() -> None:
    rng, promoted = np.random.default_rng(0), Leaning(-1.1, 0.5)
    gate = logged(rng, Leaning(-0.3), n_nights=7, per_night=60)
    live = window_from_replay(logged(rng, promoted, n_nights=1, per_night=300, first_night=7))
    plain = window_from_replay(gate)
    config = DriftConfig(false_alarm_rate=0.05)
    unweighted = {c.name: c for c in measure_drift(plain, live, config).columns}
    assert unweighted["action"].drifted
    assert not unweighted["observation.weather"].drifted
    weighted = measure_drift(replace(plain, weights=weights_to(promoted, gate)), live, config)
    assert weighted.status == "stable"
