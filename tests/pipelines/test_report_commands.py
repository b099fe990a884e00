"""`offline-dqn report open|compare|schema`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipelines import report_commands
from pipelines.workspace import Workspace
from reports.comparison import Judged
from reports.schema import evaluation_schema
from tests.pipelines.conftest import Run


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("headless")
def test_open_prints_the_newest_report_where_there_is_no_display(first_night: Path, run: Run) -> None:
    newest, named = run(first_night, "report", "open"), run(first_night, "report", "open", 1)

    assert newest.out == named.out == f"{first_night / 'releases' / '1' / 'report.html'}\n"
    assert "no display" in newest.err
    assert run(first_night, "report", "open", "--json").json == {"report": newest.out.strip()}


def test_open_shows_it_in_a_browser(first_night: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda address: bool(shown.append(address)) or True)

    assert run(first_night, "report", "open", 1).err == ""
    assert shown == [(first_night / "releases" / "1" / "report.html").as_uri()]


def test_a_report_that_is_not_there_or_was_altered_is_a_message(
    workspace: Workspace, fresh: Workspace, run: Run
) -> None:
    assert "No release was judged yet" in run(fresh, "report", "open").err
    assert "Release 0 has no report" in run(workspace, "report", "open", 0).err
    report = workspace.release_path(1) / "report.html"
    report.write_text(report.read_text() + " ")
    altered = run(workspace, "report", "open")
    assert (altered.code, "report.html is altered" in altered.err) == (1, True)


def test_compare_prints_and_writes_a_page(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_judged = report_commands.judged

    def twins(opened: Workspace, release: int) -> Judged:
        """Release 2 is release 1 under another number."""
        return replace(as_judged(opened, 1), release=2) if release == 2 else as_judged(opened, release)

    monkeypatch.setattr(report_commands, "judged", twins)
    same = run(workspace, "report", "compare", 1, 2, "--output", tmp_path / "page.html")

    assert same.code == 0, same.err
    assert "Every check came out alike" in same.out
    assert "the same for both" in same.out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    plain: dict[str, Any] = run(workspace, "report", "compare", 1, 2, "--json").json
    assert plain["page"] == str(workspace.root / "comparison-1-2.html")
    assert plain["settings"] == []
    missing = run(workspace, "report", "compare", 1, 0)
    assert (missing.code, "Release 0 was not judged" in missing.err) == (1, True)
    blocked = run(workspace, "report", "compare", 1, 2, "--output", tmp_path / "page.html" / "inside.html")
    assert (blocked.code, "page.html" in blocked.err) == (1, True)


def test_a_release_is_not_compared_with_itself(workspace: Workspace, run: Run) -> None:
    answer = run(workspace, "report", "compare", 1, 1)

    assert answer.code == 1
    assert "Release 1 would be compared with itself. Name two" in answer.err
    assert not (workspace.root / "comparison-1-1.html").exists()


def test_a_real_evaluation_is_as_the_schema_says(first_night: Path, run: Run) -> None:
    printed = run(None, "report", "schema").json

    assert printed == evaluation_schema()
    recorded = json.loads((first_night / "releases" / "1" / "evaluation.json").read_text())
    jsonschema.Draft202012Validator(printed).validate(recorded)
