"""Flags, labels and missing values that come once in hundreds of episodes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.rare import has_a_say
from drift.windows import DriftColumn, DriftWindow


def test_a_slot_counts_from_more_units_than_chance_brings() -> None:
    # 99 cells without the flag say about 1 in 100; of 50 live cells half a one is expected: P(N >= 1, 2, 3) is
    # .39, .09, .014 and P(N >= 4) .0018.
    assert stats.poisson(0.5).sf([2, 3]) == pytest.approx([0.0144, 0.00175], rel=0.01)
    for live, counts in ((0, False), (1, False), (3, False), (4, True)):
        found = has_a_say(np.array([live]), np.array([0]), n_live=50, n_reference=99, rate=0.01)
        assert found.tolist() == [counts], live
    assert has_a_say(np.array([0]), np.array([5]), n_live=50, n_reference=99, rate=0.01).tolist() == [True]


def flags(rng: np.random.Generator, n: int, rate: float, nights: int, first: int = 0) -> DriftWindow:
    """Five independent flags and a value that is missing as rarely, one step an episode."""
    columns = {f"flag{j}": DriftColumn("boolean", (rng.random(n) < rate).astype(float)) for j in range(5)}
    columns["x"] = DriftColumn("numeric", np.where(rng.random(n) < rate, np.nan, rng.standard_normal(n)))
    night = first + np.arange(n) * nights // n
    return DriftWindow(columns, np.arange(n), np.arange(n), np.datetime64("2026-03-01") + night)


@pytest.mark.parametrize(("n_reference", "nights"), [(400, 5), (1500, 15)])
def test_rare_flags_do_not_alarm_and_frequent_ones_do(n_reference: int, nights: int) -> None:
    rng = np.random.default_rng(nights)
    alarms = 0
    for _ in range(60):
        reference = flags(rng, n_reference, 0.002, nights)
        live = flags(rng, 100, 0.002, 1, first=nights)
        alarms += measure_drift(reference, live, DriftConfig()).status == "drifted"
    assert alarms <= 3  # the columns' rate is .5 %: P(more) is 3e-4
    many = flags(rng, 100, 0.12, 1, first=nights)
    report = measure_drift(flags(rng, n_reference, 0.002, nights), many, DriftConfig())
    assert len(report.drifted_columns) == 6, report.sentence


def test_a_column_held_back_says_why() -> None:
    rng = np.random.default_rng(4)
    reference, live = flags(rng, 400, 0.0, 5), flags(rng, 100, 0.0, 1, first=5)
    two = np.zeros(100)
    two[:2] = 1.0
    columns = {**live.columns, "flag0": DriftColumn("boolean", two)}
    flag = measure_drift(
        reference, DriftWindow(columns, live.episode_of_row, live.clusters, live.nights), DriftConfig()
    )
    assert flag.columns[0].status == "stable"
    assert flag.columns[0].reason == "only beyond what is allowed by values so rare that chance may bring them"
