from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from drift.config import DriftConfig
from drift.decision import LivePerformance, RetrainDecision, decide_retrain
from drift.detection import measure_drift
from drift.records import DriftReport
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
