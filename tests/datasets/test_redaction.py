"""Erasure in snapshots: what is left, what says so, and what a process that dies leaves behind."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import redaction
from datasets.freezing import freeze_snapshot
from datasets.lake import Lake
from datasets.redaction import redact_snapshot
from datasets.snapshot import ErasedSnapshotError, SnapshotError, current_snapshot, open_snapshot
from datasets.snapshot_config import SnapshotConfig
from tests.datasets.builders import NOON, episode, lake_at, step_row, take_in, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")

AT = datetime(2024, 6, 1, tzinfo=UTC)


def lake_of(folder: Path, *names: str) -> Lake:
    lake = lake_at(folder)
    rows = [row for name in names for row in episode(name, observation={"zone": name})]
    rows += [step_row("cut", 0, truncated=True, final_observation={"cpu": 0.75, "zone": "last"})]
    take_in(lake, write_rows(folder / "log.jsonl", rows))
    return lake


def freeze(lake: Lake) -> Path:
    path, _ = freeze_snapshot(lake, SnapshotConfig(), lake.root.parent / "snapshots", as_of=NOON)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return freeze(lake_of(tmp_path, "a", "b", "c"))


def arrays_of(path: Path) -> dict[str, Any]:
    return {file.name: np.load(file).tolist() for file in sorted(path.glob("*.npy"))}


def test_the_successor_holds_what_a_lake_without_these_episodes_would_give(path: Path, tmp_path: Path) -> None:
    successor = redact_snapshot(path, {"b", "not there"}, at=AT)
    fresh = freeze(lake_of(tmp_path / "other", "a", "c"))

    assert successor is not None
    assert repr(arrays_of(successor)) == repr(arrays_of(fresh))
    replay, summary = open_snapshot(successor)
    expected, other = open_snapshot(fresh)
    assert replay.observations.vocabularies == expected.observations.vocabularies == {"zone": ("a", "c", "last")}
    assert replay.episode_ids.tolist() == expected.episode_ids.tolist()
    assert replay.clusters.tolist() == expected.clusters.tolist()
    assert replay.split.tolist() == expected.split.tolist()
    assert repr(replay.starts) == repr(expected.starts)
    assert (summary.n_erased, summary.n_episodes, summary.n_steps) == (1, other.n_episodes, other.n_steps)
    assert summary.digest != other.digest  # it is marked
    assert summary.redacted_from is not None
    assert summary.redacted_from.startswith(path.name)


def test_the_erased_one_says_so_and_names_what_is_left(path: Path) -> None:
    successor = redact_snapshot(path, {"b"}, at=AT)

    assert successor is not None
    assert [file.name for file in path.iterdir()] == ["erased.json"]
    said = rf"is not replayable: erased on 2024-06-01.* What is left of it is the snapshot {successor.name}\."
    with pytest.raises(ErasedSnapshotError, match=said):
        open_snapshot(path)
    assert current_snapshot(path) == successor
    assert redact_snapshot(path, {"b"}) == successor


def test_a_second_erasure_leads_on(path: Path) -> None:
    first = redact_snapshot(path, {"a"})
    assert first is not None
    second = redact_snapshot(first, {"b"})

    assert second is not None
    assert current_snapshot(path) == second
    assert open_snapshot(second)[1].n_erased == 2


def test_a_snapshot_that_holds_none_of_them_stays(path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    assert redact_snapshot(path, {"nobody"}) == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_nothing_is_left_when_all_of_it_goes(path: Path) -> None:
    assert redact_snapshot(path, {"a", "b", "c", "cut"}) is None
    with pytest.raises(ErasedSnapshotError, match=r"Nothing of it is left\."):
        current_snapshot(path)


def test_a_damaged_snapshot_goes_whole_because_nobody_can_tell_what_it_held(path: Path) -> None:
    (path / "rewards.npy").write_bytes(b"x")
    assert redact_snapshot(path, {"a"}) is None
    assert [file.name for file in path.iterdir()] == ["erased.json"]


def test_killed_after_the_new_one_was_written_it_ends_the_same(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(redaction, "_erase", killed)
        with pytest.raises(KeyboardInterrupt):
            redact_snapshot(path, {"b"}, at=AT)
    open_snapshot(path)  # as it was
    successor = redact_snapshot(path, {"b"}, at=AT)

    assert successor is not None
    open_snapshot(successor)
    assert [file.name for file in path.iterdir()] == ["erased.json"]
    assert {p.name for p in (tmp_path / "snapshots").glob("[!.]*")} == {path.name, successor.name, "splits.json"}


def test_killed_while_the_old_one_is_deleted_the_rest_goes_with_the_next_writer(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(redaction, "finish_erasures", lambda _: None)
        redact_snapshot(path, {"b"}, at=AT)
    assert (path / "rewards.npy").exists()
    with pytest.raises(ErasedSnapshotError):
        open_snapshot(path)
    (tmp_path / "snapshots" / ".new").mkdir()
    (tmp_path / "snapshots" / ".new" / "left behind").write_text("b")

    redact_snapshot(path, set())

    assert [file.name for file in path.iterdir()] == ["erased.json"]
    assert not (tmp_path / "snapshots" / ".new").exists()


def test_what_was_erased_is_not_frozen_again(path: Path, tmp_path: Path) -> None:
    redact_snapshot(path, {"b"})
    with pytest.raises(SnapshotError, match=r"again, of which episodes were erased\. `offline-dqn erase` takes them"):
        freeze(lake_at(tmp_path))


def test_the_newest_snapshot_stays_the_newest(path: Path) -> None:
    made = (path / "snapshot.json").stat().st_mtime
    successor = redact_snapshot(path, {"b"})
    assert successor is not None
    assert (successor / "snapshot.json").stat().st_mtime == made


def test_coverage_is_measured_anew(path: Path) -> None:
    before = json.loads((path / "coverage.json").read_text())
    successor = redact_snapshot(path, {"a", "b"})
    assert successor is not None
    if (successor / "coverage.json").exists():
        after = json.loads((successor / "coverage.json").read_text())
        assert sum(r["n_steps"] for r in after["regions"]) < sum(r["n_steps"] for r in before["regions"])


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"nowhere is no snapshot: there is no such folder"):
        redact_snapshot(tmp_path / "nowhere", {"a"})


def test_a_full_disk_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(redaction, "write_coverage", full)
        with pytest.raises(SnapshotError, match="No space left"):
            redact_snapshot(path, {"b"})
    shutil.copytree(path, path.with_name("copy"))
    open_snapshot(path)
