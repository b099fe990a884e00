"""Ingest by groups of files: the same lake to the byte, whoever reads them, and nothing of it where that goes wrong."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import duckdb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets import reading
from datasets.consumed import HEAD_BYTES, Consumed
from datasets.journal import LakeError
from datasets.logfiles import LogFile, LogFileError, find_log_files, open_unread
from datasets.privacy import KEY_VARIABLE, PrivacyError, PrivacyKey
from datasets.reading import Logs, Reading, read_logs
from datasets.reading_apart import Group, GroupRead, ReadApart, read_ahead
from datasets.signing import KEY_VARIABLE as SIGNING_VARIABLE
from datasets.signing import sign_logs, signing_key
from datasets.spreading import NotSharedError, Spread
from datasets.staging import ReadFile, Source, Stage
from tests.datasets.builders import (
    NOON,
    ask,
    counts_of,
    episode,
    lake_at,
    step_keys,
    step_row,
    take_in,
    text_of,
    tiny,
    write_rows,
)
from tests.datasets.mixed_logs import Counted, everything, two_nights

pytestmark = pytest.mark.usefixtures("quick_suite")


def two_threads(what: str, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Two groups at once, each carried there and back as bytes."""
    assert what == "group"
    packed = pickle.dumps(function)

    def work_out(item: bytes) -> bytes:
        return pickle.dumps(pickle.loads(packed)(pickle.loads(item)))

    with ThreadPoolExecutor(2) as pool:
        return [pickle.loads(found) for found in pool.map(work_out, map(pickle.dumps, items))]


# --- the same lake


def test_a_lake_is_the_same_to_the_byte_where_its_logs_were_read_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "GROUP_BYTES", 1500)
    here = two_nights(tmp_path / "here", tiny())
    apart = two_nights(tmp_path / "apart", tiny(), two_threads)

    assert (here.n_groups, len(apart.n_groups), min(apart.n_groups, default=0) >= 2) == ((), 2, True)
    assert apart.told == here.told
    assert [name for name in {**here.files, **apart.files} if apart.files.get(name) != here.files.get(name)] == []
    assert apart.tables == here.tables
    first, second = here.reports
    assert {Path(name).name for name, _ in first.damaged} == {
        "cut.jsonl.gz", "cut-again.jsonl.gz", "e-misnamed.jsonl.gz", "j-broken.parquet",
    }  # fmt: skip
    assert {Path(name).name for name in first.unchanged} == {"a.jsonl", "d.jsonl.gz"}
    assert (counts_of(first)["duplicates"], counts_of(second)["in"]) == (6, 9)


def test_outcomes_are_read_apart_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "GROUP_BYTES", 1)
    lake = lake_at(tmp_path, tiny(outcomes={"attribution_window": "1h"}))
    rows = [{"decision_id": f"d{n}", "timestamp": "2024-05-01T10:00:00Z", "reward": -1.0} for n in range(2)]
    paths = [write_rows(tmp_path / f"{n}.jsonl", [row, "bad"]) for n, row in enumerate(rows)]
    counted = Counted(two_threads)
    report = take_in(lake, *paths, kind="outcomes", spread=counted)

    assert counted.given == [2]
    assert counts_of(report) == {"in": 4, "lake": 2, "quarantined": 2}
    assert ask(lake, "SELECT decision_id FROM {outcomes} ORDER BY 1") == [("d0",), ("d1",)]


# --- which files are read, and from where


class LinesOnly:
    """A stage that counts lines: a file whose name says gzip is damaged, since none is."""

    read_again: Mapping[str, Any] = MappingProxyType({})

    def read(self, source: Source) -> ReadFile:
        if source.log.compression:
            raise LogFileError(f"{source.name} is damaged")
        with open_unread(source.log, source.unread) as file:
            lines = [number for number, line in enumerate(file, source.unread.n_lines_before + 1) if line.strip()]
        return ReadFile(len(lines), lines[-1] if lines else source.unread.n_lines_before)

    def finish_reading(self) -> None: ...

    def take_in(self, *_: Any) -> None: ...


def count_lines(group: Group) -> GroupRead:
    def one(source: Source) -> ReadApart:
        try:
            return ReadApart(LinesOnly().read(source))
        except LogFileError as error:
            return ReadApart(problem=str(error))

    return GroupRead("here", tuple(map(one, group.sources)), (), (), ())


CONTENT = st.sampled_from([b"", b"\n", b"a", b"a\n", b"a\nb", b"a\nb\n", b"a\nb\nc\n", b"a\nd\n", b"\na\n", b"q\n"])


@settings(max_examples=120, deadline=None)
@given(
    files=st.lists(st.tuples(CONTENT, st.booleans()), min_size=2, max_size=9),
    before=st.lists(st.integers(0, 8), max_size=3),
    group_bytes=st.integers(1, 12),
    elsewhere=st.booleans(),
)
@example(files=[(b"a\n", False), (b"q\n", False)], before=[], group_bytes=1, elsewhere=True)
@example(files=[(b"a\n", True), (b"a\nd\n", False), (b"q\n", True)], before=[], group_bytes=1, elsewhere=False)
def test_whichever_files_go_on_from_one_another_the_same_parts_of_them_are_read(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[bytes, bool]],
    before: list[int],
    group_bytes: int,
    elsewhere: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "related"
    folder.mkdir(exist_ok=True)
    logs = []
    for number, (content, is_damaged) in enumerate(files):
        path = folder / f"{number}.jsonl"
        path.write_bytes(content)
        logs.append(LogFile(path, "jsonl", ".gz" if is_damaged else ""))
    all_logs = Logs(logs, [len(content) for content, _ in files], folder)
    stage = cast("Stage", LinesOnly())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "GROUP_BYTES", group_bytes)
        old = [Logs([logs[n]], [0], folder) for n in before if n < len(logs)]
        known: list[Consumed] = []
        for one in old:
            known += [taken.consumed for taken in read_logs(stage, one, known, {}).taken]
        alone: Reading = read_logs(stage, all_logs, known, {})
        counted = Counted(one_after_the_other)
        ahead = read_ahead(stage, all_logs, known, count_lines, counted, lambda _: None, elsewhere=elsewhere)
        apart = read_logs(stage, all_logs, known, ahead)
        unlike_any = groups_unlike_any(files, before, all_logs.groups, elsewhere=elsewhere)
    assert apart == alone
    assert len(counted.given) <= 1
    if unlike_any > 1:
        assert sum(counted.given) >= unlike_any


def groups_unlike_any(
    files: Sequence[tuple[bytes, bool]], before: Sequence[int], groups: Sequence[range], *, elsewhere: bool
) -> int:
    """How many groups at the least are to be read apart: those with a file whose first byte nothing before it has."""
    known = {files[number][0][:1] for number in before if number < len(files)}
    apart: set[int] = set()
    for place, group in enumerate(groups):
        for number in group:
            content, is_packed = files[number]
            if content and content[:1] not in known and (elsewhere or is_packed):
                apart.add(place)
            known.add(content[:1])
    return len(apart)


def one_after_the_other(_: str, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def test_groups_are_cut_by_the_sizes_of_the_files_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "GROUP_BYTES", 10)
    fast, exact = LogFile(Path("/a.jsonl"), "jsonl", ""), LogFile(Path("/a.csv"), "csv", "")

    def cut(log: LogFile, *sizes: int) -> list[list[int]]:
        return [list(group) for group in Logs([log] * len(sizes), sizes, Path("/")).groups]

    assert cut(fast, 4, 6, 1, 30, 0, 9, 1) == [[0, 1], [2], [3], [4, 5, 6]]
    assert cut(fast, 99) == [[0]]
    assert cut(exact, 0, 1, 1, 2) == [[0, 1], [2], [3]]


# --- what goes wrong


def with_change(change: Callable[[], Any], undo: Callable[[], Any]) -> Spread:
    """A worker for which something is otherwise than for who asks."""

    def spread(_: str, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        change()
        try:
            return [function(item) for item in items]
        finally:
            undo()

    return spread


def without_folder(_: str, function: Any, items: Sequence[Any]) -> list[Any]:
    return [replace(function, folder=Path("/nowhere/batch"))(item) for item in items]


def losing_rows(_: str, function: Any, items: Sequence[Any]) -> list[GroupRead]:
    found: list[GroupRead] = [function(item) for item in items]
    found[-1].rows[0][0].unlink()
    return found


def failing(error: Exception) -> Spread:
    def spread(_: str, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        function(items[0])
        raise error

    return spread


def test_whatever_goes_wrong_nothing_is_taken_and_the_next_ingest_takes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "GROUP_BYTES", 1)
    lake = lake_at(tmp_path)
    take_in(lake, write_rows(tmp_path / "a.jsonl", episode("a", 1)))
    for name in "bc":
        write_rows(tmp_path / "logs" / f"{name}.jsonl", episode(name))
    log = tmp_path / "logs" / "c.jsonl"
    content = log.read_bytes()
    away = with_change(log.unlink, lambda: log.write_bytes(content))
    another = with_change(lambda: log.write_bytes(content.swapcase()), lambda: log.write_bytes(content))
    no_room = failing(duckdb.IOException("No space left on device"))
    cannot = r"worker on .* cannot read .*c\.jsonl: "
    before = (everything(lake), lake.versions(), step_keys(lake))
    tries: list[tuple[Spread, type[Exception], str]] = [
        (away, NotSharedError, f"{cannot}No such file or directory.*mount the workspace"),
        (another, NotSharedError, f"{cannot}it is another file there, of {len(content)} bytes.*mount the workspace"),
        (without_folder, NotSharedError, "cannot write to /nowhere/batch: No such file or directory"),
        (losing_rows, NotSharedError, r"wrote to .*rows\.parquet is not seen here"),
        (failing(RuntimeError("the worker died")), RuntimeError, "the worker died"),
        (no_room, LakeError, "Nothing of the batch is in it. See to it that the disk has room"),
    ]
    for spread, error, said in tries:
        with pytest.raises(error, match=said):
            take_in(lake, tmp_path / "logs", spread=spread)
        assert (everything(lake), lake.versions(), step_keys(lake)) == before
        assert not lake.staging_path.exists()

    gone = tmp_path / "logs" / "gone.jsonl"
    write_rows(gone, episode("gone"))
    report = take_in(lake, tmp_path / "logs", spread=with_change(gone.unlink, lambda: None))
    assert counts_of(report) == {"in": 6, "lake": 6}
    why = f"{gone} cannot be read: No such file or directory. Nothing of it was taken."
    assert report.damaged == (("logs/gone.jsonl", why),)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv"])
def test_no_byte_of_a_log_differs_between_who_looks_and_who_reads(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "GROUP_BYTES", 1)
    monkeypatch.setenv(SIGNING_VARIABLE, "s" * 40)
    lake = lake_at(tmp_path)
    logs = [tmp_path / "logs" / f"{name}{ending}" for name in "bc"]
    noise = np.random.default_rng(0).bytes(3000).hex()  # so that packed rows, too, lie behind the first KiB
    for log in logs:
        write_rows(log, [step_row(noise), *episode(log.name[0], 30)])
        if ending == ".csv":
            header = "episode_id,step,cpu,action,reward,note\n"
            log.write_text(header + "".join(f"{log.name[0]},{n},0.5,hold,-1.5,{noise[:90]}\n" for n in range(30)))
        elif ending == ".jsonl.gz":
            log.write_bytes(gzip.compress(log.read_bytes(), mtime=0))
    sign_logs(find_log_files([tmp_path / "logs"]), signing_key(), at=NOON)
    signed = logs[1].read_bytes()
    if ending == ".jsonl.gz":  # a member more, behind the very bytes that were looked at
        forged = signed + gzip.compress(text_of(episode("forged")).encode(), mtime=0)
    else:
        head, tail = signed.rsplit(b"-1", 1)
        forged = head + b"+9" + tail
        assert len(forged) == len(signed)
    assert len(signed) > 2 * HEAD_BYTES
    assert forged[: 2 * HEAD_BYTES] == signed[: 2 * HEAD_BYTES]
    replaced = with_change(lambda: logs[1].write_bytes(forged), lambda: logs[1].write_bytes(signed))

    with pytest.raises(NotSharedError, match=rf"cannot read .*c{ending}: it is another file there, of {len(forged)} "):
        take_in(lake, tmp_path / "logs", spread=replaced, as_of="newest", require_signature=True)
    assert step_keys(lake) == []


def test_workers_hide_what_the_contract_hides_by_a_key_that_does_not_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, carried = "k" * 32, list[bytes]()
    monkeypatch.setattr(reading, "GROUP_BYTES", 1)
    monkeypatch.setenv(KEY_VARIABLE, secret)
    lake = lake_at(tmp_path, tiny(privacy={"hash": ["user"]}))
    paths = [write_rows(tmp_path / f"{n}.jsonl", [step_row(n, user=n), step_row(n, user=n, reward=9)]) for n in "ab"]

    def watched(what: str, function: Any, items: Sequence[Any]) -> list[Any]:
        carried.extend([pickle.dumps(function), *map(pickle.dumps, items)])
        return two_threads(what, function, items)

    for other, said in ("o" * 32, r"The worker on .* has another key in OFFLINE_DQN_PRIVACY_KEY"), ("", "is not set"):
        change, undo = (partial(monkeypatch.setenv, KEY_VARIABLE, key) for key in (other, secret))
        with pytest.raises(PrivacyError, match=said):
            take_in(lake, *paths, spread=with_change(change, undo))
    assert counts_of(take_in(lake, *paths, spread=watched)) == {"in": 4, "lake": 2, "quarantined": 2}
    assert len(carried) == 3
    assert not any(secret.encode() in each for each in carried)
    hashes = [PrivacyKey(secret.encode()).hash(name) for name in "ab"]
    assert ask(lake, 'SELECT keys."user" FROM {steps} ORDER BY episode_id') == [(each,) for each in hashes]
    raws = [raw for (raw,) in ask(lake, "SELECT raw FROM {quarantine} ORDER BY source")]
    assert [f'"user":"hmac:{each}"' in raw for each, raw in zip(hashes, raws, strict=True)] == [True, True]
