from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import charts, formatting
from reports.records import Interval

FINITE = st.floats(-1e12, 1e12)
HOSTILE = "</text><script>alert(1)</script>\"'&"


def parse(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<all>{markup}</all>")


@given(st.lists(FINITE, min_size=1, max_size=8), st.lists(FINITE, max_size=8))
def test_scale_holds_what_matters_and_its_ticks_lie_within(core: list[float], others: list[float]) -> None:
    scale = charts.scale_over(core, others)
    assert scale.low < min(core)
    assert max(core) < scale.high
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks())
    assert len(scale.ticks()) <= 12
    assert all(0 <= scale.percent(v) <= 100 for v in [*core, *others])


def test_an_outlier_does_not_flatten_what_matters() -> None:
    scale = charts.scale_over([-6.0, -5.0], [-1e9, 4.0])
    # One width (1) of room on the left, and on the right too; 4 % padding of the 3 widths.
    assert scale.low == pytest.approx(-7.12)
    assert scale.high == pytest.approx(-3.88)


def test_scale_of_nothing_and_of_one_value() -> None:
    assert charts.scale_over([math.nan], [math.inf]) == charts.Scale(0.0, 1.0)
    assert charts.scale_over([0.0]).low < 0 < charts.scale_over([0.0]).high
    assert charts.Scale(0.0, 1.0).ticks() == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def test_interval_beyond_the_picture_ends_in_an_arrow() -> None:
    scale = charts.Scale(0.0, 1.0)
    inside = charts.interval_mark(scale, 0.5, 0.4, 0.6, role="candidate", label="x")
    beyond = charts.interval_mark(scale, 0.5, -9.0, 9.0, role="candidate", label="x")
    gone = charts.interval_mark(scale, 5.0, 4.0, 9.0, role="candidate", label="x")
    assert inside.count('class="arrow"') == 0
    assert beyond.count('class="arrow"') == 2
    assert 'class="mark"' not in gone


def test_passing_ground_begins_at_the_margin() -> None:
    mark = charts.interval_mark(
        charts.Scale(-1.0, 1.0), 0.5, 0.4, 0.6, role="candidate", label="x", reference=0.0, good_above=-0.5, bound=0.3
    )
    ground = next(e for e in parse(mark).iter("rect"))
    assert ground.get("x") == "26.25%"  # 2.5 + 95 * .25
    assert mark.count('class="bound"') == 1


def test_labels_are_escaped_in_every_chart() -> None:
    scale = charts.Scale(0.0, 1.0)
    found = [
        charts.interval_mark(scale, 0.5, 0.4, 0.6, role=HOSTILE, label=HOSTILE),
        charts.empty_track(scale, HOSTILE),
        charts.axis(scale, HOSTILE),
        charts.ratio_bar(9.0, alarmed=True, label=HOSTILE),
        charts.share_bars([(HOSTILE, 0.4)], HOSTILE),
        charts.paired_histogram([HOSTILE], [0.4], [0.5], HOSTILE),
        charts.line_chart([charts.Series(HOSTILE, [1, 2], [1, 2])], HOSTILE),
    ]
    for chart in found:
        assert chart is not None
        assert "<script" not in chart
        assert all(e.tag != "script" for e in parse(chart).iter())


def test_charts_say_what_they_show() -> None:
    chart = parse(charts.ratio_bar(0.25, alarmed=False, label="25% certified"))[0]
    assert chart.get("role") == "img"
    assert chart.get("aria-label") == "25% certified"
    assert chart.findtext("title") == "25% certified"


def test_line_chart_leaves_out_numbers_that_do_not_exist() -> None:
    chart = charts.line_chart([charts.Series("a", [1, 2, 3, 4], [1.0, math.nan, math.inf, 2.0])], "a")
    assert chart is not None
    assert "nan" not in chart
    assert "inf" not in chart
    assert charts.line_chart([charts.Series("a", [1], [1.0])], "a") is None
    assert charts.line_chart([], "a") is None


def test_long_line_is_thinned_and_keeps_its_ends() -> None:
    xs = [float(i) for i in range(5000)]
    chart = charts.line_chart([charts.Series("a", xs, xs)], "a")
    assert chart is not None
    points = next(e for e in parse(chart).iter("polyline")).get("points", "").split()
    assert len(points) == 400
    assert points[0].startswith("0.0,")
    assert points[-1].startswith("1000.0,")


def test_histogram_shows_the_bins_that_differ_most_in_their_order() -> None:
    bins = [f"bin {i}" for i in range(30)]
    before, now = [1 / 30] * 30, [1 / 30 + (0.01 if i in (3, 20) else 0.0) for i in range(30)]
    texts = [e.text or "" for e in parse(charts.paired_histogram(bins, before, now, "x", most=2)).iter("text")]
    assert [t for t in texts if t.startswith("bin")] == ["bin 3", "bin 20"]


def test_empty_histogram_and_bars_are_drawn_without_fault() -> None:
    assert parse(charts.paired_histogram((), (), (), "x")) is not None
    assert parse(charts.share_bars((), "x")) is not None
    assert parse(charts.ratio_bar(math.inf, alarmed=True, label="x")) is not None


def test_shortened_text_keeps_beginning_and_end() -> None:
    assert charts.shortened("short", 20) == "short"
    assert charts.shortened("a" * 50 + "z" * 50, 20) == "a" * 13 + "…" + "z" * 6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not measured"),
        (math.nan, "not measured"),
        (math.inf, "not measured"),
        (0.0, "0"),
        (-0.0, "0"),
        (0.7, "0.7"),
        (-1234.5678, "−1,235"),
        (0.0123456, "0.01235"),
        (2007.0, "2,007"),
        (1e-6, "1×10⁻⁶"),
        (-3.14159e12, "−3.14×10¹²"),
    ],
)
def test_numbers_have_digits_that_carry_meaning(value: float | None, text: str) -> None:
    assert formatting.number(value) == text


def test_interval_decides_the_digits_of_its_value() -> None:
    # Half the width is 1.1, .0011 and 1100: two significant digits of it.
    assert formatting.with_interval(-6.123456, Interval(-7.2, -5.0, 0.95, "")) == "−6.1 [−7.2, −5.0]"
    assert formatting.with_interval(0.50123, Interval(0.5, 0.5022, 0.95, "")) == "0.5012 [0.5000, 0.5022]"
    assert formatting.with_interval(50123.4, Interval(49000.0, 51200.0, 0.95, "")) == "50,123 [49,000, 51,200]"
    assert formatting.with_interval(-0.001, Interval(-2.0, 2.0, 0.95, "")) == "0.0 [−2.0, 2.0]"
    assert formatting.with_interval(None, None) == "not measured"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not measured"), (0.0, "0%"), (1.0, "100%"), (0.1234, "12.3%"), (0.0012, "0.12%"), (1e-7, "< 0.01%")],
)
def test_shares_in_percent(value: float | None, text: str) -> None:
    assert formatting.share(value) == text


def test_durations_and_instants() -> None:
    assert formatting.duration(3.25) == "3.2 s"
    assert formatting.duration(192.4) == "3 min 12 s"
    assert formatting.duration(7260) == "2 h 1 min"
    assert formatting.duration(None) == "not measured"
    east = timezone(timedelta(hours=2))
    assert formatting.instant(datetime(2024, 5, 1, 1, 30, tzinfo=east)) == "2024-04-30 23:30 UTC"
    assert formatting.instant(datetime(2024, 5, 1, 1, 30)) == "2024-05-01 01:30 UTC"
