from __future__ import annotations

import base64
import hashlib
import importlib
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from offline_dqn.metrics import METRICS
from reports import charts
from reports.assessment import _MARGINAL, _PRODUCTS, CHECKS
from reports.change_records import NightDrift
from reports.deciding import Deciding
from reports.glossary import GLOSSARY, Term
from reports.heat import heat_of_gate
from reports.page_script import page_script, plot_data
from reports.pictures import ESTIMATORS
from reports.records import CalibrationLine, Check, Evaluation, GuardReport, Interval
from reports.remedies import remedies, remedy_for
from reports.render import ReportData, render_report
from tests.reports import drift_samples
from tests.reports import report_samples as samples

VOID = {"meta", "br", "hr", "img", "link", "input", "col", "base", "wbr"}
TERMS = [term for group in GLOSSARY for term in group.terms]


class Page(HTMLParser):
    """Elements, ids, links and visible text of a page; fails on tags that are closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.stack):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(name)) is not None]


@pytest.fixture(scope="module")
def passed() -> str:
    return render_report(samples.report(samples.passed_evaluation()))


@pytest.fixture(scope="module")
def refused() -> str:
    return render_report(samples.report(samples.refused_evaluation()))


def bare_report(evaluation: Evaluation) -> ReportData:
    return samples.report(evaluation, training=None, drift=None, validation=None, batch=None)


def test_passed_report_gives_verdict_reason_and_command(passed: str) -> None:
    page, decision = Page(passed), samples.passed_evaluation().decision
    assert decision is not None
    assert decision.passed
    assert "Release 7 may be promoted" in page.text
    assert decision.reason in page.text
    assert "offline-dqn promote 7 --reviewer YOUR_NAME" in page.text
    assert "What it would take" not in page.text


def test_refused_report_says_what_it_would_take_and_offers_no_command(refused: str) -> None:
    page, evaluation = Page(refused), samples.refused_evaluation()
    assert evaluation.decision is not None
    assert "Release 7 must not be promoted" in page.text
    assert evaluation.decision.reason in page.text
    assert "offline-dqn promote" not in page.text
    for remedy in remedies(evaluation):
        assert remedy.says in page.text


@pytest.mark.parametrize("evaluation", [samples.passed_evaluation(), samples.refused_evaluation()])
def test_every_check_stands_in_the_report(evaluation: Evaluation) -> None:
    assert evaluation.decision is not None
    text = Page(render_report(samples.report(evaluation))).text
    for check in evaluation.decision.checks:
        assert check.name in text
        assert check.meaning.replace("`", "") in text.replace("−", "-")


def test_every_check_of_the_gate_has_a_remedy_of_its_own() -> None:
    evaluation = samples.refused_evaluation()
    assert evaluation.decision is not None
    for check in evaluation.decision.checks:
        assert remedy_for(check, evaluation) != check.meaning


def test_a_wide_bound_asks_for_episodes_and_a_worse_candidate_for_another() -> None:
    evaluation = samples.passed_evaluation()
    comparison = replace(evaluation.comparisons[0], value=0.5, lower_bound=-0.5)
    wide = replace(evaluation, comparisons=(comparison,))
    check = Check("value against baseline", False, -0.5, 0.0, "")
    # The bound lies 1.0 under the estimate and must come within .5: half as wide takes 2^2 times the episodes.
    assert "about 4 times as many gate episodes" in remedy_for(check, wide)
    worse = replace(evaluation, comparisons=(replace(comparison, value=-0.2),))
    assert "takes a better candidate, not more episodes" in remedy_for(check, worse)


@pytest.mark.parametrize(
    ("name", "value", "bound", "tail", "says"),
    [
        # 84 episodes in 3 nights. Half of what it takes: twice as many, 84 more at 28 a night.
        (
            "effective sample size of the candidate",
            25.0,
            50.0,
            0.1,
            "2 times as many gate episodes (84 more, about 3 n",
        ),
        ("rare events of the candidate", 7.0, 28.0, 0.1, "About 4 times as many gate episodes"),
        # Twice the share that one episode may carry. Light tails: it falls like 1 / n. Tail index 1/4: like 1 / sqrt n.
        ("largest influence of the candidate", 0.10, 0.05, 0.0, "About 2 times as many gate episodes"),
        ("largest influence of the candidate", 0.10, 0.05, 0.25, "About 4 times as many gate episodes"),
        ("largest influence of the candidate", 0.10, 0.05, 0.6, "No number of episodes like these would do"),
    ],
)
def test_overlap_says_how_many_episodes_would_do(name: str, value: float, bound: float, tail: float, says: str) -> None:
    evaluation = samples.refused_evaluation()
    overlaps = tuple(replace(o, tail_index=tail) for o in evaluation.overlaps)
    assert says in remedy_for(Check(name, False, value, bound, ""), replace(evaluation, overlaps=overlaps))


def test_missing_episodes_are_counted_in_nights() -> None:
    # 84 episodes in 3 nights are 28 a night; 16 more take one.
    evaluation = samples.refused_evaluation()
    check = Check("enough episodes", False, 84.0, 100.0, "")
    assert remedy_for(check, evaluation).startswith("16 more gate episodes, about 1 night like these")


def test_estimates_that_were_never_compared_are_not_said_to_contradict_each_other() -> None:
    evaluation = samples.refused_evaluation()
    compared = Check("agreement of estimators", False, 0.4, 0.0, "")
    assert remedy_for(compared, evaluation).startswith("Two estimators contradict each other")
    assert remedy_for(replace(compared, value=None), evaluation).startswith("There are no two estimates to compare")


def test_bounds_of_every_method_stand_beside_their_cause(passed: str) -> None:
    table = passed.split("by other methods")[1].split("</table>")[0]
    assert "0.732" in table
    assert "the largest possible weight is unknown: set <code>evaluate.x</code>" in table
    assert "weighted returns above 46.86 are cut off" in table


def test_refused_estimates_are_listed_with_their_cause(refused: str) -> None:
    text = Page(refused).text
    assert "refused: the mean weight's interval [0.02, 0.61] excludes 1" in text
    assert "hour not measured: only the live window has this column" in text


def test_batch_and_snapshot_are_accounted_for(passed: str) -> None:
    text = Page(passed).text
    assert "2,031 rows in = 1,980 lake + 11 quarantined + 36 duplicates + 0 held + 4 pending" in text
    assert "not accounted for" not in text
    assert "2,506 train, 505 select, 2,007 gate." in text
    assert "14 episodes had not ended yet" in text
    lost = render_report(samples.report(samples.passed_evaluation(), batch=samples.batch() | {"n_lake": 1970}))
    assert "10 not accounted for" in Page(lost).text


def test_failed_expectations_come_first(refused: str) -> None:
    text = Page(refused).text
    assert text.index("not so in 37 of 1980 steps") < text.index("observation.cpu lies between 0 and 1")


def test_batch_brings_its_own_validation() -> None:
    batch = samples.batch() | {"validation": samples.validation(failing=True)}
    text = Page(render_report(samples.report(samples.passed_evaluation(), validation=None, batch=batch))).text
    assert "not so in 37 of 1980 steps" in text


def test_what_is_missing_is_said_in_words() -> None:
    text = Page(render_report(bare_report(samples.refused_evaluation()))).text
    assert "Nothing was trained for this release." in text
    assert "Drift was not measured" in text
    assert "no batch was validated" in text


@pytest.mark.parametrize(
    "data",
    [
        samples.report(samples.passed_evaluation()),
        samples.report(samples.refused_evaluation()),
        bare_report(samples.refused_evaluation()),
        samples.extreme_report(),
    ],
)
def test_no_raw_none_or_nan_is_shown_and_nothing_is_fetched(data: ReportData) -> None:
    text = render_report(data)
    page = Page(text)
    assert not re.search(r"\b(None|nan|inf|NaN|Undefined)\b", page.text)
    assert all(tag not in ("link", "img", "iframe", "object") for tag, _ in page.elements)
    assert page.attributes("src") == []
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert "url(" not in text
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*https?:""", text)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)


@pytest.mark.parametrize("data", [samples.report(samples.passed_evaluation()), samples.extreme_report()])
def test_one_script_may_run_and_it_is_ours(data: ReportData) -> None:
    text = render_report(data)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert scripts == [page_script()]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = Page(text).attributes("content")[1]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert "Permission is hereby granted, free of charge" in scripts[0]


def test_lines_for_the_script_lie_over_one_axis_and_hold_no_number_that_is_none() -> None:
    lines = [
        charts.Series("a", [1.0, 2.0, 3.0], [0.123456789, math.nan, 5.0]),
        charts.Series("b", [2.0, 4.0], [1.0, 2.0]),
    ]
    told = json.loads(plot_data(lines, "update", dots=[charts.Series("here", [2.5], [9.0], "dot")]))
    assert told["x"] == [1.0, 2.0, 2.5, 3.0, 4.0]
    assert [line["y"] for line in told["series"]] == [
        [0.123457, None, None, 5.0, None], [None, 1.0, None, None, 2.0], [None, None, 9.0, None, None],
    ]  # fmt: skip
    assert [line.get("dots", False) for line in told["series"]] == [False, False, True]
    assert plot_data([charts.Series("a", [1.0], [2.0])], "update") == ""


def test_text_from_logs_is_shown_as_text() -> None:
    text = render_report(samples.extreme_report())
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert samples.HOSTILE in Page(text).text


def test_marks_that_turn_the_order_of_what_is_read_are_written_out(passed: str) -> None:
    """In names of every kind: of columns, actions, policies, curves, units, rules, and of keys of settings."""
    marks = "\u202egnirts\u202c \u2066a\u2069 \u2028\u0085 \u0000\u0007\r\ud800 \u200b"
    text = render_report(samples.extreme_report(marks))

    unseen = {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert unseen == {"\n"}
    assert "[U+202E]gnirts[U+202C] [U+2066]a[U+2069] [U+2028][U+0085] [U+0000][U+0007][U+000D][U+D800] [U+200B]" in text
    turned = render_report(samples.extreme_report("\u202eSIGN"))
    assert turned.count("[U+202E]SIGN") == turned.count("SIGN") > 100
    assert "[U+" not in passed
    told = plot_data([charts.Series("\u202eevil", [1.0, 2.0], [2.0, 3.0])], "\u202eupdate")
    assert "202e" not in told
    assert told.count("[U+202E]") == 2


def test_same_data_gives_the_same_bytes(passed: str) -> None:
    assert render_report(samples.report(samples.passed_evaluation())) == passed


def test_evaluation_without_a_decision_is_no_report() -> None:
    with pytest.raises(ValueError, match="holds no decision"):
        render_report(samples.report(replace(samples.passed_evaluation(), decision=None)))


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.key)
def test_glossary_names_what_computes_each_number(term: Term) -> None:
    parts = term.computed_by.split(".")
    module = importlib.import_module(".".join(parts[:2]))
    found: object = module
    for name in parts[2:]:
        found = getattr(found, name)
    assert callable(found) or isinstance(found, property)


def test_each_number_is_defined_once_and_every_link_leads_somewhere(passed: str, refused: str) -> None:
    assert len({term.key for term in TERMS}) == len({term.name for term in TERMS}) == len(TERMS)
    for text in (passed, refused, render_report(samples.extreme_report())):
        page = Page(text)
        ids = page.attributes("id")
        assert len(ids) == len(set(ids))
        assert {link[1:] for link in page.attributes("href")} <= set(ids)


def test_report_is_accessible(passed: str) -> None:
    page = Page(passed)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    n_tables = sum(tag == "table" for tag, _ in page.elements)
    assert n_tables == sum(tag == "caption" for tag, _ in page.elements)
    assert all("scope" in attrs for tag, attrs in page.elements if tag == "th")
    outer = [attrs for tag, attrs in page.elements if tag == "svg" and "class" in attrs and "role" in attrs]
    assert outer
    assert all(attrs.get("aria-label") for attrs in outer)


def test_colors_have_contrast_in_light_and_dark() -> None:
    css = (Path(render_report.__code__.co_filename).parent / "templates" / "report.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in css.split(":root {")[1:3])
    for theme in (light, dark):
        for ink in ("ink", "soft", "link", "pass", "fail"):
            assert contrast(theme[ink], theme["ground"]) >= 4.5, ink
        for ink, ground in (
            ("ink", "pass-ground"),
            ("ink", "fail-ground"),
            ("pass", "pass-ground"),
            ("fail", "fail-ground"),
        ):
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        heat = re.findall(r"heat-\d \{ background: color-mix\(in srgb, var\(--fail\) (\d+)%", css)
        assert len(heat) == 3
        for part in heat:
            assert contrast(theme["ink"], mixed(theme["fail"], theme["ground"], int(part) / 100)) >= 4.5, part
        for mark in ("candidate", "baseline", "zero", "log", "reference", "live"):
            assert contrast(theme[mark], theme["ground"]) >= 3, mark


def mixed(color: str, ground: str, part: float) -> str:
    pairs = [(int(color[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part * c + (1 - part) * g):02x}" for c, g in pairs)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two #rrggbb colors. Source: WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_heatmap_numbers_only_what_chance_does_not_explain() -> None:
    nights = ("2024-05-01", "2024-05-02", "2024-05-03")
    drift = NightDrift(("x",), nights, (9, 9, 9), ((0.02, 0.05, 0.2),), ((0.03,) * 3,), 1, 3)
    ((name, cells),) = heat_of_gate(drift).rows
    assert name == "x"
    # .02 is within .03; .05 is 1.7 times it, .2 is 6.7 times.
    assert [(cell.level, cell.text) for cell in cells if cell] == [(0, ""), (1, "0.05"), (3, "0.2")]
    assert cells[0] is not None
    assert cells[0].said == "x, 2024-05-01: PSI 0.02, 0.03 explained by chance"


def test_every_estimator_has_a_name_for_people_and_stands_in_the_glossary() -> None:
    assert set(ESTIMATORS) <= {term.key for term in TERMS}
    assert set(get_args(Deciding)) | set(CHECKS.values()) | set(_PRODUCTS) | set(_MARGINAL) <= set(ESTIMATORS)


def test_overlap_of_two_kinds_of_weights_says_which_is_which() -> None:
    good = samples.passed_evaluation()
    beside = replace(good.overlaps[0], decides=False, weights="marginalized")
    text = Page(render_report(samples.report(replace(good, overlaps=(*good.overlaps, beside))))).text
    assert "release 7 products of ratios 1.013" in text
    assert "release 7 marginalized, shown only 1.013" in text
    assert "products of ratios" not in Page(render_report(samples.report(good))).text.split("Overlap", 1)[1][:300]


def test_every_term_is_used_where_what_it_defines_is_shown() -> None:
    good = samples.passed_evaluation()
    alone = [replace(good.estimates[0], estimator=name, policy="candidate") for name in ESTIMATORS]
    assert good.changes is not None
    every = replace(
        good,
        estimates=(*good.estimates, *alone),
        changes=replace(good.changes, against="log"),
        calibration=CalibrationLine(False, "No calibrated world is like this one."),
        safety=samples.asked_evaluation().safety,
        slices=samples.asked_evaluation().slices,
        guard=GuardReport(
            false_alarm_share=0.01,
            held=True,
            n_clusters=600,
            n_steps=4000,
            share=0.007,
            interval=Interval(0.004, 0.01, level=0.95, method="Student t by cluster"),
            by_cause={"missing": 0.001, "strange": 0.004, "disagreement": 0.002},
            features={"load": 1.0},
        ),
    )
    metrics = [{"step": float(i)} | {f"a/{m.name}": 1.0 + i for m in METRICS} for i in range(3)]
    held = drift_samples.nightly_checks(drift_samples.held_check())
    whole = samples.report(every, drift=held)
    assert whole.training is not None
    data = replace(whole, training={**whole.training, "history": metrics})
    used = {link.removeprefix("#term-") for link in Page(render_report(data)).attributes("href")}
    used |= {link.removeprefix("#term-") for link in Page(render_report(samples.report(good))).attributes("href")}
    assert sorted({term.key for term in TERMS} - used) == []


def test_contract_that_asks_for_nothing_more_says_so(passed: str) -> None:
    text = Page(passed).text
    assert "Nothing: it names no constraint and no rule of success." in text
    assert "Not asked for: the contract names no slices." in text
