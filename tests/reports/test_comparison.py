"""Two releases side by side."""

from __future__ import annotations

from dataclasses import replace

from reports.comparison import Judged, compare_releases
from reports.records import Check
from reports.render import render_comparison
from tests.reports.report_samples import HOSTILE, passed_evaluation, refused_evaluation

PASSED, REFUSED = passed_evaluation(), refused_evaluation()


def judged(release: int, snapshot: str = "a", **changes: object) -> Judged:
    return Judged(release, replace(PASSED, **changes), {"snapshot": snapshot})  # type: ignore[arg-type]  # by name


def test_a_release_differs_in_nothing_from_itself() -> None:
    found = compare_releases(judged(1), judged(1))

    assert found.same_episodes
    assert {row.difference for row in found.estimates} <= {0.0, None}
    assert not any(row.turned for row in found.checks)
    assert (found.settings, found.lineage) == ((), ())


def test_what_differs_is_found() -> None:
    decision = PASSED.decision
    assert decision is not None
    first, *others = decision.checks
    failed = replace(
        decision, passed=False, checks=(replace(first, passed=False), *others[1:], Check("new", True, 1.0, 2.0, "n"))
    )
    value = PASSED.estimates[0]
    assert value.value is not None
    estimates = (replace(value, value=value.value + 0.5), *PASSED.estimates[2:])
    settings = {**PASSED.config, "gate": {**PASSED.config["gate"], "alpha": 0.02}}

    found = compare_releases(judged(1), judged(2, "b", decision=failed, estimates=estimates, config=settings))

    assert [verdict for verdict, _ in found.verdicts] == ["passed", "refused"]
    assert not found.same_episodes
    assert found.estimates[0].difference is not None
    assert abs(found.estimates[0].difference - 0.5) < 1e-12
    assert (found.estimates[1].first, found.estimates[1].second) == (PASSED.estimates[1], None)
    assert {row.name for row in found.checks if row.turned} == {first.name, others[0].name, "new"}
    assert [row.turned for row in found.checks] == [True] * 3 + [False] * (len(found.checks) - 3)
    assert ("gate.alpha", 0.02) in [(d.path, d.after) for d in found.settings]
    assert [(d.path, d.before, d.after) for d in found.lineage] == [("snapshot", "a", "b")]


def test_the_page_is_one_file_that_runs_nothing() -> None:
    other = Judged(2, replace(REFUSED, baseline_name=HOSTILE), {"snapshot": HOSTILE})

    page = render_comparison(compare_releases(judged(1), other), HOSTILE)

    assert HOSTILE not in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "They were judged on episodes of different snapshots" in page
    assert "&lt;script&gt;" in page
    assert "refused" in page


def test_an_evaluation_without_a_decision_is_compared_too() -> None:
    found = compare_releases(judged(1, decision=None), judged(2))

    assert found.verdicts[0] == ("not decided", "")
    assert all(row.first is None for row in found.checks)
