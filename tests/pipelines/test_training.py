from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datasets.replay import GATE, SELECT, TRAIN
from datasets.snapshot import open_snapshot
from offline_dqn.policy import load_policy
from pipelines import stages, training
from pipelines.acting import ReleaseError
from pipelines.cli import print_training
from pipelines.training import newest_snapshot, train
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import edit


def digest_of(workspace: Workspace, release: int) -> str:
    return load_policy(workspace.release_path(release)).digest


def test_release_holds_the_whole_table_of_candidates(workspace: Workspace) -> None:
    record = json.loads((workspace.release_path(1) / "training.json").read_text())
    names = [candidate["name"] for candidate in record["selection"]["candidates"]]
    assert {"always hold", "tree of the log", "bc", "cql 0.1"} <= set(names)
    assert record["chosen"] in names
    assert record["select_config"] == workspace.config.select.model_dump(mode="json")
    report = (workspace.release_path(1) / "report.html").read_text()
    assert all(name in report for name in names)


def test_same_data_and_settings_are_the_same_release(workspace: Workspace) -> None:
    again = train(workspace)
    assert (again.release, again.repeated) == (1, True)
    assert len(workspace.releases_on_disk()) == 2


def test_settings_that_change_nothing_are_the_same_release(workspace: Workspace) -> None:
    edit(workspace.root / "offline_dqn.toml", "checkpoint_every = 100", "checkpoint_every = 50\nlog_every = 70")
    half = workspace.root / "checkpoints" / newest_snapshot(workspace).name
    half.mkdir(parents=True)
    (workspace.release_path(1) / "report.html").unlink()  # an evaluation's, which can be written anew
    outcome = train(open_workspace(workspace.root))
    assert (outcome.release, outcome.repeated) == (1, True)
    assert not half.exists()


def test_the_same_policy_by_another_choice_is_the_same_release(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(workspace.root / "offline_dqn.toml", "alpha = 0.05", "alpha = 0.04")
    policy = load_policy(workspace.release_path(1))
    recorded = json.loads((workspace.release_path(1) / "training.json").read_text())
    monkeypatch.setattr(training, "_train_networks", lambda *_, **__: (SimpleNamespace(**_TRAINED), None))
    chosen = SimpleNamespace(
        policy=policy, chosen=SimpleNamespace(name=recorded["chosen"]), to_json=lambda: recorded["selection"]
    )
    monkeypatch.setattr(training, "choose", lambda *_, **__: chosen)
    outcome = train(open_workspace(workspace.root))
    assert (outcome.release, outcome.repeated) == (1, True)
    assert not list(workspace.registry.releases_path.glob(".staging-*"))


_TRAINED: dict[str, Any] = {
    "networks": (),
    "history": (),
    "n_updates": 800,
    "n_steps": 1,
    "n_unusable_steps": 0,
    "diverged": {},
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n_random_features = 100", "n_random_features = 60"),
        ("alpha = 0.05", "alpha = 0.05\nmargin = 3.0"),
        ("[evaluate]", "[select]\nn_finalists = 1\n\n[evaluate]"),
        ("n_updates = 800", "n_updates = 700"),
    ],
)
def test_whatever_decides_the_choice_asks_for_a_training(
    old: str, new: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(workspace.root / "offline_dqn.toml", old, new)
    monkeypatch.setattr(training, "_train_networks", _die)
    with pytest.raises(KeyboardInterrupt):
        train(open_workspace(workspace.root))


def test_another_champion_asks_for_a_training(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.registry.promote(0, reviewer="Ada")
    monkeypatch.setattr(training, "_train_networks", _die)
    with pytest.raises(KeyboardInterrupt):
        train(workspace)


def test_a_damaged_champion_is_named_before_anything_is_trained(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.release_path(1) / "policy.json").write_text("{}")
    monkeypatch.setattr(training, "_train_networks", _die)
    with pytest.raises(ReleaseError, match="Release 1 is not what was registered"):
        train(workspace)


def test_a_full_disk_leaves_no_half_release(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: object) -> str:
        (path / "policy.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "save_policy", full)
    with pytest.raises(OSError, match="No space left"):
        training._register(workspace, load_policy(workspace.release_path(1)), {})
    assert not list(workspace.registry.releases_path.glob(".staging-*"))


def test_a_new_world_without_an_episode_is_a_message(workspace: Workspace) -> None:
    path, _ = stages.snapshot(workspace, judge_since=date(2100, 1, 1))
    with pytest.raises(training.StageError, match=r"the world changed on 2100-01-01, and no episode"):
        train(workspace, path)


def test_too_much_to_judge_on_is_drawn_at_random_from_both_splits(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, _ = open_snapshot(newest_snapshot(workspace))
    n_select = int((replay.split == SELECT).sum())
    monkeypatch.setattr(training, "_MOST_STEPS", int(replay.lengths[replay.split == SELECT].sum()))
    episodes = training._episodes_to_judge(replay, None)
    kept = episodes.split == SELECT
    assert 0 < kept.sum() < n_select
    assert (episodes.split == TRAIN).any()
    first = replay.episode_ids[replay.split == SELECT][: kept.sum()]
    assert set(first) != set(episodes.episode_ids[kept])
    monkeypatch.setattr(training, "_MOST_BYTES", 1_000)
    assert training._episodes_to_judge(replay, None).n_episodes < episodes.n_episodes


def test_killed_between_training_and_choice_it_ends_in_the_same_bits(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 700")
    opened = open_workspace(workspace.root)
    with monkeypatch.context() as patch:
        patch.setattr(training, "choose", _die)
        with pytest.raises(KeyboardInterrupt):
            train(opened)
    assert list((opened.root / "checkpoints").glob("*/*"))
    resumed = train(opened)
    assert (resumed.release, resumed.repeated) == (2, False)
    monkeypatch.setattr(training, "trained_before", lambda *_: None)
    monkeypatch.setattr(training, "same_policy", lambda *_: None)
    undisturbed = train(opened)
    assert undisturbed.release != resumed.release
    assert digest_of(opened, undisturbed.release) == digest_of(opened, resumed.release)
    assert undisturbed.selection == resumed.selection


def test_nothing_but_train_and_select_was_used(workspace: Workspace) -> None:
    replay, _ = open_snapshot(newest_snapshot(workspace))
    record = json.loads((workspace.release_path(1) / "training.json").read_text())
    used = record["selection"]["n_episodes"] + record["selection"]["n_reused"]
    assert used == replay.n_episodes - int((replay.split == GATE).sum())


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_without_a_snapshot_training_says_what_to_do(workspace: Workspace) -> None:
    for folder in workspace.snapshots_path.glob("*/snapshot.json"):
        folder.unlink()
    with pytest.raises(training.StageError, match=r"There is no snapshot to train on. `offline-dqn snapshot` freezes"):
        newest_snapshot(workspace)


def test_a_warm_start_that_worked_is_told(capsys: pytest.CaptureFixture[str], workspace: Workspace) -> None:
    outcome = training.read_outcome(workspace, 1)
    print_training(outcome)
    assert "began with" not in capsys.readouterr().out
    print_training(replace(outcome, began_with=1))
    assert "began with release 1, the champion" in capsys.readouterr().out
