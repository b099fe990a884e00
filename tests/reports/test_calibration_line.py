"""Which line of the calibration a report quotes, and when it says that none fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from reports.calibration_line import CalibratedWorld, fitting_line, line_of, shipped_worlds
from reports.deciding import Deciding
from reports.evaluate_config import AssessmentConfig
from reports.gate import GateConfig
from reports.records import CalibrationLine
from tests.reports.worlds import evaluate_trial, greedy, make_trial, simulate, small_world

TAXI = CalibratedWorld(
    world="Taxi", candidate="worse: 40% uniform", estimator="dr", horizon=25.0, n_episodes=500, overlap=0.3, level=0.05,
    n_logs=1_000, false_pass=0.012, upper=0.02, held=True, power=0.93, better="better: 20% uniform",
)  # fmt: skip
BANDIT = replace(TAXI, world="one step", horizon=1.0, n_episodes=400, overlap=0.7, power=None)
DAY = replace(TAXI, world="a day", estimator="drl", horizon=288.0, n_episodes=150, overlap=None)


def line(**changes: Any) -> CalibrationLine:
    usual: dict[str, Any] = {
        "horizon": 22.0, "n_episodes": 600, "overlap": 0.4, "estimator": "dr", "level": 0.05,
        "worlds": (BANDIT, TAXI, DAY),
    }  # fmt: skip
    return fitting_line(**usual | changes)


def test_the_nearest_world_is_quoted_with_its_numbers() -> None:
    found = line()
    assert found.fits
    assert found.text == (
        "In worlds like this (H about 25, 500 episodes), worse candidates passed in 1.2% of 1,000 logs at a stated 5%; "
        "better ones in 93%."
    )
    assert (found.world, found.false_pass, found.power) == ("Taxi; worse: 40% uniform", 0.012, 0.93)


def test_where_no_better_candidate_was_tried_nothing_is_said_of_power() -> None:
    assert line(horizon=1.0, overlap=0.8).text.endswith("of 1,000 logs at a stated 5%.")


@pytest.mark.parametrize(
    "changes", [{"horizon": 90.0}, {"n_episodes": 120}, {"n_episodes": 5_000}, {"overlap": 0.05}, {"estimator": "drl"}]
)
def test_outside_the_calibrated_range_no_number_is_quoted(changes: dict[str, Any]) -> None:
    found = line(**changes)
    assert not found.fits
    assert found.false_pass is None
    assert found.text.startswith("No calibrated world is like this one (H about ")
    assert "was not measured" in found.text


def test_better_overlap_than_calibrated_still_fits() -> None:
    assert line(overlap=1.0).fits


def test_the_calibrated_range_is_named() -> None:
    assert "Calibrated are 1 to 25 steps, 400 to 500 episodes and effective samples from 30%" in line(horizon=90.0).text
    assert line(estimator="magic").text.endswith("No calibrated world was decided by it.")


def test_among_equals_the_same_level_is_preferred() -> None:
    strict = replace(TAXI, level=0.01, false_pass=0.004)
    assert line(worlds=(TAXI, strict), level=0.01).false_pass == 0.004
    assert line(worlds=(TAXI, strict), level=0.05).false_pass == 0.012


def test_a_level_that_is_not_held_is_said_so() -> None:
    broken = replace(TAXI, false_pass=0.09, upper=0.11, held=False)
    assert line(worlds=(broken,)).text.endswith("That level is not shown to be held: the rate may be up to 11.0%.")


def test_where_nothing_decides_no_rate_applies() -> None:
    assert line(estimator=None).text == "Nothing decides here, so no calibrated error rate applies."


def test_an_evaluation_is_likened_by_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    world = small_world()
    log = simulate(world, np.full((4, 2), 0.5), 300, np.random.default_rng(0))
    trial = make_trial(world, log, np.full((4, 2), 0.5), greedy(world, 0.6))
    evaluation = evaluate_trial(trial, AssessmentConfig(n_replicates=2_000), GateConfig(alpha=0.05), 0)
    size = evaluation.overlaps[0].effective_sample_size / 300
    like = replace(TAXI, horizon=evaluation.counts.mean_length, n_episodes=300, overlap=size * 0.9)
    monkeypatch.setattr("reports.calibration_line.shipped_worlds", lambda: (DAY, like))
    found = line_of(evaluation)
    assert (found.fits, found.n_episodes, found.horizon) == (True, 300, evaluation.counts.mean_length)


def test_what_is_shipped_can_be_read_and_has_rows_for_both_deciding_estimators() -> None:
    worlds = shipped_worlds()

    assert {world.estimator for world in worlds} == set(get_args(Deciding)), "reports/calibration.json: make calibrate"
    for world in worlds:
        assert world.n_logs > 0, world
        assert 0 <= world.false_pass <= world.upper <= 1, world
