"""What of a night that died is taken over, and when it is begun afresh instead."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.night_progress import begin_or_resume, end_progress, read_progress, write_progress
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import edit

NIGHT = datetime(2026, 1, 6, 2, 30, tzinfo=UTC)


def died(workspace: Workspace, *, force_train: bool = False) -> None:
    """A night that died in its training."""
    progress = begin_or_resume(workspace, force_train=force_train, now=NIGHT)
    for stage in ("ingest", "drift", "snapshot"):
        progress = progress.begin(stage).finish(stage, 3, 1.5, {"made": stage})
    write_progress(workspace, progress.begin("train"))


def again(workspace: Workspace, hours: float = 1.0, **given: bool) -> tuple[int, str]:
    """Which start the next one is, and why it began afresh."""
    progress = begin_or_resume(
        open_workspace(workspace.root, workspace.given_as_of),
        **{"force_train": False, **given},
        now=NIGHT + timedelta(hours=hours),
    )
    assert bool(progress.finished) == (progress.n_starts > 1)
    return progress.n_starts, progress.why_afresh


def test_it_is_taken_up_with_what_its_stages_found(fresh: Workspace) -> None:
    assert read_progress(fresh) is None
    died(fresh)
    progress = begin_or_resume(fresh, force_train=False, now=NIGHT + timedelta(hours=1))

    assert (progress.n_starts, progress.under_way, progress.started_at) == (2, "train", NIGHT.isoformat())
    assert progress.found("snapshot") == {"made": "snapshot"}
    assert progress.found("train") is None
    assert progress.seconds() == {"ingest": 1.5, "drift": 1.5, "snapshot": 1.5}


def test_what_read_another_version_of_the_lake_is_not_taken_over(fresh: Workspace) -> None:
    died(fresh)
    progress = begin_or_resume(fresh, force_train=False, now=NIGHT)

    assert progress.found("drift", 3) == {"made": "drift"}
    assert progress.found("drift", 4) is None


def test_a_clock_night_keeps_the_instant_that_it_took_for_now(fresh: Workspace) -> None:
    edit(fresh.root / "offline_dqn.toml", 'as_of = "newest"', 'as_of = "now"')
    fresh = open_workspace(fresh.root)
    died(fresh)

    progress = begin_or_resume(fresh, force_train=False, now=NIGHT + timedelta(hours=1))
    assert progress.as_of == NIGHT.isoformat()  # else the snapshot would be another, and its training lost


def test_it_is_begun_afresh_where_something_that_decided_it_is_another(fresh: Workspace) -> None:
    died(fresh)

    assert again(fresh) == (2, "")
    assert again(fresh, hours=20.1)[0] == 1
    assert "older than nightly.resume_within_hours (20)" in again(fresh, hours=20.1)[1]
    assert again(fresh, afresh=True) == (1, "it was asked to")
    assert again(fresh, force_train=True)[1] == "of the one of 2026-01-06 02:30 UTC force_train differ"
    assert "another instant" in again(Workspace(fresh.root, datetime(2026, 1, 1, tzinfo=UTC)))[1]
    edit(fresh.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 801")
    assert again(fresh)[1] == "of the one of 2026-01-06 02:30 UTC settings differ"


@pytest.mark.parametrize("table", ["[notify]\nrepeat_hours = 3", "[nightly.timeout_hours]\ntrain = 48"])
def test_who_is_told_and_how_long_it_may_take_do_not_decide_it(fresh: Workspace, table: str) -> None:
    died(fresh)
    settings = fresh.root / "offline_dqn.toml"
    settings.write_text(f"{table}\n\n{settings.read_text()}")

    assert again(fresh) == (2, "")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"of": "another version"}'])
def test_a_record_that_cannot_be_read_is_begun_afresh(fresh: Workspace, content: str) -> None:
    Path(fresh.root / "night.json").write_text(content)

    assert again(fresh) == (1, "")
    end_progress(fresh)
    end_progress(fresh)  # also where there is none
    assert not (fresh.root / "night.json").exists()
