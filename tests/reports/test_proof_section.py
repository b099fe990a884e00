"""Backtest, placebo and promises in the report and in `evaluation.json`."""

from __future__ import annotations

import json
from dataclasses import replace

from reports.records import evaluation_from_json, evaluation_to_json
from reports.render import render_report
from tests.reports.report_samples import HOSTILE, passed_evaluation, proof, report


def test_the_section_shows_each_verdict_with_its_numbers_and_hostile_names_as_text() -> None:
    html = render_report(report(passed_evaluation()))
    section = html.partition('<section id="proof"')[2].partition("</section>")[0]

    assert "1 of 1 judged estimates are covered" in section
    assert "the effective sample size is 12 episodes" in section
    assert "41 of 4,000 passed" in section
    assert "9 nights, and it takes 14 to deal halves of them" in section
    assert "kept since 2024-05-09" in section
    assert HOSTILE not in section


def test_a_record_made_without_asking_says_so() -> None:
    html = render_report(report(replace(passed_evaluation(), proof=None)))

    assert "Not measured: this record was made without asking." in html


def test_without_promises_and_pairs_the_causes_stand_there() -> None:
    found = proof()
    alone = replace(
        found, backtest=replace(found.backtest, pairs=(), cause="all episodes were written by 'a'"), promises=()
    )
    html = render_report(report(replace(passed_evaluation(), proof=alone)))

    assert "all episodes were written by" in html
    assert "No trained release was promoted before this one." in html


def test_the_proof_survives_json_and_its_absence_too() -> None:
    evaluation = passed_evaluation()
    plain = json.loads(json.dumps(evaluation_to_json(evaluation)))

    assert evaluation_from_json(plain).proof == proof()
    del plain["proof"]
    assert evaluation_from_json(plain).proof is None
