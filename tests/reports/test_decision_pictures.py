from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from reports.certified import certified_curve
from reports.decision_pictures import certified_picture
from reports.remedies import remedies, rooms
from tests.reports import report_samples as samples


def test_certified_point_stands_where_the_worst_case_meets_the_budget() -> None:
    panel = certified_picture(certified_curve(0.5, 7.0, 100.0, 25.0, 0.5))
    assert panel.chart is not None
    assert "50% certified, at most 25 lost in a night; the budget is 25" in panel.chart
    # x in percent of the width, with 2.5 % left free at both ends: half the traffic stands in the middle.
    marks = [e for e in ElementTree.fromstring(f"<div>{panel.chart}</div>").iter("svg") if e.get("overflow")]
    assert [mark.get("x") for mark in marks] == ["50.00%"]


def test_no_loss_and_no_budget_still_draws() -> None:
    panel = certified_picture(certified_curve(0.0, None, 100.0, 0.0, 1.0))
    assert panel.chart is not None
    assert panel.note.endswith("no loss at this confidence")


def test_what_nothing_known_would_risk_does_not_stretch_the_axis() -> None:
    # 7 x 100 = 700 at most, where the curve ends at 50 and no budget lies above: the axis ends a little over 50.
    panel = certified_picture(certified_curve(0.5, 7.0, 100.0, 25.0, 0.5))
    assert panel.note.endswith("; if nothing were known, up to 700 at all traffic")
    assert ">60<" not in str(panel.chart)
    without_loss = certified_picture(certified_curve(0.0, 7.0, 100.0, 0.0, 1.0))
    assert ">700<" not in str(without_loss.chart)
    assert "up to 700 at all traffic" in without_loss.note


def test_value_bound_alone_asks_for_episodes_and_nights() -> None:
    # The bound lies 1.03 under the estimate .41 and must come within .41: (1.03 / .41)^2 = 6.31 times the episodes,
    # 5.31 x 2,007 = 10,659, about 11,000 more, at 2,007 / 21 = 95.6 a night in 116 nights.
    evaluation = samples.narrow_evaluation()
    assert evaluation.decision is not None
    assert [check.name for check in evaluation.decision.failed_checks] == ["value against baseline"]
    says = remedies(evaluation)[0].says
    assert "about 6.3 times as many gate episodes (11,000 more, about 116 nights like these)" in says


def test_pass_says_how_much_room_its_bounds_leave() -> None:
    first, second, odds, nearest = rooms(samples.passed_evaluation())
    assert odds.startswith("The value clears the margin as long as no odds are wrong by more than a factor of")
    assert first.startswith("Value against baseline: the bound, 0.739, clears 0 by 0.739")
    assert second.startswith("Value against version 0: the bound, 1.1, clears 0 by 1.1")
    # 1.12 of 1.5 is 74.7 %; the next is version 0's tail, .42 of .7.
    assert "episodes independent within a night is nearest to it: 1.12 where 1.5 is the most, 74.7%" in nearest


def test_refusal_leaves_no_room() -> None:
    assert rooms(samples.refused_evaluation()) == ()
    assert rooms(replace(samples.passed_evaluation(), decision=None)) == ()
