"""Caps whose counter the log lacks: models refuse with the cause, weights follow the logged history."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.observations import Observations
from datasets.replay import GATE, Replay
from reports.records import Evaluation
from reports.uncounted import MODELLED
from tests.reports.test_contract_rules import CANDIDATE, WORLD, evaluated
from tests.reports.test_evaluation import CONTRACT, UNIFORM, make_replay
from tests.reports.worlds import simulate

CAPPED = CONTRACT.replace('names = ["left", "right"]', 'names = ["left", "right"]\nsafe = "right"') + (
    '\n[slices]\ncolumns = ["state"]\n[actions.caps]\nleft = { at_most = 2, per = "1h" }\n'
)


def replay_with(taken_in_state_1: float, n: int = 1_500, *, missing_in_gate: int = 0) -> Replay:
    """Logs of the uniform policy that say so in state 1 and 0 elsewhere, and nothing at the first gate steps."""
    replay = make_replay(simulate(WORLD, UNIFORM, n, np.random.default_rng(1)), UNIFORM, text=CAPPED)
    column = np.where(replay.observations.columns["state"] == 1, taken_in_state_1, 0.0)
    in_gate = np.flatnonzero((replay.split == GATE)[replay.episode_of_step])
    column[in_gate[:missing_in_gate]] = np.nan
    columns = {**replay.observations.columns, "taken_left": column}
    return replace(replay, observations=Observations(columns, replay.observations.vocabularies))


def value(found: Evaluation, estimator: str) -> float | None:
    estimate = found.estimate(estimator, "candidate")
    assert estimate is not None
    return estimate.value


def test_a_logged_counter_lets_everything_follow_from_the_constraint() -> None:
    found = evaluated(replay_with(2.0, 3_000))

    assert found.deciding_estimator is not None
    assert found.safety is not None
    assert found.safety.forbidden[0].constraint == "actions.caps.left"
    capped = CANDIDATE.copy()
    capped[1] = [0.0, 1.0]
    estimate = found.estimate("dr", "candidate")
    assert estimate is not None
    assert estimate.interval is not None
    assert estimate.interval.low < WORLD.value(capped) < estimate.interval.high


def test_where_a_counter_is_missing_models_refuse_and_weights_stay() -> None:
    found = evaluated(replay_with(0.0, missing_in_gate=3))

    for estimate in found.estimates:
        if estimate.estimator in MODELLED:
            assert estimate.value is None
            assert estimate.refused is not None
            assert "taken_left is missing at 3 of" in estimate.refused
    assert value(found, "wpdis") is not None
    assert value(found, "wpdis") == pytest.approx(WORLD.value(CANDIDATE), abs=1.0)
    assert all(comparison.lower_bound is None for comparison in found.comparisons)
    assert found.slices is not None
    assert all(part.upper_bound is None for part in found.slices.slices)


def test_where_a_counter_is_missing_the_gate_refuses_with_the_cause() -> None:
    decision = evaluated(replay_with(0.0, missing_in_gate=3)).decision

    assert decision is not None
    assert not decision.passed
    assert decision.certified_share == 0.0
    value_check = next(check for check in decision.checks if check.name.startswith("value"))
    assert "`offline-dqn serve` logs the counter" in value_check.meaning


def test_the_weights_of_a_log_without_counters_are_those_without_the_cap() -> None:
    """Three steps without a counter, all others below the cap: the cap takes nothing away, and weights say the same."""
    with_gaps, whole = evaluated(replay_with(0.0, missing_in_gate=3)), evaluated(replay_with(0.0))

    assert value(with_gaps, "pdis") == value(whole, "pdis")
