"""Snapshots in a bucket: frozen on one machine, read on another, and gone from all once an episode of them must go."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from datasets.bucket_folder import AlteredObjectError, follow_bucket
from datasets.erased import read_erased
from datasets.erasure import erase_subject, named_subject
from datasets.freezing import freeze_snapshot
from datasets.lake import Lake, open_lake
from datasets.object_store import ObjectMissingError, ObjectStore, open_store
from datasets.redaction import check_stored, redact_erased
from datasets.snapshot import ErasedSnapshotError, SnapshotError, current_snapshot, open_snapshot, read_summary
from datasets.snapshot_bucket import (
    ReplacedSnapshotError,
    pull_snapshots,
    retire_snapshot,
    sweep_uploads,
    unchecked_snapshots,
)
from datasets.snapshot_config import SnapshotConfig
from tests.datasets.builders import NOON, episode, lake_at, step_row, suite_says, take_in, tiny, write_rows

CONFIG = SnapshotConfig(train_share=0.4, select_share=0.3)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of three episodes and a cut one, to be copied."""
    folder = tmp_path_factory.mktemp("lake")
    with pytest.MonkeyPatch.context() as patched:
        suite_says(patched, True)
        rows = [row for name in ("a", "b", "c") for row in episode(name, observation={"zone": name})]
        rows += [step_row("cut", 0, truncated=True, final_observation={"cpu": 0.75, "zone": "last"})]
        take_in(lake_at(folder), write_rows(folder / "log.jsonl", rows))
    return folder


@pytest.fixture
def lake(filled: Path, tmp_path: Path) -> Lake:
    shutil.copytree(filled / "lake", tmp_path / "lake")
    return open_lake(tmp_path / "lake", tiny())


@pytest.fixture
def store(bucket_address: str) -> ObjectStore:
    return open_store(bucket_address)


@pytest.fixture
def machines(tmp_path: Path, bucket_address: str) -> tuple[Path, Path]:
    """The snapshots' folders of two machines."""
    folders = (tmp_path / "first", tmp_path / "second")
    for folder in folders:
        follow_bucket(folder, bucket_address, kind="snapshots", problem="tiny")
    return folders


def freeze(lake: Lake, folder: Path, config: SnapshotConfig = CONFIG) -> Path:
    return freeze_snapshot(lake, config, folder, as_of=NOON)[0]


def test_another_machine_describes_it_at_once_and_fetches_its_arrays_when_they_are_read(
    lake: Lake, machines: tuple[Path, Path]
) -> None:
    first, second = machines
    path = freeze(lake, first)
    pull_snapshots(second)
    other = second / path.name
    assert sorted(each.suffix for each in other.iterdir()) == [".json", ".json", ".json", ".parquet"]
    assert read_summary(other) == read_summary(path)
    mtimes = [(each / "snapshot.json").stat().st_mtime for each in (path, other)]
    assert mtimes[0] == pytest.approx(mtimes[1], abs=0.01)  # the newest is the newest everywhere
    mine, theirs = open_snapshot(path)[0], open_snapshot(other)[0]
    assert isinstance(theirs.rewards, np.memmap)
    assert theirs.rewards.tobytes() == mine.rewards.tobytes()
    assert theirs.episode_ids.tolist() == mine.episode_ids.tolist()


def test_what_points_at_an_upload_comes_last_and_a_killed_one_is_done_again(
    lake: Lake, machines: tuple[Path, Path], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machines
    put, n_puts = ObjectStore.put, list[str]()

    def killed(store: ObjectStore, key: str, content: bytes | Path) -> None:
        n_puts.append(key)
        if len(n_puts) == 5:
            raise KeyboardInterrupt
        put(store, key, content)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            freeze(lake, first)
    pull_snapshots(second)
    assert not list(second.glob("*/snapshot.json"))
    path = freeze(lake, first)
    pull_snapshots(second)
    open_snapshot(second / path.name)
    n_objects = len(store.list())
    assert sweep_uploads(first) == 0
    assert sweep_uploads(first, datetime.now(UTC) + timedelta(days=2)) == 4
    assert len(store.list()) == n_objects - 4
    shutil.rmtree(second / path.name)
    pull_snapshots(second)
    open_snapshot(second / path.name)


def test_the_same_content_frozen_on_two_machines_is_stored_once(
    lake: Lake, machines: tuple[Path, Path], store: ObjectStore
) -> None:
    paths = [freeze(lake, folder) for folder in machines]
    assert paths[0].name == paths[1].name
    assert len({each.key.split("/")[1] for each in store.list(paths[0].name)}) == 1
    for path in paths:
        open_snapshot(path)


def test_a_changed_byte_here_is_fetched_anew_and_one_in_the_bucket_is_refused(
    lake: Lake, machines: tuple[Path, Path], store: ObjectStore
) -> None:
    first, second = machines
    path = freeze(lake, first)
    pull_snapshots(second)
    other = second / path.name
    open_snapshot(other)
    (other / "rewards.npy").write_bytes(b"evil")
    assert open_snapshot(other)[0].rewards.tobytes() == open_snapshot(path)[0].rewards.tobytes()
    key = next(each.key for each in store.list(path.name) if each.key.endswith("rewards.npy"))
    store.put(key, b"evil")
    (other / "rewards.npy").unlink()
    with pytest.raises(AlteredObjectError, match=r"rewards\.npy is not what was stored: its SHA-256 is"):
        open_snapshot(other)
    assert not (other / "rewards.npy").exists()
    store.delete([key])
    with pytest.raises(ObjectMissingError, match=r"Cannot read .*rewards\.npy"):
        open_snapshot(other)


def test_an_erased_episode_is_gone_from_the_bucket_and_from_every_copy(
    lake: Lake, machines: tuple[Path, Path], store: ObjectStore
) -> None:
    first, second = machines
    path = freeze(lake, second)
    open_snapshot(path)
    subject = named_subject(lake.contract, None, episode="b", named=None)
    found = erase_subject(lake, subject, None, first, at=datetime(2024, 6, 1, tzinfo=UTC))
    successor = found.snapshots[path.name]
    assert successor is not None
    assert [each.key for each in store.list(path.name)] == []
    pull_snapshots(second)
    assert sorted(each.name for each in path.iterdir()) == [".stored.json", "erased.json"]
    with pytest.raises(ErasedSnapshotError, match=f"What is left of it is the snapshot {successor}"):
        open_snapshot(path)
    assert open_snapshot(second / successor)[0].episode_ids.tolist() == ["a", "c", "cut"]


def test_an_erasure_that_died_before_it_reached_the_bucket_reaches_it_with_the_next(
    lake: Lake, machines: tuple[Path, Path], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = machines
    path = freeze(lake, first)
    subject = named_subject(lake.contract, None, episode="b", named=None)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("datasets.snapshot_bucket.store_erasure", killed)
        with pytest.raises(KeyboardInterrupt):
            erase_subject(lake, subject, None, first, at=datetime(2024, 6, 1, tzinfo=UTC))
    assert store.list(path.name)
    freeze(lake, first)
    assert not store.list(path.name)


def test_a_machine_that_froze_while_another_erased_cannot_bring_it_back(
    lake: Lake, machines: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = machines
    before = open_lake(shutil.copytree(lake.root, tmp_path / "before"), tiny())  # what the second machine has read
    path = freeze(lake, first)
    subject = named_subject(lake.contract, None, episode="b", named=None)
    erase_subject(lake, subject, None, first, at=datetime(2024, 6, 1, tzinfo=UTC))
    with pytest.raises(ReplacedSnapshotError, match=f"{path.name} was erased while this machine froze it"):
        freeze(before, second)
    pull_snapshots(second)
    with pytest.raises(ErasedSnapshotError):
        open_snapshot(second / path.name)


def test_what_was_erased_while_another_machine_froze_goes_from_what_it_froze(
    lake: Lake, machines: tuple[Path, Path], tmp_path: Path, store: ObjectStore
) -> None:
    first, second = machines
    before = open_lake(shutil.copytree(lake.root, tmp_path / "before"), tiny())  # what the second machine has read
    subject = named_subject(lake.contract, None, episode="b", named=None)
    erase_subject(lake, subject, None, first, at=datetime(2024, 6, 1, tzinfo=UTC))
    path = freeze(before, second)  # comes to the bucket when the erasure has looked through it
    assert "b" in open_snapshot(path)[0].episode_ids
    left = redact_erased(path, read_erased(lake.root))
    assert left is not None
    assert open_snapshot(left)[0].episode_ids.tolist() == ["a", "c", "cut"]
    assert [each.key for each in store.list(path.name)] == []
    assert redact_erased(left, read_erased(lake.root)) == left


def test_a_machine_that_died_after_it_stored_a_snapshot_leaves_a_mark_by_which_it_is_checked(
    lake: Lake, machines: tuple[Path, Path], tmp_path: Path, store: ObjectStore
) -> None:
    first, second = machines
    before = open_lake(shutil.copytree(lake.root, tmp_path / "before"), tiny())
    subject = named_subject(lake.contract, None, episode="b", named=None)
    erase_subject(lake, subject, None, first, at=datetime(2024, 6, 1, tzinfo=UTC))
    path = freeze(before, second)  # and here the machine dies
    assert unchecked_snapshots(second) == [path]

    check_stored(second, lambda: read_erased(lake.root))
    assert unchecked_snapshots(second) == []
    assert [each.key for each in store.list(path.name)] == []
    pull_snapshots(first)
    assert open_snapshot(current_snapshot(first / path.name))[0].episode_ids.tolist() == ["a", "c", "cut"]


def test_a_snapshot_whose_upload_was_cut_off_is_checked_and_one_that_is_gone_forgotten(
    lake: Lake, machines: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = machines

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("datasets.snapshot_bucket.store_snapshot", killed)
        with pytest.raises(KeyboardInterrupt):
            freeze(lake, first)
    (path,) = unchecked_snapshots(first)
    check_stored(first, lambda: read_erased(lake.root))
    assert unchecked_snapshots(first) == []  # nobody was erased
    assert freeze(lake, first) == path
    shutil.rmtree(path)
    check_stored(first, lambda: read_erased(lake.root))
    assert unchecked_snapshots(first) == []


def test_a_retired_snapshot_leaves_every_machine_and_can_be_frozen_again(
    lake: Lake, machines: tuple[Path, Path], store: ObjectStore
) -> None:
    first, second = machines
    path = freeze(lake, first)
    pull_snapshots(second)
    retire_snapshot(path)
    assert [each.key for each in store.list(path.name)] == []
    pull_snapshots(second)
    assert not (second / path.name).exists()
    freeze(lake, first)
    pull_snapshots(second)
    open_snapshot(second / path.name)


def test_machines_cannot_split_by_different_rules(lake: Lake, machines: tuple[Path, Path]) -> None:
    first, second = machines
    freeze(lake, first)
    with pytest.raises(
        SnapshotError, match=r"The splits of a workspace never change.*train_share was 0\.4 and is 0\.5"
    ):
        freeze(lake, second, SnapshotConfig(train_share=0.5, select_share=0.3))


def test_the_newest_trained_night_is_everybodys(
    lake: Lake, machines: tuple[Path, Path], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = machines
    swapped, n_swaps = ObjectStore.put_if_absent, list[str]()

    def raced(target: ObjectStore, key: str, content: bytes) -> bool:
        if key == "splits.json" and not n_swaps:
            n_swaps.append(key)
            rule = {**json.loads(content)["rule"]}
            swapped(target, key, json.dumps({"rule": rule, "trained_until": "2030-01-01"}).encode())
        return swapped(target, key, content)

    monkeypatch.setattr(ObjectStore, "put_if_absent", raced)
    freeze(lake, first)
    assert json.loads(store.get("splits.json"))["trained_until"] == "2030-01-01"
