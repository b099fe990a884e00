from __future__ import annotations

from reports.candidate_table import candidate_rows, compared_on
from reports.render import render_report
from reports.training_pictures import training_picture
from tests.reports import report_samples as samples


def test_every_number_of_a_row_is_of_the_estimator_it_names() -> None:
    model, weighting = candidate_rows(samples.selection())
    assert (model.by, model.difference, round(model.value, 6)) == ("model", 1.02, -21.4)
    assert (weighting.by, weighting.difference, round(weighting.value, 6)) == ("weighting", 0.94, -21.48)


def test_reused_episodes_are_named() -> None:
    selection = samples.selection()
    assert compared_on(selection) == "420 episodes of select and 1,542 of train (each counting a quarter)"
    assert compared_on(selection | {"n_reused": 0}) == "420 episodes of select"
    del selection["reuse_weight"]
    assert compared_on(selection) == "420 episodes of select and 1,542 of train"


def test_report_shows_code_and_true_minus_signs() -> None:
    data = samples.report(samples.passed_evaluation())
    assert data.training is not None
    data.training["selection"]["candidates"][0]["why"] = "`select -1` <b> of 2024-05-01 is -0.5 [-1e-05, -.2]"
    page = render_report(data)
    assert "<code>select -1</code> &lt;b&gt; of 2024-05-01 is −0.5 [−1e−05, −.2]" in page


def test_one_measurement_is_told_instead_of_drawn() -> None:
    picture = training_picture(samples.history(1, ("cql 1",)))
    said = {panel.instead for panel in picture.panels}
    assert {panel.chart for panel in picture.panels} == {None}
    assert picture.legend == ()
    assert all(text.startswith("measured once, at update 500: cql 1 = ") for text in said)
    assert all(text.endswith("; lower train.log_every to see a curve") for text in said)
