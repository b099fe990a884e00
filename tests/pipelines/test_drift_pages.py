"""Pages of drift checks: written by the night beside its record, made again on demand, removed with an erasure."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from pipelines import stages
from pipelines.drift_history import record_check
from pipelines.drift_pages import checks_now, checks_of_night, night_pages, write_night_page
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, edit
from tests.reports import drift_samples as samples


def record(workspace: Workspace, night: str, report: object = None) -> datetime:
    """A night's check in the history, as the nightly run leaves it."""
    check = samples.drifted_check() if report is None else samples.drifted_check(report=report)
    assert check.report is not None
    outcome = {"decision": check.decision.to_json(), "live_nights": [night, night], "report": check.report.to_json()}
    as_of = datetime.fromisoformat(night).replace(tzinfo=UTC, hour=4)
    record_check(workspace.drift_path, outcome, as_of=as_of, champion=1)
    return as_of


def test_a_check_that_is_recorded_comes_back_for_its_page(workspace: Workspace) -> None:
    for night in ("2024-05-01", "2024-05-02", "2024-05-03"):
        record(workspace, night)

    found = checks_of_night(workspace, date(2024, 5, 2))
    assert found is not None
    assert (found.newest.night, found.newest.champion, found.newest.live_nights) == (
        "2024-05-02", 1, ("2024-05-02", "2024-05-02"),
    )  # fmt: skip
    assert found.newest.report == samples.drift_report()
    assert [check.night for check in found.past] == ["2024-05-01"]
    assert [p.to_release for p in found.promotions] == [1]
    assert checks_of_night(workspace, date(2024, 5, 9)) is None


def test_pages_of_old_nights_go_and_come_back_from_their_record(workspace: Workspace, run: Run) -> None:
    edit(workspace.root / "offline_dqn.toml", "[simulate]", "[drift]\nkeep_pages = 2\n\n[simulate]")
    workspace = open_workspace(workspace.root)
    for night in ("2024-05-01", "2024-05-02", "2024-05-03"):
        assert write_night_page(workspace, record(workspace, night)) == workspace.drift_path / f"{night}.html"

    assert [path.stem for path in night_pages(workspace)] == ["2024-05-02", "2024-05-03"]
    again = run(workspace, "drift", "page", "--night", "2024-05-01")
    assert again.code == 0
    assert Path(again.out.strip()) == workspace.drift_path / "2024-05-01.html"
    assert "zone and 2 more moved" in (workspace.drift_path / "2024-05-01.html").read_text()


def test_a_night_without_a_check_is_refused_with_those_that_have_one(workspace: Workspace, run: Run) -> None:
    assert write_night_page(workspace, datetime(2024, 5, 1, tzinfo=UTC)) is None
    nothing = run(workspace, "drift", "page", "--night", "2024-05-01")
    assert (nothing.code, nothing.out) == (1, "")
    assert "No drift check was recorded of the night 2024-05-01: no night has one." in nothing.err

    record(workspace, "2024-05-02")
    assert (
        "those from 2024-05-02 to 2024-05-02 have one" in run(workspace, "drift", "page", "--night", "2024-05-01").err
    )


def test_drift_and_its_page_show_the_check_that_is_made_now(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    stages.simulate(workspace, n_episodes=300, traffic=1.6)
    stages.ingest(workspace)

    shown = run(workspace, "drift")
    assert shown.out.splitlines()[0].startswith("Retrain: observation.")
    assert "offline-dqn drift page --workspace" in shown.out
    page = run(workspace, "drift", "page", "--output", tmp_path / "page.html", "--json").json
    assert page == {"page": str(tmp_path / "page.html"), "night": "2026-01-06"}
    text = (tmp_path / "page.html").read_text()
    assert "observation.request_rate" in text
    whole = run(workspace, "drift", "--json").json
    newest = checks_now(workspace, whole).newest
    assert newest.report is not None
    assert json.loads(json.dumps(newest.report.to_json())) == whole["report"]


@pytest.mark.parametrize("with_display", [False, True])
def test_page_opens_in_a_browser_where_there_is_a_display(
    workspace: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch, with_display: bool
) -> None:
    record(workspace, "2024-05-01")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if with_display:
        monkeypatch.setenv("DISPLAY", ":0")
    else:
        monkeypatch.delenv("DISPLAY", raising=False)

    shown = run(workspace, "drift", "page", "--night", "2024-05-01", "--open")
    assert len(opened) == with_display
    assert ("no display" in shown.err) != with_display
