"""A lake in a bucket that several machines share: each machine is a folder of its own, most of them in one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datasets import lake as lakes
from datasets import lake_bucket, lake_upload, mirror
from datasets.addresses import parse_address
from datasets.batches import list_batches, reject_batch, release_batch
from datasets.compaction import LakeConfig, compact
from datasets.compatibility import IncompatibleContractError
from datasets.erasure import Subject, erase_subject
from datasets.ingest import IngestConfig
from datasets.journal import LakeError, refuse_altered
from datasets.lake import Lake, lake_lock, until_committed
from datasets.lake_bucket import CommitConflictError, LakeBucket, OtherLakeError
from datasets.lake_upload import upload_lake
from datasets.locking import LockedError
from datasets.object_store import ObjectStore, StoreUnreachableError
from datasets.privacy import KEY_VARIABLE, PrivacyError
from datasets.quarantine_replay import replay_quarantine
from datasets.retention import RetentionConfig, retire_rows
from datasets.rewriting import Rewrite, rewrite_rows
from tests.datasets.builders import (
    NOON,
    ask,
    change_bytes,
    counts_of,
    episode,
    lake_at,
    step_keys,
    step_row,
    suite_says,
    take_in,
    tiny,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("quick_suite")

STRIDE = 1 if os.environ.get("OFFLINE_DQN_LAKES_IN_BUCKET") else 23
"""How many moments lie between two at which a process is killed; `make bucket` leaves none out."""

AT = datetime(2024, 5, 2, 12, tzinfo=UTC)


class Machines:
    """Folders that are copies of one lake."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def lake(self, machine: str, **contract: Any) -> Lake:
        """The lake, opened on a machine."""
        return lake_at(self.folder / machine, tiny(**contract), self.address)

    def log(self, machine: str, name: str, *episodes: str) -> Path:
        """A log on a machine that holds these episodes."""
        return write_rows(self.folder / machine / name, [row for e in episodes for row in episode(e)])


@pytest.fixture
def machines(tmp_path: Path, bucket_address: str) -> Machines:
    return Machines(tmp_path, bucket_address)


def _rows(*episodes: str) -> list[tuple[str, int]]:
    return [(e, step) for e in sorted(episodes) for step in range(3)]


# --- several machines, one lake


def test_what_one_machine_takes_in_another_reads_and_knows_for_a_repeat(machines: Machines) -> None:
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e", "f"))
    report = take_in(machines.lake("two"), machines.log("two", "b.jsonl", "f", "g"))

    assert counts_of(report) == {"in": 6, "lake": 3, "duplicates": 3}
    assert step_keys(machines.lake("one")) == step_keys(machines.lake("new")) == _rows("e", "f", "g")
    assert {machines.lake(name).commit_number() for name in ("one", "two", "new")} == {2}
    assert take_in(machines.lake("new"), machines.log("new", "a.jsonl", "e", "f")).unchanged == ("a.jsonl",)


def test_a_commit_that_was_overtaken_is_prepared_anew_and_leaves_every_row_once(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lakes, "leased", _no_lease)  # both are at work at the same time
    one, two = machines.lake("one"), machines.lake("two")
    real, n_prepared = lakes.LakeBucket.publish, 0

    def publish(bucket: Any, entry: Any, before: Any) -> None:
        nonlocal n_prepared
        n_prepared += 1
        if n_prepared == 1:
            take_in(two, machines.log("two", "b.jsonl", "f", "g"))
        real(bucket, entry, before)

    monkeypatch.setattr(lakes.LakeBucket, "publish", publish)
    report = take_in(one, machines.log("one", "a.jsonl", "e", "f"))

    assert counts_of(report) == {"in": 6, "lake": 3, "duplicates": 3}  # the second time it knew of f
    assert n_prepared == 3
    assert step_keys(one) == step_keys(machines.lake("two")) == _rows("e", "f", "g")


def test_work_that_is_overtaken_every_time_gives_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lakes.time, "sleep", lambda _: None)
    tried: list[int] = []

    def work() -> None:
        tried.append(0)
        raise CommitConflictError("somebody was faster")

    with pytest.raises(CommitConflictError, match="somebody was faster"):
        until_committed(work)
    assert len(tried) == 6


def test_many_processes_at_once_leave_every_row_exactly_once(machines: Machines) -> None:
    n_processes, n_logs = 3, 1
    for n in range(n_processes):
        for i in range(n_logs):  # each episode is in the logs of two machines
            machines.log(str(n), f"{i}.jsonl", f"e{n}-{i}", f"e{(n + 1) % n_processes}-{i}")
    writers = [_writer(machines, str(n)) for n in range(n_processes)]
    ends = [writer.communicate(timeout=120) for writer in writers]

    assert [writer.returncode for writer in writers] == [0] * n_processes, ends
    lake = machines.lake("reader")
    assert step_keys(lake) == _rows(*[f"e{n}-{i}" for n in range(n_processes) for i in range(n_logs)])
    assert lake.commit_number() == n_processes * n_logs
    assert sum(batch.counts.n_duplicates for batch in list_batches(lake)) == 3 * n_processes * n_logs


def _writer(machines: Machines, machine: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.datasets.bucket_writer", machines.address, str(machines.folder / machine)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


@contextmanager
def _no_lease(*_: object, **__: object) -> Iterator[None]:
    yield


# --- a process that dies


class _Died(BaseException):
    """As a kill: nothing catches it."""


@contextmanager
def _dying_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Dies at the n-th of the moments at which a bucket or the copy changes, before or just after it; lists them."""
    seen: list[str] = []

    def mortal(name: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            seen.append(f"before {name}")
            if len(seen) == moment:
                raise _Died
            answer = real(*args, **options)
            seen.append(f"after {name}")
            if len(seen) == moment:
                raise _Died
            return answer

        return call

    with monkeypatch.context() as patch:
        for name in ("put", "put_if_absent", "delete", "download"):
            patch.setattr(ObjectStore, name, mortal(name, getattr(ObjectStore, name)))
        for module, name in [
            (mirror, "write_durably"),
            (mirror, "commit_table"),
            (mirror, "end_journal"),
            (mirror, "purge_history"),
        ]:
            patch.setattr(module, name, mortal(name, getattr(module, name)))
        patch.setattr(lakes, "leased", _no_lease)  # a dead process leaves a lease to its own machine at once
        yield seen


def test_an_ingest_killed_at_any_moment_leaves_all_or_nothing_and_is_repeated(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    for moment in range(1, 1000, STRIDE):
        name = f"x{moment}"
        log = machines.log("one", f"{name}.jsonl", name)
        lake, before = machines.lake("one"), step_keys(machines.lake("one"))
        with _dying_at(moment, monkeypatch) as seen, suppress(_Died):
            take_in(lake, log)

        other = step_keys(machines.lake("two"))
        assert other in (before, sorted([*before, *_rows(name)])), seen
        take_in(machines.lake("one"), log)
        assert step_keys(machines.lake("one")) == step_keys(machines.lake("two")) == sorted([*before, *_rows(name)])
        if len(seen) < moment:
            break
    assert {"after put", "after put_if_absent", "after commit_table", "before end_journal"} <= set(seen)


def test_a_machine_that_dies_while_it_learns_learns_the_rest_later(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e", "f"))
    wanted = step_keys(machines.lake("one"))
    for moment in range(1, 1000, STRIDE):
        with _dying_at(moment, monkeypatch) as seen, suppress(_Died):
            machines.lake(f"new-{moment}")
        assert step_keys(machines.lake(f"new-{moment}")) == wanted, seen[-1]
        assert not machines.lake(f"new-{moment}").journal_path.exists()
        if len(seen) < moment:
            break
    assert "after download" in seen


def test_a_reader_whose_copy_was_cut_off_finishes_it_before_it_reads(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = machines.lake("two")
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "end_journal", _die)
        with pytest.raises(_Died):
            machines.lake("two")

    assert two.scans(("steps", "batches")).keys() == {"steps", "batches"}
    assert machines.lake("two").commit_number() == 1


def test_what_a_commit_that_came_to_nothing_left_in_the_bucket_is_collected(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machines.lake("one")
    take_in(one, machines.log("one", "a.jsonl", "e"))
    with monkeypatch.context() as patch:
        patch.setattr(lakes.LakeBucket, "publish", _die)
        with pytest.raises(_Died):
            take_in(one, machines.log("one", "b.jsonl", "f"))
    orphans = {found.key for found in _bucket(one).store.list("tables")} - mirror.known_state(one.root).keys()

    assert len(orphans) == 3
    assert one.collect_garbage() == []  # a commit in the making of another machine looks no different
    monkeypatch.setattr(lake_bucket, "_CLOCKS", -timedelta(minutes=1))  # as if the last commit were long after them
    assert set(one.collect_garbage(dry_run=True)) == orphans
    assert set(one.collect_garbage()) == orphans
    assert step_keys(machines.lake("new")) == _rows("e")


def _die(*_: object, **__: object) -> None:
    raise _Died


# --- a store that does not answer, or does not hold what it should


def test_a_commit_whose_answer_was_lost_is_found_out_by_the_next_command(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, log, real = machines.lake("one"), machines.log("one", "a.jsonl", "e"), lakes.LakeBucket.publish

    def publish(bucket: Any, entry: Any, before: Any) -> None:
        real(bucket, entry, before)
        raise StoreUnreachableError("Cannot write: the store does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(lakes.LakeBucket, "publish", publish)
        with pytest.raises(StoreUnreachableError, match="does not answer"):
            take_in(lake, log)

    assert step_keys(machines.lake("one")) == _rows("e")
    assert take_in(machines.lake("one"), log).unchanged == ("a.jsonl",)


def test_a_copy_that_finds_no_room_says_that_the_commit_is_made(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = machines.lake("one")
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "commit_table", _full)
        with pytest.raises(LakeError, match=r"Commit 1 is in the lake s3://.* No space left.* next command that opens"):
            take_in(lake, machines.log("one", "a.jsonl", "e"))

    assert step_keys(machines.lake("two")) == step_keys(machines.lake("one")) == _rows("e")


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_an_object_that_was_altered_is_named_and_nothing_is_taken_from_it(machines: Machines) -> None:
    one = machines.lake("one")
    take_in(one, machines.log("one", "a.jsonl", "e"))
    key = next(found.key for found in _bucket(one).store.list("tables/steps"))
    content = _bucket(one).store.get(key)
    _bucket(one).store.put(key, content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(LakeError, match=rf"{key} was altered: it has SHA-256 .* Restore it from a backup"):
        machines.lake("two")
    _bucket(one).store.put(key, content)
    assert step_keys(machines.lake("two")) == _rows("e")


def test_a_contract_that_was_altered_is_named_and_no_copy_is_made_under_it(machines: Machines) -> None:
    store = _bucket(machines.lake("one")).store
    (key,) = (found.key for found in store.list() if "lake.json" in found.key)
    content = store.get(key)
    altered = json.loads(content)
    altered["contract"]["note"] = "not what was committed"
    store.put(key, json.dumps(altered).encode())

    for _ in range(2):  # it stays refused
        with pytest.raises(LakeError, match=rf"{key} was altered: it has SHA-256 .* Restore it from a backup"):
            machines.lake("two")
    store.put(key, content)
    assert json.loads((machines.lake("two").root / "lake.json").read_bytes()) == json.loads(content)


def test_a_file_of_a_copy_that_was_altered_is_named(machines: Machines) -> None:
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    two = machines.lake("two")
    refuse_altered(two.files("steps"))
    (file,) = [Path(file) for file in two.files("steps") if "columns-" not in file]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(LakeError, match=file.name):
        refuse_altered(two.files("steps"))


def test_an_object_that_is_gone_is_named(machines: Machines) -> None:
    one = machines.lake("one")
    take_in(one, machines.log("one", "a.jsonl", "e"))
    key = next(found.key for found in _bucket(one).store.list("tables/steps"))
    _bucket(one).store.delete([key])

    with pytest.raises(
        LakeError, match=rf"{key}: there is no such object\. Commit 1 of the lake rests on it\. Restore"
    ):
        machines.lake("two")


def test_a_journal_with_a_gap_is_refused(machines: Machines) -> None:
    one = machines.lake("one")
    for name in "abc":
        take_in(one, machines.log("one", f"{name}.jsonl", name))
    _bucket(one).store.delete(["journal/000000000002.json"])

    with pytest.raises(LakeError, match=r"has a gap behind commit 0: it goes on with 1, 3\. Somebody has deleted"):
        machines.lake("two")


def test_a_bucket_that_was_emptied_or_filled_anew_is_not_taken_for_the_lake(machines: Machines) -> None:
    one = machines.lake("one")
    take_in(one, machines.log("one", "a.jsonl", "e"))
    _bucket(one).store.delete(found.key for found in _bucket(one).store.list())
    told = rf"does not hold commit 1 of the lake that this machine has a copy of.* The copy is {one.root}"

    with pytest.raises(OtherLakeError, match=told):
        machines.lake("one")
    take_in(machines.lake("two"), machines.log("two", "b.jsonl", "f"))
    with pytest.raises(OtherLakeError, match=told):
        machines.lake("one")


def test_an_entry_of_another_format_is_refused_unread(machines: Machines) -> None:
    one = machines.lake("one")
    _bucket(one).store.put("journal/000000000001.json", b'{"format": 99}')

    with pytest.raises(LakeError, match=r"journal/000000000001\.json has format 99, and .* reads and writes 1"):
        machines.lake("one")


def _bucket(lake: Lake) -> lake_bucket.LakeBucket:
    assert lake.bucket is not None
    return lake.bucket


# --- which folder is a copy of what


def test_a_copy_is_not_opened_as_a_lake_of_its_own(machines: Machines, tmp_path: Path) -> None:
    machines.lake("one")
    with pytest.raises(LakeError, match=rf"is this machine's copy of the lake {machines.address}\. Set \[store\] lake"):
        lake_at(tmp_path / "one")


def test_a_copy_of_one_lake_is_not_taken_for_another(machines: Machines, tmp_path: Path) -> None:
    machines.lake("one")
    with pytest.raises(
        LakeError, match=r"copy of the lake .*, and \[store\] lake names s3://.*other\. Remove the folder"
    ):
        lake_at(tmp_path / "one", address=f"{machines.address}/other")


def test_a_lake_of_its_own_is_not_overwritten_by_a_copy(machines: Machines, tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "own")
    take_in(lake, machines.log("own", "a.jsonl", "e"))

    with pytest.raises(LakeError, match=r"holds a lake of its own, .* Take it there with `offline-dqn lake upload`"):
        machines.lake("own")
    assert step_keys(lake_at(tmp_path / "own")) == _rows("e")


def test_a_lake_of_its_own_is_taken_to_a_bucket_as_it_is(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, address = tmp_path / "own", parse_address(machines.address)
    monkeypatch.setenv(KEY_VARIABLE, "x" * 40)
    hiding = tiny(privacy={"hash": ["user"]})
    lake = lake_at(own, hiding)
    lake.privacy_key()
    take_in(lake, machines.log("own", "a.jsonl", "e"))
    grown = tiny(privacy={"hash": ["user"]}, features={"memory": {"type": "numeric", "nullable": True}})
    take_in(lake_at(own, grown), write_rows(own / "b.jsonl", [step_row("f", 0, observation={"memory": 7.0})]))
    with monkeypatch.context() as patch:
        patch.setattr(lake_upload, "become_mirror", _die)  # the bucket holds it, and this machine does not know
        with pytest.raises(_Died):
            upload_lake(own / "lake", grown, address)

    take_in(lake_at(tmp_path / "other", grown, machines.address), machines.log("other", "d.jsonl", "h"))  # goes on
    done = upload_lake(own / "lake", grown, address)
    assert (done.address, done.commit) == (machines.address, 3)
    for machine in ("own", "new"):
        opened = lake_at(tmp_path / machine, grown, machines.address)
        assert ask(opened, "SELECT count(*), max(observation.memory) FROM {steps}") == [(7, 7.0)]
        assert {file.name for file in opened.root.iterdir()} >= {"_mirror.json", "lake.json"}
    report = take_in(lake_at(tmp_path / "new", grown, machines.address), machines.log("new", "c.jsonl", "g", "e"))
    assert counts_of(report) == {"in": 6, "lake": 3, "duplicates": 3}
    monkeypatch.setenv(KEY_VARIABLE, "y" * 40)
    with pytest.raises(PrivacyError, match=r"is not the one that the lake"):
        lake_at(tmp_path / "new", grown, machines.address).privacy_key()
    with pytest.raises(LakeError, match=r"is a copy of a lake in a bucket already"):
        upload_lake(own / "lake", grown, address)


def test_a_lake_whose_bytes_have_changed_is_not_taken_to_a_bucket(machines: Machines, tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "own")
    take_in(lake, machines.log("own", "a.jsonl", "e"))
    whole = {file: Path(file).read_bytes() for file in lake.files("steps")}
    file = change_bytes(lake)

    with pytest.raises(LakeError, match=rf"{file.name}\. The disk has lost or changed them"):
        upload_lake(lake.root, tiny(), parse_address(machines.address))
    file.write_bytes(whole[str(file)])
    assert upload_lake(lake.root, tiny(), parse_address(machines.address)).commit == 1


def test_a_cut_off_upload_goes_on_only_with_the_folder_that_it_began_with(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other, address = tmp_path / "own", tmp_path / "other", parse_address(machines.address)
    monkeypatch.setenv(KEY_VARIABLE, "x" * 40)
    hiding = tiny(privacy={"hash": ["user"]})
    lake_at(own, hiding).privacy_key()
    with monkeypatch.context() as patch:
        patch.setattr(LakeBucket, "found", _die)  # all of it is there but what makes it a lake
        with pytest.raises(_Died):
            upload_lake(own / "lake", hiding, address)
    monkeypatch.setenv(KEY_VARIABLE, "y" * 40)
    lake_at(other, hiding).privacy_key()
    with pytest.raises(LakeError, match=r"left, whose rows are hashed under another key\. Nothing was changed"):
        upload_lake(other / "lake", hiding, address)
    lake_at(tmp_path / "open")
    with pytest.raises(LakeError, match=r"hashed under a key, which this lake has none of\. Nothing was changed"):
        upload_lake(tmp_path / "open" / "lake", tiny(), address)
    with monkeypatch.context() as patch:
        patch.setattr(lake_upload, "become_mirror", _die)
        with pytest.raises(_Died):
            upload_lake(own / "lake", hiding, address)
    monkeypatch.setenv(KEY_VARIABLE, "x" * 40)
    take_in(lake_at(own, hiding), machines.log("own", "a.jsonl", "e"))
    with pytest.raises(LakeError, match=r"or an upload of this one was cut off and .* has changed since"):
        upload_lake(own / "lake", hiding, address)


def test_a_lake_is_not_taken_over_another(machines: Machines, tmp_path: Path) -> None:
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    lake_at(tmp_path / "own")

    with pytest.raises(LakeError, match=r"holds another lake, at commit 1, or an upload .* Name another prefix"):
        upload_lake(tmp_path / "own" / "lake", tiny(), parse_address(machines.address))
    with pytest.raises(LakeError, match=r"There is no lake in .*nowhere"):
        upload_lake(tmp_path / "nowhere", tiny(), parse_address(machines.address))


def test_a_restored_copy_does_not_take_the_lease_of_its_source(machines: Machines, tmp_path: Path) -> None:
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    source = machines.lake("one")
    for machine in ("two", "three"):
        shutil.copytree(source.root, tmp_path / machine / "lake", ignore=shutil.ignore_patterns("*lock"))
    two, three = machines.lake("two"), machines.lake("three")

    with lake_lock(two):
        for other in (source, three):
            with pytest.raises(LockedError, match=r"is in use by process"), lake_lock(other, wait_s=0.0):
                pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.lease._Held.release", lambda _: None)  # it dies before it frees the lease
        with lake_lock(two):
            pass
    with lake_lock(machines.lake("two"), wait_s=0.0):  # of its own process, which is dead
        pass


def test_a_copy_that_was_removed_is_made_anew(machines: Machines, tmp_path: Path) -> None:
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    (tmp_path / "one" / "lake").rename(tmp_path / "away")

    assert step_keys(machines.lake("one")) == _rows("e")


def test_a_machine_without_a_copy_reads_the_newest_checkpoint_and_what_came_after(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lake_bucket, "_CHECKPOINT_EVERY", 2)
    one = machines.lake("one")
    for name in "abc":
        take_in(one, machines.log("one", f"{name}.jsonl", name))
    asked: list[str] = []
    real = ObjectStore.get
    monkeypatch.setattr(ObjectStore, "get", lambda store, key: (asked.append(key), real(store, key))[1])

    assert step_keys(machines.lake("two")) == _rows("a", "b", "c")
    assert [key for key in asked if key.startswith(("journal", "checkpoints", "origin"))] == [
        "checkpoints/000000000002.json",
        "journal/000000000003.json",
    ]


# --- what changes a lake otherwise


def test_a_batch_held_on_one_machine_is_released_on_another(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_says(monkeypatch, False)
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    two = machines.lake("two")
    (held,) = list_batches(two)
    released = release_batch(two, held.batch_id, by="Ada", at=AT)

    assert (held.status, released.status, step_keys(machines.lake("new"))) == ("held", "released", _rows("e"))
    for machine in ("one", "two", "new"):
        held_path = machines.lake(machine).held_path
        assert not held_path.exists() or not list(held_path.iterdir())


def test_a_batch_held_on_one_machine_is_rejected_on_another(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_says(monkeypatch, False)
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    two = machines.lake("two")
    reject_batch(two, list_batches(two)[0].batch_id, by="Ada", at=AT)

    assert ask(machines.lake("one"), "SELECT count(*) FROM {quarantine}") == [(3,)]


def test_a_held_batch_that_never_counted_is_taken_back(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_says(monkeypatch, False)
    one, log = machines.lake("one"), machines.log("one", "a.jsonl", "e")
    with monkeypatch.context() as patch:
        patch.setattr(lakes.LakeBucket, "publish", _die)
        with pytest.raises(_Died):
            take_in(one, log)
    assert list(one.held_path.iterdir()) != []

    take_in(machines.lake("one"), log)
    (batch,) = list_batches(machines.lake("two"))
    assert [folder.name for folder in one.held_path.iterdir()] == [batch.batch_id]
    assert [folder.name for folder in machines.lake("two").held_path.iterdir()] == [batch.batch_id]


def test_an_erased_subject_leaves_the_bucket_and_every_copy_and_never_comes_back(
    machines: Machines, tmp_path: Path
) -> None:
    one, two = machines.lake("one"), machines.lake("two")
    take_in(one, machines.log("one", "a.jsonl", "e", "secret-episode"))
    compact(one, LakeConfig(), above=1)
    two = machines.lake("two")
    holding = {found.key for found in _bucket(one).store.list("tables/steps")}

    erased = erase_subject(two, Subject("", ("secret-episode",), "secret-episode"), None, tmp_path / "s", at=AT)
    assert erased.n_rows["steps"] == 3
    assert holding.isdisjoint(found.key for found in _bucket(one).store.list("tables/steps"))
    one = machines.lake("one")
    assert step_keys(one) == step_keys(two) == _rows("e")
    for lake in (one, two):
        assert _n_rows_on_disk(lake) == 3
    again = take_in(one, machines.log("one", "again.jsonl", "secret-episode"))
    assert counts_of(again) == {"in": 3, "erased": 3}


@pytest.mark.parametrize("retired", [False, True])
def test_an_erasure_reaches_what_tables_held_once_in_every_copy(
    machines: Machines, tmp_path: Path, retired: bool
) -> None:
    one = machines.lake("one")
    rows = [*episode("stays"), step_row("gone-one", action="jump")]
    take_in(one, write_rows(machines.folder / "one" / "a.jsonl", rows))
    machines.lake("two")
    wide = {"actions": {"names": ["down", "hold", "up", "jump"]}}
    one = machines.lake("one", **wide)
    replay_quarantine(one, IngestConfig(), as_of=NOON, at=AT)  # out of quarantine, where the row's former file stays
    if retired:  # then no table holds it any more
        with lake_lock(one):
            rewrite_rows(one, {"steps": Rewrite("episode_id = 'gone-one'")}, reason="old", at=AT)
    two = machines.lake("two", **wide)
    assert _on_disk(two, "gone-one") != []

    erase_subject(one, Subject("", ("gone-one",), "gone-one"), None, tmp_path / "s", at=AT)
    for machine in ("one", "two"):
        assert _on_disk(machines.lake(machine, **wide), "gone-one") == []
        assert step_keys(machines.lake(machine, **wide)) == _rows("stays")


def _on_disk(lake: Lake, name: str) -> list[Path]:
    """Parquet files of the tables whose rows name an episode, also of former versions."""
    files = [path for table in ("steps", "quarantine") for path in (lake.root / table).rglob("*.parquet")]
    return [p for p in files if "_delta_log" not in p.parts and name in pq.read_table(p)["episode_id"].to_pylist()]


def _n_rows_on_disk(lake: Lake) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (lake.root / "steps").glob("log_date=*/*.parquet"))


def test_an_erasure_killed_at_any_moment_is_finished_by_the_next(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in range(4, 1000, 2 * STRIDE):
        one, name = machines.lake("one"), f"gone{moment}"
        take_in(one, machines.log("one", f"{name}.jsonl", name, f"kept{moment}"))
        kept = [(e, step) for e, step in step_keys(one) if e != name]
        with _dying_at(moment, monkeypatch) as seen, suppress(_Died):
            erase_subject(one, Subject("", (name,), name), None, tmp_path / "s", at=AT)
        erase_subject(machines.lake("one"), Subject("", (name,), name), None, tmp_path / "s", at=AT)

        assert step_keys(machines.lake("one")) == step_keys(machines.lake("two")) == kept, seen[-1:]
        if len(seen) < moment:
            break
    assert "after purge_history" in seen


def test_old_rows_that_one_machine_retires_are_gone_on_another(machines: Machines) -> None:
    one, two = machines.lake("one"), machines.lake("two")
    take_in(one, machines.log("one", "a.jsonl", "e"))
    write_rows(machines.folder / "one" / "b.jsonl", [step_row("young", timestamp="2024-06-01T10:00:00Z")])
    take_in(one, machines.folder / "one" / "b.jsonl")
    now = datetime(2024, 6, 2, tzinfo=UTC)

    assert retire_rows(two, RetentionConfig(steps_days=10), as_of=now, at=now)["steps"] == 3
    assert step_keys(machines.lake("one")) == [("young", 0)]


def test_files_that_one_machine_merged_are_merged_on_another(machines: Machines) -> None:
    one = machines.lake("one")
    for name in "abc":
        take_in(one, machines.log("one", f"{name}.jsonl", name))
    two = machines.lake("two")
    assert compact(two, LakeConfig(), above=1).tables == ("files", "batches", "steps")

    one = machines.lake("one")
    assert {table: len(one.files(table)) for table in ("files", "batches", "steps")} == dict.fromkeys(
        ("files", "batches", "steps"), 2
    )
    assert step_keys(one) == step_keys(two) == _rows("a", "b", "c")
    assert counts_of(take_in(one, machines.log("one", "d.jsonl", "d", "a"))) == {"in": 6, "lake": 3, "duplicates": 3}


def test_a_contract_that_grew_on_one_machine_is_the_contract_of_all(machines: Machines) -> None:
    take_in(machines.lake("one"), machines.log("one", "a.jsonl", "e"))
    wide = {"features": {"memory": {"type": "numeric", "nullable": True}}}
    two = machines.lake("two", **wide)
    rows = [step_row("f", 0, observation={"memory": 7.0})]
    take_in(two, write_rows(machines.folder / "two" / "b.jsonl", rows))

    for machine in ("one", "two", "new"):
        found = ask(machines.lake(machine, **wide), "SELECT episode_id, observation.memory FROM {steps} ORDER BY ALL")
        assert found == [*[("e", None)] * 3, ("f", 7.0)]
    with pytest.raises(IncompatibleContractError, match="no longer fits the lake"):
        machines.lake("one")


def test_a_first_contract_is_mended_for_all_while_nothing_is_stored(machines: Machines) -> None:
    machines.lake("one")
    machines.lake("two")
    mended = {"features": {"cpu": {"type": "categorical", "min": None, "max": None}, "load": None}}
    take_in(
        machines.lake("one", **mended),
        write_rows(machines.folder / "one" / "a.jsonl", [step_row("e", 0, observation={"cpu": "low", "load": None})]),
    )

    assert ask(machines.lake("two", **mended), "SELECT observation.cpu FROM {steps}") == [("low",)]


def test_all_machines_hash_under_the_key_of_the_first(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    hiding = {"privacy": {"hash": ["user"]}}
    monkeypatch.setenv(KEY_VARIABLE, "x" * 40)
    assert machines.lake("one", **hiding).privacy_key() is not None
    assert machines.lake("two", **hiding).privacy_key() is not None
    monkeypatch.setenv(KEY_VARIABLE, "y" * 40)

    with pytest.raises(PrivacyError, match=r"is not the one that the lake .* was written under"):
        machines.lake("new", **hiding).privacy_key()


def test_nothing_secret_stands_in_the_journal(machines: Machines) -> None:
    one = machines.lake("one")
    take_in(one, machines.log("one", "a.jsonl", "e"))
    texts = [_bucket(one).store.get(f.key).decode() for f in _bucket(one).store.list() if f.key.endswith(".json")]

    assert any('"number": 1' in text for text in texts)
    assert not any(
        os.environ["AWS_SECRET_ACCESS_KEY"] in text for text in [*texts, (one.root / "_mirror.json").read_text()]
    )
    assert json.loads((one.root / "_mirror.json").read_text())["address"] == machines.address
