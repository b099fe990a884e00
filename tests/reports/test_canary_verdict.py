"""What evidence allows: a stop, the next step, promotion, or waiting, with the reason in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reports.canary_comparison import Arms
from reports.canary_config import CanaryConfig
from reports.canary_verdict import RETURN, Measure, Verdict, judge_canary


def judged(
    n: int = 4000, *, effect: float = 0.0, share: float = 0.5, next_share: float = 1.0, exposure: float | None = 1.0,
    hit: float = 0.0, limit: float | None = None, known: float = 4.0, **settings: Any,
) -> Verdict:  # fmt: skip
    rng = np.random.default_rng(1)
    candidate = rng.random(n) < share
    arms = Arms(candidate, np.full(n, share), np.arange(n), np.arange(n) // 160)
    values = rng.normal(size=n) + effect * candidate
    rates = rng.binomial(4, 0.05 + hit * candidate).astype(float)
    measures = [
        Measure(RETURN, values, np.ones(n)),
        Measure("breaches of slo", rates * (known > 0), np.full(n, known), is_loss=True, limit=limit or 0.3),
    ]
    return judge_canary(
        arms, measures, CanaryConfig(**settings), next_share=next_share, at_step=np.ones(n), exposure=exposure,
        in_blocks=False,
    )  # fmt: skip


def test_early_steps_ask_for_less_than_promotion() -> None:
    # Not worse than by .1 sd takes more than 600 episodes; than by .1 / .2, what a share of .2 may lose, does not.
    assert judged(600, next_share=0.2).action == "advance"
    late = judged(600, next_share=1.0)
    assert late.action == "wait"
    assert "return may still be worse by" in late.reason
    assert judged(8000, next_share=1.0).action == "advance"


def test_a_certain_loss_stops_whatever_else_is_fine() -> None:
    found = judged(effect=-0.3)
    assert found.action == "stop"
    assert "return is" in found.reason
    assert found.judgements[0].at_most < 0
    assert judged(effect=0.3, hit=0.3).action == "stop"


def test_a_certain_loss_stops_though_another_measure_is_never_known() -> None:
    # As of a condition on the next observation, in episodes of one step: it is known of none.
    waiting = judged(known=0.0)
    assert (waiting.action, waiting.reason) == ("wait", "nothing is known of breaches of slo on one side yet")
    assert [j.name for j in waiting.judgements] == ["return"]
    found = judged(known=0.0, effect=-0.3)
    assert found.action == "stop"
    assert "return is" in found.reason


def test_a_limit_that_is_surely_exceeded_stops_below_the_margin() -> None:
    within = judged(10_000, hit=0.05, limit=0.3)
    beyond = judged(10_000, hit=0.05, limit=0.08)
    assert within.action == "advance"
    assert beyond.action == "stop"
    assert "breaches of slo" in beyond.reason


def test_a_champion_that_exceeds_the_limit_as_much_is_no_cause() -> None:
    assert judged(10_000, hit=0.0, limit=0.01, breach_margin=5.0).action == "advance"


def test_little_evidence_waits_and_says_for_what() -> None:
    few = judged(80)
    assert few.action == "wait"
    assert "complete episodes, wanted are 50" in few.reason
    hidden = judged(8000, exposure=0.4)
    assert hidden.action == "wait"
    assert "the candidate made 40% of the decisions in its episodes" in hidden.reason
    assert judged(8000, exposure=0.4, effect=-0.3).action == "stop"  # harm counts whoever acted


def test_a_fixed_margin_takes_the_place_of_the_relative_one() -> None:
    assert judged(1500, margin=1.0).judgements[0].margin == 1.0
    assert judged(1500).judgements[0].margin == pytest.approx(0.1, rel=0.1)
    assert replace(judged(1500).judgements[0]).at_least < 0 < judged(1500, margin=1.0).judgements[0].margin
