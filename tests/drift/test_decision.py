from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from scipy import stats

from drift.config import DriftConfig
from drift.decision import LivePerformance, RetrainDecision, cool_down_until, decide_retrain
from drift.detection import measure_drift
from drift.findings import changed_since, missing_data
from drift.records import DriftEffect, DriftReport, JointDrift, SlowDrift, Suspicion
from tests.drift.worlds import window_of_nights

CONFIG = DriftConfig(max_age="30d")


def report(shift: float = 0.0, live_episodes: int = 60) -> DriftReport:
    rng = np.random.default_rng(1)
    reference = window_of_nights(rng, n_nights=4, episodes_per_night=60)
    live = window_of_nights(rng, n_nights=1, episodes_per_night=live_episodes, first_night=4, shift=shift)
    return measure_drift(reference, live, CONFIG)


def decide(drift: DriftReport | None, **options: object) -> RetrainDecision:
    given: dict[str, object] = {"has_champion": True, "champion_age_days": 3.0, **options}
    return decide_retrain(report=drift, config=CONFIG, **given)  # type: ignore[arg-type]


def test_nothing_changed_keeps_the_champion() -> None:
    decision = decide(report())
    assert (decision.retrain, decision.cause, decision.reasons) == (False, "none", ())
    assert decision.sentence.startswith("Keep the champion: none of 7 columns drifted")


def test_no_champion_trains_whatever_else() -> None:
    decision = decide(None, has_champion=False, champion_age_days=None)
    assert (decision.retrain, decision.cause) == (True, "no champion")
    assert decision.sentence == "Retrain: no trained policy has been promoted yet."


def test_drift_is_named_with_its_numbers_and_comes_before_age_and_force() -> None:
    decision = decide(report(shift=1.5), champion_age_days=31.0, forced=True)
    assert (decision.retrain, decision.cause) == (True, "drift")
    assert len(decision.reasons) == 3
    assert "x0 (PSI " in decision.reasons[0]
    assert decision.reasons[1] == "the champion is 31.0 days old, and 30 are allowed"
    assert json.loads(json.dumps(decision.to_json()))["reasons"] == list(decision.reasons)


def test_drift_is_told_with_its_night_and_with_what_it_does_to_the_champion() -> None:
    found = report(shift=1.5)
    columns = tuple(replace(c, since="2026-03-05") if c.name == "x0" else c for c in found.columns)
    effects = (
        DriftEffect(column="x0", share_change=0.1, value_change=-2.0, overlap_change=None, sentence="X0 moves 10 %."),
        DriftEffect(column="x1", share_change=0.0, value_change=0.0, overlap_change=None, sentence="X1 moves nothing."),
    )
    (reason,) = decide(replace(found, columns=columns, effects=effects)).reasons

    assert reason.startswith("1 of 7 columns drifted: x0 (PSI ")
    assert " allowed, since 2026-03-05); what it does to the champion: X0 moves 10 % (false-alarm rate 0.01, " in reason
    assert "X1" not in reason


def test_joint_and_slow_drift_alone_are_drift() -> None:
    joint = JointDrift(
        method="classifier",
        status="drifted",
        reason="",
        statistic=0.71,
        threshold=0.56,
        columns=(("x0", 0.8), ("x3", 0.2)),
    )
    slow = SlowDrift(name="x2", since="2026-02-20", n_nights=9, psi=0.03, threshold=0.021, p_value=0.001)
    still = report()

    by_joint = decide(replace(still, joint=(joint, replace(joint, method="mmd", status="stable"))))
    by_both = decide(replace(still, joint=(replace(joint, method="mmd"),), slow=(slow,)))

    assert (by_joint.retrain, by_joint.cause) == (True, "drift")
    assert "a classifier's area under the curve is 0.710 (0.560 allowed), most by x0, x3" in by_joint.sentence
    assert "columns drifted" not in by_joint.sentence
    assert (
        "squared maximum mean discrepancy 0.71 (0.56 allowed), most by x0, x3; moved slowly: x2 over 9 nights since "
        "2026-02-20 (PSI 0.030, 0.021 allowed)" in by_both.sentence
    )


def test_the_new_world_begins_where_everything_that_drifted_says_so() -> None:
    found = report(shift=1.5)
    slow = SlowDrift(name="x2", since="2026-02-20", n_nights=9, psi=0.03, threshold=0.021, p_value=0.001)

    def since(*dates: str | None) -> DriftReport:
        first, *rest = found.columns
        dated = [replace(c, status="drifted", since=s) for c, s in zip(rest, dates, strict=False)]
        return replace(found, columns=(replace(first, status="stable"), *dated), slow=(slow,))

    assert changed_since(since("2026-03-05", "2026-03-04")) == "2026-03-04"
    assert changed_since(since("2026-03-05", None)) is None
    assert changed_since(replace(report(), slow=(slow,))) == "2026-02-20"
    assert changed_since(report()) is None


NIGHT = {"night": date(2026, 3, 7), "trained": date(2026, 3, 5)}


@pytest.mark.parametrize(
    ("cool_down", "cause"), [("1d", "drift"), ("2d", "drift"), ("49h", "cool-down"), ("3d", "cool-down")]
)
def test_a_cool_down_is_counted_in_whole_nights(cool_down: str, cause: str) -> None:
    config = CONFIG.model_copy(update={"cool_down": cool_down})
    found = decide_retrain(has_champion=True, report=report(shift=1.5), champion_age_days=3.0, config=config, **NIGHT)  # type: ignore[arg-type]
    assert found.cause == cause


def test_a_night_that_cools_down_says_until_when_and_although_what() -> None:
    config = CONFIG.model_copy(update={"cool_down": "3d"})
    given: dict[str, object] = {"has_champion": True, "report": report(shift=1.5), "config": config, **NIGHT}
    found = decide_retrain(**given, champion_age_days=40.0)  # type: ignore[arg-type]

    assert (found.retrain, found.cause, len(found.reasons)) == (False, "cool-down", 2)
    assert found.sentence.startswith(
        "Keep the champion: cooling down until the night of 2026-03-08 after the training of 2026-03-05, although 1 of "
        "7 columns drifted: x0 (PSI "
    )
    assert "the champion is 40.0 days old" in found.sentence
    assert found.sentence.endswith("`offline-dqn nightly --force-train` does not wait.")
    forced = decide_retrain(**given, champion_age_days=3.0, forced=True)  # type: ignore[arg-type]
    assert (forced.retrain, forced.cause) == (True, "drift")  # what follows from drift still does
    first = decide_retrain(**{**given, "has_champion": False, "report": None}, champion_age_days=None)  # type: ignore[arg-type]
    assert (first.retrain, first.cause) == (True, "no champion")
    quiet = decide_retrain(**{**given, "report": report()}, champion_age_days=3.0)  # type: ignore[arg-type]
    assert quiet.cause == "none"  # nothing waits
    assert cool_down_until(None, config) is None


def suspicious(shift: float = 1.5) -> DriftReport:
    sentence = "the shift of x0 is confined to b.jsonl"
    where = Suspicion(kind="few sources", column="x0", where=("b.jsonl",), share=0.1, sentence=sentence)
    return replace(report(shift=shift), suspicions=(where,))


def test_a_suspicion_waits_for_a_person_who_is_told_how_to_go_on() -> None:
    found = decide(suspicious(), champion_age_days=40.0)

    assert (found.retrain, found.cause, len(found.reasons)) == (False, "suspicious", 2)
    assert found.sentence.startswith(
        "Wait for a person: the shift of x0 is confined to b.jsonl. Held: 1 of 7 columns drifted: x0 (PSI "
    )
    assert "`offline-dqn nightly --force-train` goes on" in found.sentence
    assert "`offline-dqn erase --episode ID`" in found.sentence
    assert decide(suspicious(0.0)).cause == "suspicious"  # reward against outcome needs no drift
    after_looking = decide(suspicious(), forced=True)
    assert (after_looking.retrain, after_looking.cause) == (True, "drift")
    assert "although it looks suspicious: the shift of x0 is confined to b.jsonl" in after_looking.sentence


def test_a_suspicion_comes_before_a_cool_down_and_may_be_configured_away() -> None:
    config = CONFIG.model_copy(update={"cool_down": "3d", "on_suspicion": "hold"})
    given: dict[str, object] = {"has_champion": True, "champion_age_days": 3.0, **NIGHT}
    held = decide_retrain(**given, report=suspicious(), config=config)  # type: ignore[arg-type]
    goes_on = CONFIG.model_copy(update={"on_suspicion": "retrain"})
    trained = decide_retrain(**given, report=suspicious(), config=goes_on)  # type: ignore[arg-type]
    quiet = decide_retrain(**given, report=suspicious(0.0), config=goes_on)  # type: ignore[arg-type]

    assert held.cause == "suspicious"
    assert (trained.retrain, trained.cause) == (True, "drift")
    assert "although it looks suspicious" in trained.sentence
    assert (quiet.retrain, quiet.cause) == (False, "none")
    assert quiet.sentence.endswith("; it looks suspicious, though: the shift of x0 is confined to b.jsonl.")


def test_what_is_missing_is_told_with_when_it_will_be_there() -> None:
    few = report(live_episodes=12)  # of the 30 it takes, in one night
    three = CONFIG.model_copy(update={"live_nights": 3})
    assert missing_data(few, CONFIG) == (
        "not enough data: the live window holds 12 episodes, and it takes 30; a night brings about 12, so set [drift] "
        "live_nights = 3 to judge as many nights together"
    )
    assert missing_data(few, three).endswith("a night brings about 12, so 3 nights are enough, 2 from now")
    small = replace(report(), reference_episodes=20, sentence="Not enough data: the reference holds 20.")
    assert "`offline-dqn nightly --force-train` trains a successor that is judged on more" in missing_data(
        small, CONFIG
    )
    few_clusters = replace(
        report(), unit=None, n_units=None, sentence="Not enough data: the reference holds 5 clusters."
    )
    assert "--force-train` once the lake holds 14 nights" in missing_data(few_clusters, CONFIG)
    decision = decide(None, nothing_to_compare="the night of 2026-03-07 is still going on")
    assert decision.sentence == "Keep the champion: the night of 2026-03-07 is still going on."


def test_age_alone_and_force_alone_suffice() -> None:
    assert decide(report(), champion_age_days=30.0).cause == "age"
    assert decide(report(), forced=True).cause == "forced"


@pytest.mark.parametrize("drift", [None, report(live_episodes=5)])
def test_not_enough_data_is_a_result_of_its_own(drift: DriftReport | None) -> None:
    decision = decide(drift)
    assert (decision.retrain, decision.cause) == (False, "not enough data")
    assert decide(drift, champion_age_days=40.0).cause == "age"


def test_broken_promise_is_a_cause_and_says_by_how_much() -> None:
    broken = LivePerformance(promised_low=-10.0, live_mean=-13.0, live_standard_error=1.0, n_episodes=100)
    decision = decide(report(), performance=broken)
    assert (decision.retrain, decision.cause) == (True, "performance")
    # -13 + 2.3646 * 1, the 99 % quantile of Student's t with 99 degrees of freedom
    assert "earned -13 on average, at most -10.64" in decision.sentence
    assert "promised at least -10" in decision.sentence


def test_a_broken_promise_is_a_reason_beside_the_nights_own() -> None:
    decision = decide(report(), broken_promise="release 3 broke its promise")

    assert (decision.retrain, decision.cause) == (True, "performance")
    assert decision.reasons == ("release 3 broke its promise",)
    assert decision.sentence == "Retrain: release 3 broke its promise."


@pytest.mark.parametrize(("live_mean", "n_episodes"), [(-12.0, 100), (-13.0, 29)])
def test_a_promise_within_noise_or_on_few_episodes_is_not_broken(live_mean: float, n_episodes: int) -> None:
    kept = LivePerformance(promised_low=-10.0, live_mean=live_mean, live_standard_error=1.0, n_episodes=n_episodes)
    assert decide(report(), performance=kept).cause == "none"


@pytest.mark.parametrize(("rate", "n"), [(0.01, 30), (0.05, 30), (0.001, 200)])
def test_upper_bound_is_students(rate: float, n: int) -> None:
    bound = LivePerformance(promised_low=0.0, live_mean=0.0, live_standard_error=1.0, n_episodes=n).live_upper(rate)
    assert bound == pytest.approx(stats.t(n - 1).ppf(1 - rate), abs=2e-3)
