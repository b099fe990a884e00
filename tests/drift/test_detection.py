from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from datasets.settings import SettingsError, build_settings
from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.windows import DriftColumn, DriftWindow
from tests.drift.worlds import one_column, window_of_nights

CONFIG = DriftConfig()


def only(window: DriftWindow, live: DriftWindow, config: DriftConfig = CONFIG):  # type: ignore[no-untyped-def]
    (column,) = measure_drift(window, live, config).columns
    return column


def numeric(values: np.ndarray, **options: bool) -> DriftColumn:
    return DriftColumn("numeric", values, **options)


def test_report_holds_numbers_for_every_column_and_no_nan() -> None:
    rng = np.random.default_rng(0)
    reference = window_of_nights(rng, n_nights=5, episodes_per_night=60)
    live = window_of_nights(rng, n_nights=1, episodes_per_night=60, first_night=5, shift=1.0)
    report = measure_drift(reference, live, CONFIG)
    assert [column.name for column in report.columns] == list(reference.columns)
    assert (report.status, report.unit, report.n_units, report.optimistic) == ("drifted", "cluster", 300, True)
    x0 = report.columns[0]
    assert x0.drifted
    assert x0.wasserstein == pytest.approx(1.0, abs=0.3)
    assert sum(x0.reference_probs) == pytest.approx(1.0)
    assert len(x0.bins) == len(x0.live_probs) == len(x0.reference_probs)
    assert report.drifted_columns[0] is x0
    assert "x0 (PSI " in report.sentence
    assert "optimistic before 14 nights" in report.sentence
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["columns"][0]["status"] == "drifted"


def test_same_seed_same_report() -> None:
    rng = np.random.default_rng(1)
    reference = window_of_nights(rng, n_nights=3, episodes_per_night=30)
    live = window_of_nights(rng, n_nights=1, episodes_per_night=30, first_night=3)
    assert measure_drift(reference, live, CONFIG) == measure_drift(reference, live, CONFIG)


def test_constant_feature_that_moves_is_drift_and_one_that_stays_is_not() -> None:
    constant = one_column(numeric(np.full(1000, 5.0)))
    assert only(constant, constant).psi == 0.0
    moved = only(constant, one_column(numeric(np.full(1000, 5.5))))
    assert moved.drifted
    assert moved.live_probs[moved.bins.index("> 5")] == 1.0


def test_all_missing_live_is_drift_with_its_share_named() -> None:
    values = np.random.default_rng(2).standard_normal(1000)
    column = only(one_column(numeric(values)), one_column(numeric(np.full(1000, np.nan))))
    assert column.drifted
    assert column.wasserstein is None
    assert (column.reference_missing_share, column.live_missing_share) == (0.0, 1.0)


def test_missing_on_both_sides_is_no_drift() -> None:
    empty = one_column(numeric(np.full(1000, np.nan)))
    assert only(empty, empty).status == "stable"


def test_new_category_is_drift_and_vocabularies_are_matched_by_label() -> None:
    codes = np.random.default_rng(3).integers(0, 2, 1000)
    reference = one_column(DriftColumn("categorical", codes, ("a", "b")))
    reordered = one_column(DriftColumn("categorical", 1 - codes, ("b", "a")))
    assert only(reference, reordered).psi == pytest.approx(0.0, abs=1e-12)
    with_new = np.where(np.arange(1000) % 5 == 0, 2, codes)
    column = only(reference, one_column(DriftColumn("categorical", with_new, ("a", "b", "c"))))
    assert column.drifted
    assert column.unseen_share == pytest.approx(0.2)


def test_boolean_keeps_both_labels_when_the_reference_saw_one() -> None:
    reference = one_column(DriftColumn("boolean", np.zeros(1000)))
    column = only(reference, one_column(DriftColumn("boolean", (np.arange(1000) % 4 == 0).astype(float))))
    assert column.bins[:2] == ("false", "true")
    assert column.drifted
    assert column.unseen_share == 0.0


def test_vector_is_compared_by_norm_and_component() -> None:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((2000, 3))
    moved = rng.standard_normal((2000, 3)) + np.array([0.0, 2.0, 0.0])
    report = measure_drift(one_column(DriftColumn("vector", values)), one_column(DriftColumn("vector", moved)), CONFIG)
    assert [column.name for column in report.columns] == ["x.norm", "x[0]", "x[1]", "x[2]"]
    assert {column.name for column in report.drifted_columns} == {"x.norm", "x[1]"}


def test_significant_but_small_is_no_drift() -> None:
    rng = np.random.default_rng(5)
    values = rng.standard_normal(40_000)
    reference = one_column(numeric(values), n_episodes=40_000)
    live = one_column(numeric(rng.standard_normal(40_000) + 0.1), n_episodes=40_000)
    column = only(reference, live)
    assert column.status == "stable"
    assert column.p_value is not None
    assert column.p_value <= 0.01
    assert column.reason == "beyond chance, but PSI is below 0.02"
    assert only(reference, live, DriftConfig(min_psi=0.0)).drifted


def test_empty_and_tiny_live_windows_are_not_enough_data() -> None:
    rng = np.random.default_rng(6)
    reference = window_of_nights(rng, n_nights=3, episodes_per_night=30)
    few = window_of_nights(rng, n_nights=1, episodes_per_night=5)
    assert measure_drift(reference, few, CONFIG).sentence == (
        "Not enough data: the live window holds 5 episodes, and it takes 30."
    )
    none = {name: replace(column, values=column.values[:0]) for name, column in reference.columns.items()}
    nobody = np.zeros(0, dtype=np.int64)
    report = measure_drift(reference, DriftWindow(none, nobody, nobody, np.zeros(0, "datetime64[D]")), CONFIG)
    assert report.status == "not enough data"
    assert {column.status for column in report.columns} == {"not enough data"}
    json.dumps(report.to_json(), allow_nan=False)


def test_a_column_that_one_window_lacks_is_not_judged() -> None:
    rng = np.random.default_rng(7)
    window = window_of_nights(rng, n_nights=2, episodes_per_night=40)
    more = replace(window, columns={**window.columns, "new": numeric(np.zeros(window.n_rows))})
    report = measure_drift(window, more, CONFIG)
    assert report.status == "stable"
    assert report.columns[-1].status == "not enough data"
    assert report.columns[-1].reason == "only the live window has this column"


def test_few_clusters_are_not_enough_before_there_are_nights() -> None:
    window = window_of_nights(np.random.default_rng(8), n_nights=3, episodes_per_night=30)
    services = replace(window, clusters=window.clusters % 4)
    report = measure_drift(services, window, CONFIG)
    assert report.sentence.startswith("Not enough data: the reference holds 4 clusters of 3 nights")


def test_fewer_rows_than_bins_still_compare() -> None:
    values = np.arange(6.0)
    config = DriftConfig(min_live_episodes=2, n_bins=20)
    window = replace(one_column(numeric(values), n_episodes=6))
    report = measure_drift(window, window, config)
    assert report.status == "not enough data"  # six clusters say nothing of how clusters vary
    window = one_column(numeric(np.arange(12.0)), n_episodes=12)
    assert only(window, window, config).psi == 0.0


def test_kinds_that_differ_and_weighted_live_windows_are_refused() -> None:
    a, b = one_column(numeric(np.zeros(100))), one_column(DriftColumn("boolean", np.zeros(100)))
    with pytest.raises(ValueError, match="'x' is numeric in the reference and boolean in live"):
        measure_drift(a, b, CONFIG)
    with pytest.raises(ValueError, match="only the reference is weighted"):
        measure_drift(a, replace(a, weights=np.ones(100)), CONFIG)


def test_weighted_reference_follows_a_change_of_policy() -> None:
    # The old policy took action 1 in 30 % of episodes, the new one takes it in 60 %; the load that action 1 brings
    # (+1) goes with it. Nothing else changed: compared as it is the reference alarms, weighted it does not.
    rng = np.random.default_rng(9)
    reference, live = _policy_window(rng, 2000, 0.3), _policy_window(rng, 300, 0.6)
    assert {c.name for c in measure_drift(reference, live, CONFIG).drifted_columns} == {"action", "load"}
    action = reference.columns["action"].values
    weighted = replace(reference, weights=np.where(action == 1, 0.6 / 0.3, 0.4 / 0.7))
    report = measure_drift(weighted, live, CONFIG)
    assert report.status == "stable", report.sentence
    assert report.effective_reference_episodes < 2000
    moved = replace(live, columns={**live.columns, "load": numeric(live.columns["load"].values + 0.7)})
    assert [c.name for c in measure_drift(weighted, moved, CONFIG).drifted_columns] == ["load"]


def test_weights_do_not_touch_exogenous_columns() -> None:
    rng = np.random.default_rng(10)
    values = rng.standard_normal(1000)
    weights = np.exp(values)
    plain = one_column(numeric(values, exogenous=True))
    live = one_column(numeric(rng.standard_normal(1000), exogenous=True))
    assert only(replace(plain, weights=weights), live).psi == only(plain, live).psi


def test_weights_that_leave_too_little_are_not_enough_data() -> None:
    window = one_column(numeric(np.zeros(1000)))
    weights = np.where(np.arange(1000) < 10, 1.0, 0.0)
    report = measure_drift(replace(window, weights=weights), window, CONFIG)
    assert "episodes are worth 1.0, and it takes 30" in report.sentence


def test_nights_that_differ_beyond_measure_cannot_tell_and_say_so() -> None:
    # Every night has a level of its own, as far from the others' as its episodes are from each other: of 14 such nights
    # the fifteenth could be anything.
    rng = np.random.default_rng(19)
    night = np.repeat(np.arange(14), 40)
    wild = numeric(rng.normal(size=14)[night] + rng.standard_normal(560))
    calm = numeric(rng.standard_normal(560))
    days = np.datetime64("2026-03-01") + night
    reference = DriftWindow({"wild": wild, "calm": calm}, np.arange(560), np.arange(560), days)
    one = numeric(3.0 + rng.standard_normal(40)), numeric(rng.standard_normal(40))
    nobody = np.arange(40)
    live = DriftWindow({"wild": one[0], "calm": one[1]}, nobody, nobody, np.full(40, days[-1] + 1))

    report = measure_drift(reference, live, CONFIG)

    wild_one, calm_one = report.columns
    assert wild_one.status == "not enough data"
    assert wild_one.reason == "the 14 reference nights differ so much that no shift of it could stand out"
    assert wild_one.threshold is not None
    assert wild_one.threshold > 9.0  # all in one of ten bins: about .9 ln(1e4) + ln 10
    assert (calm_one.status, report.status) == ("stable", "stable")
    assert report.sentence.startswith("None of 1 columns drifted; 1 more vary too much from night to night to tell")
    gone = {"wild": numeric(np.full(40, np.nan)), "calm": one[1]}
    assert measure_drift(reference, replace(live, columns=gone), CONFIG).columns[0].drifted  # that is no shift of it
    alone = measure_drift(replace(reference, columns={"wild": wild}), replace(live, columns={"wild": one[0]}), CONFIG)
    assert alone.sentence.startswith("Not enough data: the 14 reference nights differ so much")


def test_config_explains_itself() -> None:
    assert DriftConfig(max_age="36h").max_age_days == 1.5
    with pytest.raises(SettingsError, match="did you mean 'min_psi'"):
        build_settings(DriftConfig, {"min_psy": 0.1}, "[drift]")
    with pytest.raises(SettingsError, match="it takes 5000"):
        build_settings(DriftConfig, {"false_alarm_rate": 0.001}, "[drift]")
    with pytest.raises(SettingsError, match=r"floor = 0.005 leaves nothing for 202 slots.* may be 0.005 at most"):
        build_settings(DriftConfig, {"floor": 0.005, "n_bins": 100}, "[drift]")


def _policy_window(rng: np.random.Generator, n: int, share: float) -> DriftWindow:
    """Episodes of five steps that keep one action, which raises the load by 1."""
    action = np.repeat((rng.random(n) < share).astype(np.int64), 5)
    level = np.repeat(rng.standard_normal(n), 5)
    columns = {
        "action": DriftColumn("categorical", action, ("wait", "warm")),
        "load": numeric(level + action + 0.3 * rng.standard_normal(5 * n)),
        "season": numeric(rng.standard_normal(5 * n), exogenous=True),
    }
    return DriftWindow(columns, np.repeat(np.arange(n), 5), np.arange(n), np.full(n, np.datetime64("2026-03-01")))
