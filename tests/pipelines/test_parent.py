"""The champion as the parent of a training: what it gives, and when it must not."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.replay import TRAIN, Replay
from datasets.snapshot import SnapshotSummary, open_snapshot
from offline_dqn.learner import fit
from offline_dqn.policy import save_policy
from offline_dqn.sampling import BatchSource
from offline_dqn.streaming import training_source
from pipelines import parent as parents
from pipelines.parent import find_parent, first_parameters
from pipelines.training import newest_snapshot, train
from pipelines.workspace import Workspace, open_workspace
from reports.registry import JUDGED_AGAINST
from tests.pipelines.conftest import edit


@pytest.fixture
def warm(workspace: Workspace) -> Workspace:
    """A workspace whose champion, release 2, is a network; [train] asks for a warm start."""
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 40\nwarm_start = true\nolder_share = 0.3")
    opened = open_workspace(workspace.root)
    _, summary, source = snapshot_of(opened)
    trained = fit(source, opened.config.train.model_copy(update={"n_updates": 20}))
    staged = opened.registry.new_staging()
    save_policy(staged, trained.policy(trained.network("cql 0.1")))
    record = {"snapshot": newest_snapshot(opened).name, "as_of": summary.as_of, "history": [], "config": {}}
    (staged / "training.json").write_text(json.dumps(record))
    release = opened.registry.register(staged, gate="passed", tags={JUDGED_AGAINST: "1"})
    opened.registry.promote(release, reviewer="Ada")
    assert release == 2
    return open_workspace(workspace.root)


def snapshot_of(workspace: Workspace) -> tuple[Replay, SnapshotSummary, BatchSource]:
    replay, summary = open_snapshot(newest_snapshot(workspace))
    return replay, summary, training_source(replay, replay.split == TRAIN, workspace.config.train)


def test_the_champions_networks_and_the_nights_it_knew(warm: Workspace) -> None:
    replay, summary, source = snapshot_of(warm)
    later = replace(replay, nights=replay.nights + np.where(np.arange(replay.n_episodes) % 2, 30, 0))
    parent = find_parent(warm, later, summary)
    assert parent is not None
    assert (parent.release, parent.refused) == (2, "")
    np.testing.assert_array_equal(parent.older, np.arange(replay.n_episodes) % 2 == 0)
    first = first_parameters(warm, parent, source)
    assert first is not None
    assert first["hidden.0.weight"].shape == (1, source.encoder.size, 32)


def test_without_a_wish_or_a_trained_champion_there_is_no_parent(
    warm: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    replay, summary, source = snapshot_of(warm)
    warm.registry.rollback(reviewer="Ada", to=0)  # rules, which nothing was trained for
    assert find_parent(warm, replay, summary) is None
    with caplog.at_level(logging.INFO):
        assert first_parameters(warm, None, source) is None
    assert "there is no trained champion yet; training starts afresh" in caplog.text
    edit(warm.root / "offline_dqn.toml", "warm_start = true\nolder_share = 0.3", "")
    assert find_parent(open_workspace(warm.root), replay, summary) is None


def test_a_champion_of_another_shape_is_a_warning(warm: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    edit(warm.root / "offline_dqn.toml", "hidden = [32, 32]", "hidden = [16]")
    opened = open_workspace(warm.root)
    replay, summary, source = snapshot_of(opened)
    assert first_parameters(opened, find_parent(opened, replay, summary), source) is None
    assert "afresh instead of from release 2, the champion: hidden was (32, 32) and is (16,)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_share": 0.2},
            "its episodes were split otherwise (train_share was 0.45 and is 0.2), so it may have seen",
        ),
        ({"salt": "pepper"}, "split otherwise (salt was 'autoscaler' and is 'pepper')"),
    ],
)
def test_a_champion_that_may_have_seen_what_judges_is_refused(
    warm: Workspace, caplog: pytest.LogCaptureFixture, changes: dict[str, object], message: str
) -> None:
    replay, summary, source = snapshot_of(warm)
    parent = find_parent(warm, replay, replace(summary, config={**summary.config, **changes}))
    assert first_parameters(warm, parent, source) is None
    assert message in caplog.text


def test_a_gate_that_reaches_back_behind_the_champions_is_refused(
    warm: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, summary, _ = snapshot_of(warm)
    monkeypatch.setattr(parents, "read_summary", lambda _: replace(summary, gate_since="2024-05-10"))
    refused = find_parent(warm, replay, replace(summary, gate_since="2024-05-09"))
    assert refused is not None
    assert "tonight's gate begins on 2024-05-09, before 2024-05-10" in refused.refused
    allowed = find_parent(warm, replay, replace(summary, gate_since="2024-05-10"))
    assert allowed is not None
    assert allowed.refused == ""


def test_a_champion_whose_snapshot_is_gone_cannot_be_checked(warm: Workspace, tmp_path: Path) -> None:
    replay, summary, _ = snapshot_of(warm)
    newest_snapshot(warm).rename(tmp_path / "elsewhere")
    parent = find_parent(warm, replay, summary)
    assert parent is not None
    assert parent.refused.startswith("how its episodes were split cannot be checked")


def test_training_goes_on_from_the_champion_and_names_it(warm: Workspace) -> None:
    outcome = train(warm)
    record = json.loads((warm.release_path(outcome.release) / "training.json").read_text())
    assert record["parent"]["release"] == 2
    assert train(warm).repeated
    assert sorted(path.name for path in (warm.root / "tensorboard").glob("*/*")) == ["all", "bc", "cql 0.1"]
