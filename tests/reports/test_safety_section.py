"""The report's section on constraints, success and slices."""

from __future__ import annotations

import pytest

from reports.records import (
    Evaluation,
)
from reports.remedies import remedies
from reports.render import render_report
from tests.reports import report_samples as samples
from tests.reports.test_render import Page

asked = samples.asked_evaluation


def page_of(evaluation: Evaluation) -> Page:
    return Page(render_report(samples.report(evaluation)))


def test_rates_bounds_limits_and_slices_are_shown() -> None:
    text = page_of(asked()).text

    for part in (
        "5% [4%, 6%]",
        "8% [6%, 10%]",
        "11%",
        "20%",
        "slo is unknown on 3 of 603 logged steps: counted as breaches 1; counted neither way, "
        "for want of a next observation at an episode's end, 2.",
        "success is unknown on 2 of 603 logged steps: counted as no success 2;",
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


@pytest.mark.parametrize(
    ("evaluation", "failed"), [(asked(limit=0.1), "constraint slo"), (asked(upper=-0.1), "slices")]
)
def test_a_failed_check_says_what_it_would_take(evaluation: Evaluation, failed: str) -> None:
    assert evaluation.decision is not None
    assert [check.name for check in evaluation.decision.failed_checks] == [failed]
    remedy = remedies(evaluation)[0]
    assert remedy.says != remedy.checks[0].meaning
    assert remedy.says in page_of(evaluation).text
