from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from pipelines.erasing import _as_html, _bytes_pattern
from reports.examples import evaluation_without, report_without
from reports.records import evaluation_to_json
from reports.render import render_report
from tests.reports import report_samples as samples


@pytest.mark.parametrize("name", ["user-7731", 'O\'Brien <b> & "co" ' + "x" * 90])
def test_erased_episode_leaves_report_and_evaluation_whole_and_the_others_stay(name: str) -> None:
    evaluation = replace(samples.passed_evaluation(), changes=samples.changes(first_episode=name))
    report = render_report(samples.report(evaluation)).encode()
    record = json.dumps(evaluation_to_json(evaluation), indent=1).encode()
    pattern = _bytes_pattern([name])
    assert pattern is not None
    assert pattern.search(report)
    left, kept = report_without(report, pattern), json.loads(evaluation_without(record, pattern))
    assert not pattern.search(left)
    assert _as_html(name).encode() not in left
    assert left.count(b'class="example"') == 1
    assert b"svc-0077/2024-05-03" in left
    assert left.rstrip().endswith(b"</html>")
    assert [e["episode_id"] for e in kept["changes"]["episodes"]] == ["svc-0077/2024-05-03"]
    assert kept["decision"] == json.loads(record)["decision"]


def test_what_names_nobody_keeps_its_bytes() -> None:
    evaluation = samples.passed_evaluation()
    record = json.dumps(evaluation_to_json(evaluation), indent=1).encode()
    report = render_report(samples.report(evaluation)).encode()
    pattern = re.compile(rb"nobody of that name")
    assert report_without(report, pattern) == report
    assert evaluation_without(record, pattern) == record
    older = json.dumps(json.loads(record) | {"changes": None}).encode()
    assert evaluation_without(older, pattern) == older


def test_text_of_a_log_cannot_open_or_close_an_example() -> None:
    name = "<!--/example--> svc <!--example-->"
    evaluation = replace(samples.passed_evaluation(), changes=samples.changes(first_episode=name))
    report = render_report(samples.report(evaluation)).encode()
    assert report.count(b"<!--example-->") == report.count(b"<!--/example-->") == 2
