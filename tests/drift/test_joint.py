from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.joint import joint_drift, with_joint
from drift.joint_rows import joint_rows
from drift.separation import area_by_cluster
from drift.windows import DriftColumn, DriftWindow
from tests.drift.worlds import UNCHANGED, Change, one_column, window_of_nights

CONFIG = DriftConfig(false_alarm_rate=0.05)
TOGETHER = Change(joint=0.8)


def window(seed: int, *, n_nights: int, first_night: int = 0, change: Change = UNCHANGED) -> DriftWindow:
    rng = np.random.default_rng(seed)
    return window_of_nights(rng, n_nights=n_nights, episodes_per_night=60, first_night=first_night, change=change)


@pytest.fixture(scope="module")
def week() -> DriftWindow:
    return window(0, n_nights=7)


def test_area_and_its_variance_on_four_rows() -> None:
    # Live 2 and 3 against reference 1 and 2: of four pairs three are won and one is tied, (3 + 1/2) / 4. Placements:
    # live .75 and 1, reference 1 and .75; each side's variance of the mean is (.125^2 + .125^2) / 2^2 * 2 / 1.
    area, variance = area_by_cluster(
        np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1]), np.ones(4), np.array([0, 1, 0, 1])
    )
    assert area == pytest.approx(0.875)
    assert variance == pytest.approx(2 * (2 * 0.125**2 / 4 * 2))


def test_rows_of_a_cluster_count_together() -> None:
    scores, side = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    twice = [np.repeat(values, 2) for values in (scores, side, np.ones(4), np.array([0, 1, 0, 1]))]
    assert area_by_cluster(*twice) == pytest.approx(area_by_cluster(scores, side, np.ones(4), np.array([0, 1, 0, 1])))


def test_unchanged_night_is_stable_and_called_optimistic_without_enough_nights(week: DriftWindow) -> None:
    tests = joint_drift(week, window(1, n_nights=1, first_night=7), CONFIG, 0.05)
    assert [test.method for test in tests] == ["classifier", "mmd"]
    assert all(test.status == "stable" for test in tests)
    assert all("optimistic" in test.reason for test in tests)


def test_columns_that_move_together_alarm_though_none_moves_alone(week: DriftWindow) -> None:
    live = window(1, n_nights=1, first_night=7, change=TOGETHER)
    alone = measure_drift(week, live, CONFIG)
    assert alone.status == "stable"
    report = with_joint(alone, week, live, CONFIG)
    assert report.status == "drifted"
    classifier, pairs = report.joint
    assert pairs.drifted
    assert pairs.statistic is not None
    assert pairs.threshold is not None
    assert pairs.statistic > pairs.threshold
    assert "what pairs of columns do together differs" in report.sentence.lower()
    if classifier.drifted:
        assert {name for name, _ in classifier.columns[:2]} <= {"x0", "x1", "busy"}


def test_null_of_nights_is_used_once_there_are_enough() -> None:
    reference = window(0, n_nights=14)
    tests = joint_drift(reference, window(1, n_nights=1, first_night=14), CONFIG, 0.05)
    assert all(test.status == "stable" and not test.reason for test in tests)
    alarmed = joint_drift(reference, window(1, n_nights=1, first_night=14, change=Change(shift=2.5)), CONFIG, 0.05)
    assert alarmed[0].drifted
    assert alarmed[0].columns[0][0] == "x0"


def test_weighted_reference_stands_for_what_acts_now(week: DriftWindow) -> None:
    # Episodes with a high x0 come three times as often, as if another policy had acted: weights say so.
    high = np.bincount(week.episode_of_row, week.columns["x0"].values) > 0
    rng = np.random.default_rng(3)
    live = window(5, n_nights=4, first_night=7)
    live_high = np.bincount(live.episode_of_row, live.columns["x0"].values) > 0
    live = live.subset(live_high | (rng.random(live.n_episodes) < 1 / 3))
    assert any(test.drifted for test in joint_drift(week, live, CONFIG, 0.05))
    weighted = replace(week, weights=np.where(high, 3.0, 1.0)[week.episode_of_row])
    assert not any(test.drifted for test in joint_drift(weighted, live, CONFIG, 0.05))


def test_difference_that_does_not_matter_is_no_alarm(week: DriftWindow) -> None:
    live = window(1, n_nights=1, first_night=7, change=TOGETHER)
    indifferent = joint_drift(week, live, DriftConfig(min_psi=50.0), 0.05)
    assert not any(test.drifted for test in indifferent)
    assert "below" in indifferent[1].reason


def test_missing_values_new_labels_and_long_vectors_are_compared() -> None:
    rng = np.random.default_rng(0)

    def made(labels: tuple[str, ...], missing: float) -> DriftWindow:
        n = 1200
        number = np.where(rng.random(n) < missing, np.nan, rng.standard_normal(n))
        columns = {
            "number": DriftColumn("numeric", number),
            "vector": DriftColumn("vector", rng.standard_normal((n, 40))),
            "label": DriftColumn("categorical", rng.integers(-1, len(labels), n), labels),
            "return": DriftColumn("numeric", np.zeros(60), role="episode", rows=np.arange(60) * 20),
        }
        night = np.full(60, np.datetime64("2026-03-01"))
        return DriftWindow(columns, np.repeat(np.arange(60), 20), np.arange(60), night)

    reference = made(("a", "b"), 0.1)
    rows = joint_rows(reference, made(("b", "c"), 0.5), most_rows=10_000, seed=0)
    assert rows.names == ("number",) + ("vector",) * 17 + ("label",) * 4
    assert rows.live.values[:, -2].sum() > 200  # "c" is none of the reference's labels, and shares the others' number
    assert all(not test.drifted for test in joint_drift(reference, made(("a", "b"), 0.1), CONFIG, 0.05))
    assert joint_drift(reference, made(("b", "c"), 0.5), CONFIG, 0.05)[0].drifted


def test_large_cells_leave_room_for_the_others() -> None:
    # 60 clusters, one of 41,000 rows: of the 41,590 rows over the limit of 40,000 each cell gives at most 40,000 / 60.
    def made(sizes: list[int], seed: int) -> DriftWindow:
        n = sum(sizes)
        column = DriftColumn("numeric", np.random.default_rng(seed).standard_normal(n))
        night = np.full(len(sizes), np.datetime64("2026-03-01"))
        return DriftWindow({"a": column}, np.repeat(np.arange(len(sizes)), sizes), np.arange(len(sizes)), night)

    reference, live = made([41_000] + [10] * 59, 0), made([2_000] + [10] * 59, 1)
    rows = joint_rows(reference, live, most_rows=40_000, seed=0)
    for side in (rows.reference, rows.live):
        assert np.bincount(side.cell).tolist() == [666] + [10] * 59
    whole = joint_rows(live, live, most_rows=40_000, seed=0)
    assert np.array_equal(whole.reference.values[:, 0], live.columns["a"].values)


def test_too_little_is_said(week: DriftWindow) -> None:
    few = week.subset(np.arange(week.n_episodes) < 10)
    assert "the live window holds 10 episodes, and it takes 30" in joint_drift(week, few, CONFIG, 0.05)[0].reason
    assert "the reference holds 10 episodes" in joint_drift(few, week, CONFIG, 0.05)[1].reason
    one = one_column(DriftColumn("numeric", np.random.default_rng(0).standard_normal(500)))
    classifier, pairs = joint_drift(one, one, CONFIG, 0.05)
    assert classifier.status == "stable"
    assert pairs.status == "not enough data"
    assert "it takes two to move together" in pairs.reason
    none = joint_drift(replace(one, columns={}), one, CONFIG, 0.05)
    assert "share no feature, action or reward" in none[0].reason
    with pytest.raises(ValueError, match="only the reference is weighted"):
        joint_drift(week, replace(week, weights=np.ones(week.n_rows)), CONFIG, 0.05)
    light = replace(week, weights=(week.episode_of_row == 0).astype(float))
    assert "episodes are worth 1.0, and it takes 30" in joint_drift(light, week, CONFIG, 0.05)[0].reason


def test_same_windows_give_the_same_bits(week: DriftWindow) -> None:
    live = window(1, n_nights=1, first_night=7)
    assert joint_drift(week, live, CONFIG, 0.05) == joint_drift(week, live, CONFIG, 0.05)


def test_weekdays_apart_leave_no_joint_test() -> None:
    rng = np.random.default_rng(0)
    reference = window_of_nights(rng, n_nights=7, episodes_per_night=30)
    live = window_of_nights(rng, n_nights=1, episodes_per_night=30, first_night=7)
    for test in joint_drift(reference, live, DriftConfig(seasonality="weekday"), 0.05):
        assert test.status == "not enough data"
        assert test.reason == "the joint tests compare nights of all kinds, and seasonality = 'weekday'"
