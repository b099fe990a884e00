from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from reports.assessment import AssessmentConfig
from reports.gate import GateConfig, decide
from reports.records import Estimate, Evaluation, Interval, evaluation_from_json, evaluation_to_json, to_json
from tests.reports.worlds import evaluate_trial, greedy, make_trial, simulate, small_world


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    world, behavior, gate = small_world(), np.full((4, 2), 0.5), GateConfig(alpha=0.05)
    log = simulate(world, behavior, 300, np.random.default_rng(0))
    q = world.q(greedy(world, 0.0))[log.states]
    trial = make_trial(world, log, behavior, greedy(world, 0.6), own_q=q)
    found = evaluate_trial(trial, AssessmentConfig(n_replicates=2000), gate, 0)
    return replace(found, decision=decide(found, gate))


def test_evaluation_survives_json(evaluation: Evaluation) -> None:
    text = json.dumps(evaluation_to_json(evaluation), allow_nan=False)
    assert evaluation_from_json(json.loads(text)) == evaluation


def test_the_decision_can_be_made_again_from_the_stored_evaluation(evaluation: Evaluation) -> None:
    stored = evaluation_from_json(evaluation_to_json(evaluation))
    assert decide(stored, GateConfig(alpha=0.05)) == evaluation.decision


def test_json_holds_nothing_but_plain_values(evaluation: Evaluation) -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(plain(item) for item in value)
        return type(value) in (str, int, float, bool, type(None))

    assert plain(evaluation_to_json(evaluation))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_their_place(value: float) -> None:
    estimate = Estimate("dr", "candidate", 1.0, Interval(0.0, value, 0.95, "bootstrap"), "logged")
    with pytest.raises(ValueError, match=r"Estimate\.interval\.high is (nan|inf)"):
        to_json(estimate)


def test_unknown_and_missing_fields_are_named(evaluation: Evaluation) -> None:
    data = evaluation_to_json(evaluation)
    data["agreement"]["extra"] = 1
    with pytest.raises(ValueError, match=r"evaluation\.agreement: unknown fields \['extra'\]"):
        evaluation_from_json(data)
    data = evaluation_to_json(evaluation)
    del data["gamma"]
    with pytest.raises(ValueError, match=r"missing fields \['gamma'\]"):
        evaluation_from_json(data)
