"""A candidate that nobody decides on in time lapses: recorded, and refused until it is evaluated again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from pipelines import promoting, stages
from pipelines.lapsing import deadline_of, record_lapses, why_lapsed
from pipelines.promoting import LapsedError
from pipelines.readings import ledger_of
from pipelines.review import ReviewForm, carry_out, question, settled
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, edit


@pytest.fixture
def waiting(workspace: Workspace) -> Workspace:
    """Release 1 passed and nobody has decided on it."""
    (workspace.releases_path / "history.jsonl").unlink()
    return workspace


def with_days(workspace: Workspace, days: float) -> Workspace:
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(f"[nightly]\nreview_days = {days}\n\n{settings.read_text()}")
    return open_workspace(workspace.root)


def test_the_deadline_counts_from_the_evaluation_and_is_shown(waiting: Workspace) -> None:
    deadline = deadline_of(waiting, 1)

    assert deadline is not None
    assert timedelta(days=13.9) < deadline - datetime.now(UTC) < timedelta(days=14)
    assert f"Decide by {deadline:%Y-%m-%d %H:%M} UTC; then it lapses." in question(waiting, 1)
    assert why_lapsed(waiting, 1, deadline) == ""
    assert why_lapsed(waiting, 1, deadline + timedelta(seconds=1)).startswith("Release 1 has lapsed: nobody promoted")
    assert deadline_of(waiting, 0) is None  # the rules were never judged


def test_a_lapsed_release_is_recorded_once_and_not_promoted(waiting: Workspace, run: Run) -> None:
    lapsed = with_days(waiting, 1e-6)
    (sentence,) = record_lapses(lapsed)
    assert record_lapses(lapsed) == []
    (line,) = (lapsed.releases_path / "lapses.jsonl").read_text().splitlines()

    assert json.loads(line)["release"] == 1
    assert "`offline-dqn evaluate 1 --again`" in sentence
    with pytest.raises(LapsedError, match=r"Release 1 cannot be promoted\. Release 1 has lapsed"):
        promoting.promote(lapsed, 1, reviewer="Ada", note="all the same", override=True)
    assert run(lapsed, "promote", "1", "--reviewer", "Ada").code == 3
    form = ReviewForm.model_validate({"decision": "approve", "reviewer": "Ada"})
    with pytest.raises(LapsedError):  # a form that was answered too late
        carry_out(lapsed, 1, form)
    assert lapsed.registry.champion() is None
    done = settled(lapsed, 1)
    assert done is not None
    assert done["action"] == "lapse"


def test_it_is_evaluated_again_by_the_same_reading_and_then_promoted(waiting: Workspace) -> None:
    lapsed = with_days(waiting, 1e-6)
    assert why_lapsed(lapsed, 1)
    spent = len(ledger_of(lapsed).readings())
    edit(lapsed.root / "offline_dqn.toml", "review_days = 1e-06", "review_days = 14")
    kept = open_workspace(lapsed.root)
    with pytest.raises(stages.StageError, match="stands"):  # not lapsed under this deadline
        stages.evaluate(kept, 1, again=True)

    assert stages.evaluate(lapsed, 1, again=True).passed
    assert len(ledger_of(lapsed).readings()) == spent  # the same reading: nothing more is spent
    promotion, _ = promoting.promote(kept, 1, reviewer="Ada")
    assert promotion.to_release == 1


def test_what_was_decided_does_not_lapse(workspace: Workspace) -> None:
    promoted = with_days(workspace, 1e-6)

    assert (why_lapsed(promoted, 1), record_lapses(promoted)) == ("", [])
    promoted.registry.rollback(reviewer="Ada")
    assert record_lapses(promoted) == []
