from __future__ import annotations

from dataclasses import replace

from reports.log_pictures import sensitivity_picture, weight_picture
from reports.records import Sensitivity, WeightHistogram
from reports.remedies import remedies
from reports.render import render_report
from tests.reports.report_samples import HOSTILE, passed_evaluation, refused_evaluation, report


def test_curve_of_wrong_probabilities_is_drawn_to_where_it_turns() -> None:
    evaluation = passed_evaluation()
    panel = sensitivity_picture(evaluation)
    assert panel is not None
    assert panel.chart is not None
    assert "The value clears the margin as long as no odds are wrong by more than a factor of 1.31" in panel.chart
    assert evaluation.sensitivity is not None
    refused = Sensitivity(False, None, 20.0, (), 6, "", refused="there is no bound")
    assert sensitivity_picture(replace(evaluation, sensitivity=refused)) is None
    assert sensitivity_picture(replace(evaluation, sensitivity=None)) is None


def test_curves_that_explode_are_cut_and_not_flattened() -> None:
    evaluation = passed_evaluation()
    found = evaluation.sensitivity
    assert found is not None
    exploding = replace(
        found, points=tuple(replace(p, worst_bound=0.7 - 1e9 * (p.factor - 1) ** 9) for p in found.points)
    )
    panel = sensitivity_picture(replace(evaluation, sensitivity=exploding))
    assert panel is not None
    assert "1×10" not in str(panel.chart)


def test_weights_of_one_size_are_drawn() -> None:
    panel = weight_picture(WeightHistogram("step", (0.0, 0.5, 1.0), (1.0, 0.0), (1.0, 0.0), 0.0))
    assert panel.chart is not None
    assert "weight of a step" in panel.chart


def test_regions_stand_in_the_report_as_text() -> None:
    text = render_report(report(passed_evaluation()))
    assert "replicas &gt;= 6 and cpu &lt;= 0.2" in text
    assert "let the acting policy take &#39;scale_down&#39; in at least 12% of these steps" in text
    assert HOSTILE not in text


def test_a_failed_overlap_names_the_region_and_its_repair() -> None:
    says = " ".join(remedy.says for remedy in remedies(refused_evaluation()))
    assert "Where replicas >= 6 and cpu <= 0.2: let the acting policy take 'scale_down'" in says
    without = replace(refused_evaluation(), overlap_map=None)
    assert "Where replicas" not in " ".join(remedy.says for remedy in remedies(without))
