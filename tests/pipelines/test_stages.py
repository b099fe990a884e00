"""What the stages decide between reading and writing: which nights are live, and who wrote an episode."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from datasets.snapshot import open_snapshot
from pipelines import live_nights, stages
from pipelines.acting import load_release
from pipelines.training import train, written_by
from pipelines.workspace import Workspace
from tests.datasets.builders import tiny
from tests.pipelines.conftest import Run


def live_replay(window: str | None, *nights: str) -> Any:
    """What `newest_nights` asks of a replay; episodes time out after two hours."""
    days = np.array(nights, dtype="datetime64[D]")
    outcomes = {"outcomes": {"attribution_window": window}} if window else {}
    contract = tiny(episodes={"timeout": "2h"}, **outcomes)
    return SimpleNamespace(nights=days, contract=contract, subset=lambda kept: days[kept].tolist())


@pytest.mark.parametrize(
    ("as_of", "clock", "window", "expected"),
    [
        ("2026-03-03T02:30", "now", None, ["2026-03-02"]),  # today's first hours are no night yet
        ("2026-03-03T01:30", "now", None, ["2026-03-01"]),  # last night's episodes may still run
        ("2026-03-03T02:30", "newest", None, ["2026-03-03"]),  # simulated and back-filled nights are whole
        ("2026-03-03T02:30", "now", "1h", ["2026-03-01"]),  # last night's rewards may still come
        ("2026-03-03T03:00", "newest", "1h", ["2026-03-02"]),  # those of a whole night too
    ],
)
def test_only_nights_that_are_over_are_live(as_of: str, clock: str, window: str | None, expected: list[str]) -> None:
    settings = SimpleNamespace(ingest=SimpleNamespace(as_of=clock), drift=SimpleNamespace(live_nights=1))
    workspace = cast(Workspace, SimpleNamespace(config=settings))
    live = live_replay(window, "2026-03-01", "2026-03-02", "2026-03-03")

    found = live_nights.newest_nights(workspace, live, datetime.fromisoformat(as_of).replace(tzinfo=UTC))

    assert [str(night) for night in cast(Any, found)] == expected


def test_a_folder_of_logs_that_has_gone_is_no_quiet_night(workspace: Workspace) -> None:
    workspace.logs_path.rename(workspace.root / "away")
    with pytest.raises(stages.StageError, match=r"steps does not exist.*Is a disk not mounted\?.*mkdir -p"):
        stages.ingest(workspace)
    workspace.logs_path.mkdir()
    assert stages.ingest(workspace).batch is None


def test_a_version_number_alone_does_not_make_an_episode_the_rules_own(workspace: Workspace) -> None:
    replay, _ = open_snapshot(next(workspace.snapshots_path.glob("*/snapshot.json")).parent)
    rules = load_release(workspace, 0, replay.contract)

    assert written_by(rules, 0, replay).all()
    other = replace(replay, behavior_prob=np.full(replay.n_steps, 1 / 3))
    assert not written_by(rules, 0, other).any()


def test_an_evaluation_that_the_registry_does_not_know_is_no_evaluation(workspace: Workspace) -> None:
    # The same data with another seed give a new release; its evaluation dies between its files and its record.
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(settings.read_text().replace("[train]", "[train]\nseed = 5"))
    release = train(Workspace(workspace.root)).release
    first = workspace.release_path(1) / "evaluation.json"
    (workspace.release_path(release) / "evaluation.json").write_bytes(first.read_bytes())

    assert stages.recorded_evaluation(workspace, release) is None
    assert not stages.evaluate(Workspace(workspace.root), release).repeated
    assert stages.evaluate(Workspace(workspace.root), release).repeated


def test_an_added_action_leaves_drift_and_evaluation_standing(workspace: Workspace, run: Run) -> None:
    contract = workspace.root / "contract.toml"
    contract.write_text(contract.read_text().replace('"scale_up"]', '"scale_up", "restart"]'))

    outcome = run(workspace.root, "drift")
    assert outcome.code == 0, outcome.err
