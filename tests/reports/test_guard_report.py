"""What the report says of a guard, and what the gate charges for late decisions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.replay import GATE
from reports.gate import VALUE_CHECK, GateConfig, decide
from reports.guard_report import report_guard, share_interval
from reports.guard_words import guard_words
from reports.records import FeasibleRange, evaluation_from_json, evaluation_to_json
from tests.benchmarks.guard_cells import CELLS, guarded_policy, some_replay
from tests.reports.report_samples import passed_evaluation


def test_share_on_other_episodes_is_told_with_its_interval() -> None:
    rng = np.random.default_rng(3)
    policy = guarded_policy(CELLS[0], rng)
    gate = some_replay(CELLS[0], rng, 800, GATE)
    found = report_guard(policy, gate, 0.95)
    assert found is not None
    assert found.interval is not None
    assert found.held
    assert found.interval.low <= 0.01 <= found.interval.high + 0.004
    assert found.share == pytest.approx(sum(found.by_cause.values()))
    assert sum(found.features.values()) <= 1.0 + 1e-9
    words = guard_words(found)
    assert "600 clusters of the select episodes" in words
    assert f"At {found.share:.2%}" in words
    assert report_guard(policy.own, gate, 0.95) is None


def test_steps_that_version_0_may_not_act_in_are_not_said_to_be_left_to_it() -> None:
    rng = np.random.default_rng(3)
    policy = guarded_policy(CELLS[0], rng)
    gate = some_replay(CELLS[0], rng, 800, GATE)
    fires = policy.guard_reasons(gate.observations) != ""
    narrow = replace(gate, available=gate.available & ~fires[:, None])  # nothing is left there: the shield acts
    found, none_left = (report_guard(policy, replay, 0.95) for replay in (gate, narrow))
    assert found is not None
    assert found.share == pytest.approx(fires.mean())
    assert none_left is not None
    assert none_left.share == 0.0


def test_interval_of_a_share_by_hand() -> None:
    # Clusters of 2 rows: 1 of 4 rows fires. Residuals .5, -.5: error sqrt(2 / 1 * .5) / 4 = .25; t_1 (.975) = 12.706.
    found = share_interval(np.array([1.0, 0, 0, 0]), np.array([0, 0, 1, 1]), 0.95)
    assert found is not None
    assert (found.low, found.high) == (0.0, 1.0)
    ten = share_interval(np.zeros(20), np.repeat(np.arange(10), 2), 0.95)
    assert ten is not None
    assert (ten.low, ten.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert share_interval(np.zeros(3), np.zeros(3, dtype=int), 0.95) is None


def test_late_decisions_are_charged_their_share_of_the_feasible_range() -> None:
    evaluation = replace(passed_evaluation(), feasible=FeasibleRange(-100.0, 0.0, 20))
    before = decide(evaluation, GateConfig())
    late = replace(evaluation, late_share=0.02)
    after = decide(late, GateConfig())
    bound, charged = (next(c.value for c in d.checks if c.name == VALUE_CHECK) for d in (before, after))
    assert bound is not None
    assert charged == pytest.approx(0.98 * bound - 0.02 * 100.0)
    assert not any(check.name == "late decisions" for check in before.checks)
    check = next(check for check in after.checks if check.name == "late decisions")
    assert "2.00% of the champion's live decisions came too late" in check.meaning
    assert evaluation_from_json(evaluation_to_json(late)).late_share == 0.02


def test_late_decisions_cannot_be_charged_without_a_range() -> None:
    evaluation = replace(passed_evaluation(), feasible=FeasibleRange(None, 0.0, 20), late_share=0.001)
    decision = decide(evaluation, GateConfig())
    assert not decision.passed
    assert "reward.min and reward.max are not both set" in next(
        check.meaning for check in decision.checks if check.name == "late decisions"
    )
