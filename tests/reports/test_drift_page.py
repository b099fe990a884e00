"""The page of a drift check: what it shows, what it leaves out, and what hostile names come to."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from drift.records import JointDrift, NightlyDrift
from reports.drift_page import render_drift_page
from reports.drift_pictures import column_picture, distribution_panels, heat_of, timeline
from reports.night_checks import NightCheck, NightlyChecks
from tests.reports import drift_samples as samples
from tests.reports.test_render import Page

HOSTILE = "<script>alert(1)</script>"


def page_of(check: NightCheck) -> str:
    return render_drift_page(samples.nightly_checks(check), "autoscaler")


def said(picture: object) -> list[str]:
    """What pointing at the nights of a timeline shows."""
    return re.findall(r"<g><title>(.*?)</title>", str(picture))


def test_the_first_screen_says_what_moved_since_when_what_it_does_and_what_to_do() -> None:
    text = Page(page_of(samples.drifted_check()).replace("<wbr>", "")).text
    top = text[: text.index("What moved?")]
    for words in (
        "Retrain: zone and 2 more moved", "Rule out the logging first", "3 of 6", "1 could not be judged",
        "over 100 times", "2024-05-18", "request_rate, which moved first", "12%", "moved by request_rate",
    ):  # fmt: skip
        assert words in top


def test_long_names_of_a_headline_may_break_behind_dots_and_underscores() -> None:
    column = samples.column("observation.request_rate", 0.3, 0.02, status="drifted")
    text = page_of(samples.drifted_check(report=samples.drift_report(columns=(column,), slow=())))
    assert "<h1>Retrain: observation.<wbr>request_<wbr>rate moved</h1>" in text


def test_a_calm_night_says_so_and_that_there_is_nothing_to_do() -> None:
    text = Page(page_of(samples.calm_check())).text
    assert "Keep the champion: nothing has moved" in text
    assert "What to do Nothing." in text
    assert "no column drifted" in text


def test_a_night_without_a_comparison_is_a_page_too() -> None:
    text = Page(page_of(samples.unknown_check())).text
    assert "Nothing was compared." in text
    assert "Every number by column" not in text


@pytest.mark.parametrize(
    "checks",
    [
        samples.nightly_checks(), samples.nightly_checks(samples.held_check()),
        NightlyChecks(newest=samples.unknown_check(champion=None)), samples.extreme_checks(HOSTILE),
    ],
)  # fmt: skip
def test_the_page_shows_no_raw_value_and_fetches_nothing(checks: NightlyChecks) -> None:
    page = Page(render_drift_page(checks, HOSTILE))
    assert not re.search(r"\b(None|nan|inf|NaN|Undefined)\b", page.text)
    assert all(link.startswith("#term-") for link in page.attributes("href"))
    assert not page.attributes("src")


def test_every_term_of_the_page_is_defined_on_it() -> None:
    text = page_of(samples.held_check())
    links = {link.removeprefix("#term-") for link in Page(text).attributes("href")}
    assert {"psi", "kl", "kl_reverse", "js", "joint_test", "slow_drift", "drift_effect", "suspicion"} <= links
    assert all(f'id="term-{key}"' in text for key in links)


def test_names_of_a_log_are_text_whatever_they_hold() -> None:
    text = render_drift_page(samples.extreme_checks(HOSTILE), HOSTILE)
    assert HOSTILE not in text
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_same_checks_give_the_same_bytes() -> None:
    assert page_of(samples.drifted_check()) == page_of(samples.drifted_check())


def test_heatmap_shows_nights_missing_from_the_calendar_as_one_gap() -> None:
    heat = heat_of(samples.drift_report())
    assert heat is not None
    # Nights 8, 9 and 10 of May, then 14 to 21: the 11th to the 13th are missing.
    assert [night.label for night in heat.nights[:5]] == ["05-08", "05-09", "05-10", "", "05-14"]
    assert (heat.nights[3].n_missing, heat.nights[3].said) == (3, "3 nights not measured")
    rows = dict(heat.rows)
    assert all(cells[3] is None for cells in rows.values())
    # request_rate: .06, .09, .13, .187 of .0414 are 1.4, 2.2, 3.1 and 4.5 times what is allowed.
    assert [cell.level for cell in rows["request_rate"][-4:] if cell] == [1, 2, 2, 2]
    assert list(rows)[:2] == ["zone", "request_rate"]


def test_heatmap_keeps_the_newest_nights_and_the_columns_that_moved_furthest() -> None:
    nightly = samples.nightly(("zone", "request_rate", *(f"vector[{i}]" for i in range(70))))
    heat = heat_of(samples.drift_report(nightly=nightly), columns=3, nights=2)
    assert heat is not None
    assert [night.label for night in heat.nights] == ["05-20", "05-21"]
    assert [name for name, _ in heat.rows][:2] == ["zone", "request_rate"]
    assert len(heat.rows) == 3


def test_nights_that_the_reference_does_not_reach_stand_as_their_own_check_found_them() -> None:
    nightly = NightlyDrift(
        columns=("cpu", "new"), nights=("2024-05-20", "2024-05-21"), n_episodes=(330, 331),
        psi=((0.01, 0.07), (0.01, 0.01)), threshold=(0.03, 0.03),
    )  # fmt: skip
    before = samples.drifted_check(night="2024-05-20", live_nights=("2024-05-19", "2024-05-19"))
    together = samples.drifted_check(night="2024-05-19", live_nights=("2024-05-17", "2024-05-18"))
    heat = heat_of(samples.drift_report(nightly=nightly), [together, before])
    assert heat is not None
    # Two nights that were checked together are no night of the calendar.
    assert [night.said for night in heat.nights] == [
        "2024-05-19: 330 episodes", "2024-05-20: 330 episodes", "2024-05-21: 331 episodes"
    ]  # fmt: skip
    rows = dict(heat.rows)
    assert [cell.said for cell in rows["cpu"] if cell] == [
        "cpu, 2024-05-19: PSI 0.012, 0.031 allowed", "cpu, 2024-05-20: PSI 0.01, 0.03 allowed",
        "cpu, 2024-05-21: PSI 0.07, 0.03 allowed",
    ]  # fmt: skip
    assert [cell.level for cell in rows["zone"] if cell] == [3, 0, 0]
    assert next(cell.said for cell in rows["new"] if cell) == "new, 2024-05-19: not measured"


def test_a_column_without_a_threshold_is_held_to_the_smallest_psi_that_matters() -> None:
    nightly = NightlyDrift(
        columns=("x",), nights=("2024-05-01", "2024-05-02"), n_episodes=(1, 2), psi=((0.019, 0.021),), threshold=(None,)
    )
    heat = heat_of(samples.drift_report(nightly=nightly))
    assert heat is not None
    assert [(c.level, c.said) for c in heat.rows[0][1] if c] == [
        (0, "x, 2024-05-01: PSI 0.019, 0.02 allowed"),
        (1, "x, 2024-05-02: PSI 0.021, 0.02 allowed"),
    ]
    assert heat_of(samples.drift_report(nightly=None)) is None


def test_distributions_of_numbers_lie_over_each_other_with_missing_values_apart() -> None:
    zone, rate, p95 = distribution_panels(samples.drift_report())
    assert [one.panel.title for one in (zone, rate, p95)] == ["zone", "request_rate", "p95_ms"]
    chart = str(rate.panel.chart)
    # Ten intervals, then half a slot apart the missing ones: 11.5 slots, the last centered at 11 / 11.5.
    assert chart.count('class="window-reference"') == 11
    assert '<text x="95.65%"' in chart
    assert "missing: 0% in the reference, 0.5% live" in chart
    assert [value for _, name, value in rate.facts if name == "since"] == ["2024-05-18"]
    assert rate.says.startswith("request_rate moves 12%")
    assert "36%" in str(zone.panel.chart)


def test_a_calm_night_shows_the_two_columns_nearest_to_drift() -> None:
    assert len(distribution_panels(samples.calm_report())) == 2


def test_point_masses_are_listed_and_empty_bins_between_them_left_out() -> None:
    column = samples.column(
        "replicas", 0.2, 0.02, status="drifted", bins=("< 1", "1", "(1, 2)", "2", "> 2", "(missing)"),
        reference_probs=(0.0, 0.6, 0.0, 0.4, 0.0, 0.0), live_probs=(0.0, 0.3, 0.0, 0.6, 0.1, 0.0),
    )  # fmt: skip
    (one,) = distribution_panels(samples.drift_report(columns=(column,)))
    chart = str(one.panel.chart)
    assert "60% → 30%" in chart
    assert "0% → 10%" in chart
    assert "(1, 2)" not in chart


def test_bars_stop_at_twenty_columns_and_name_what_was_not_measured() -> None:
    picture = column_picture(samples.calm_report(65))
    assert len(picture.rows) == 20
    assert [refused.what for refused in column_picture(samples.drift_report()).refused] == ["hour"]


def test_timeline_says_each_night_and_leaves_days_without_one_empty() -> None:
    checks = samples.nightly_checks()
    row = (*checks.past, checks.newest)
    drawn = timeline(row, {"2024-05-13": "release 6 promoted by Grace"})
    nights = said(drawn)
    assert len(nights) == len(row) == 13  # of fourteen days: the 16th is missing
    assert nights[2] == "2024-05-10: kept the champion (not enough data)"
    assert nights[4] == "2024-05-12: asked for a training (drift), furthest zone at over 100 times what is allowed"
    assert nights[5].endswith("; release 6 promoted by Grace")
    assert "Drift checks of 13 nights from 2024-05-08 to 2024-05-21: drift in 2, training asked for in 2" in str(drawn)
    assert re.findall(r"<title>(release \d)</title>", str(drawn)) == ["release 5", "release 6"]
    assert timeline(row[:1], {}) is None


def test_what_happened_after_the_check_is_told_too() -> None:
    newest = replace(samples.drifted_check(), champion=5)
    past = tuple(replace(check, champion=5) for check in samples.past())
    checks = NightlyChecks(newest=newest, past=past, promotions=samples.promotions())
    assert "Since then: release 6 promoted by Grace." in Page(render_drift_page(checks, "autoscaler")).text


def test_decisions_are_as_before_only_where_nothing_drifted_at_all() -> None:
    calm = samples.calm_report()
    slow = samples.drift_report().slow
    joint = JointDrift(method="classifier", status="drifted", reason="", statistic=0.8, threshold=0.6, p_value=0.001)
    assert slow
    for report in (replace(calm, slow=slow), replace(calm, joint=(joint,))):
        text = page_of(samples.drifted_check(report=report))
        assert "not weighed<small>" in text
        assert "no column drifted</small>" not in text
    assert "as before<small>no column drifted" in page_of(samples.calm_check())
