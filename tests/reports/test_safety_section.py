"""The report's section on constraints, success and slices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.gate import GateConfig, decide
from reports.records import (
    ActionShares,
    BreachRate,
    Evaluation,
    Forbidden,
    Rate,
    Safety,
    Slices,
    SliceValue,
    SuccessRate,
)
from reports.remedies import remedies
from reports.render import render_report
from tests.reports import report_samples as samples
from tests.reports.test_render import Page

SHARES = tuple(ActionShares(policy, dict.fromkeys(samples.ACTIONS, 1 / 3)) for policy in ("log", "candidate"))
RATES = (
    Rate("log", 0.05, samples.interval(0.04, 0.06)),
    Rate("candidate", 0.08, samples.interval(0.06, 0.1)),
)


def asked(limit: float = 0.2, label: str = "a", upper: float = 0.3) -> Evaluation:
    safety = Safety(
        breaches=(
            BreachRate("slo", f"observation.zone = '{samples.HOSTILE}'", limit, RATES, 0.11, 0.01, 31, 600, 3, 212.0),
        ),
        forbidden=(Forbidden("keep_two", "action = 'scale_down'", 12, 4),),
        success=SuccessRate("true", RATES, 0.03, -0.01, 0.01, 603, 0),
        n_safe_only=2,
    )
    slices = Slices(
        (
            SliceValue("zone", label, "label", 900, 900, 0.1, 0.1, -0.2, upper, 0.12, SHARES),
            SliceValue("zone", None, "missing", 1, 1, 2.0, None, None, None, None, SHARES, "1 cluster; 20 wanted"),
        ),
        0.05,
    )  # fmt: skip
    evaluation = replace(samples.passed_evaluation(), decision=None, safety=safety, slices=slices)
    return replace(evaluation, decision=decide(evaluation, GateConfig(harm_budget=50.0)))


def page_of(evaluation: Evaluation) -> Page:
    return Page(render_report(samples.report(evaluation)))


def test_rates_bounds_limits_and_slices_are_shown() -> None:
    text = page_of(asked()).text

    for part in (
        "5% [4%, 6%]",
        "8% [6%, 10%]",
        "11%",
        "20%",
        "is unknown on 3 of 603 logged steps",
        "zone missing",
        "on 12 of",
        "the log took one on 4",
        "On 2 steps every action is forbidden",
        "undecided: 1 cluster;",
    ):
        assert part in text


def test_conditions_and_labels_of_a_log_are_text() -> None:
    html = render_report(samples.report(asked(label=samples.HOSTILE, upper=-0.1)))

    assert samples.HOSTILE not in html
    assert samples.HOSTILE in Page(html).text


def test_a_contract_that_asks_for_nothing_has_no_section() -> None:
    assert "What else does the contract ask?" not in page_of(samples.passed_evaluation()).text


@pytest.mark.parametrize(
    ("evaluation", "failed"), [(asked(limit=0.1), "constraint slo"), (asked(upper=-0.1), "slices")]
)
def test_a_failed_check_says_what_it_would_take(evaluation: Evaluation, failed: str) -> None:
    assert evaluation.decision is not None
    assert [check.name for check in evaluation.decision.failed_checks] == [failed]
    remedy = remedies(evaluation)[0]
    assert remedy.says != remedy.checks[0].meaning
    assert remedy.says in page_of(evaluation).text
