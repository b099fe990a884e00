"""The log of a server: whole lines or none, one writer, files by day and size, and failures that are told."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datasets.locking import LockedError
from pipelines.serving import decision_log
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog, LogFullError, mend_log

CONFIG = ServeConfig(min_free_mb=0)


def line(number: int, width: int = 20) -> bytes:
    return b'{"n": %d, "fill": "%s"}' % (number, b"x" * width)


def lines_in(folder: Path) -> list[bytes]:
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("served-*.jsonl")))
    assert not content or content.endswith(b"\n")
    return content.split(b"\n")[:-1]


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_lines_are_there_when_append_returns(tmp_path: Path, durability: str) -> None:
    with DecisionLog(tmp_path, CONFIG.model_copy(update={"durability": durability})) as log:
        log.append([line(1), line(2)])
        assert lines_in(tmp_path) == [line(1), line(2)]
        assert log.lag.n_lines == 2
        assert log.lag.unsynced_bytes == (0 if durability == "disk" else 2 * len(line(1)) + 2)


def test_a_line_with_a_break_or_without_content_is_refused_with_all_others(tmp_path: Path) -> None:
    with DecisionLog(tmp_path, CONFIG) as log:
        for wrong in (b"", b'{"a": 1}\n{"b": 2}'):
            with pytest.raises(ValueError, match="one line of JSON"):
                log.append([line(1), wrong])
        assert lines_in(tmp_path) == []


def test_each_day_and_each_full_file_begins_another(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)
    with DecisionLog(tmp_path, CONFIG.model_copy(update={"rotate_mb": 1}), clock=lambda: now) as log:
        log.append([line(0, 600_000)])
        log.append([line(1, 600_000)])
        now += timedelta(minutes=2)
        log.append([line(2)])
        now -= timedelta(minutes=2)  # the clock goes back: no name behind the newest is used
        log.append([line(3)])
    assert [path.name for path in sorted(tmp_path.glob("served-*"))] == [
        "served-20260301-000001.jsonl",
        "served-20260301-000002.jsonl",
        "served-20260302-000001.jsonl",
    ]
    assert lines_in(tmp_path) == [line(0, 600_000), line(1, 600_000), line(2), line(3)]


def test_a_second_writer_is_refused_and_the_folder_is_free_after_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serving.decision_log._LOCK_WAIT_S", 0.0)
    with DecisionLog(tmp_path, CONFIG) as log:
        log.append([line(1)])
        with pytest.raises(LockedError, match=rf"log folder .* is in use by process {os.getpid()}"):
            DecisionLog(tmp_path, CONFIG)
        assert mend_log(tmp_path) is None
    with DecisionLog(tmp_path, CONFIG) as log:
        log.append([line(2)])
    assert lines_in(tmp_path) == [line(1), line(2)]


def test_a_torn_last_line_is_taken_out_and_nothing_else(tmp_path: Path) -> None:
    torn = tmp_path / "served-20260301-000001.jsonl"
    torn.write_bytes(line(1) + b"\n" + line(2)[:9])
    other = tmp_path / "mine.jsonl"
    other.write_bytes(b"{")
    with DecisionLog(tmp_path, CONFIG) as log:
        assert log.lag.mended_bytes == 9
    assert (torn.read_bytes(), other.read_bytes()) == (line(1) + b"\n", b"{")


def test_a_failed_write_leaves_no_part_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.write, 30

    def nearly_full(descriptor: int, data: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = real(descriptor, bytes(data)[:left])
        left -= n
        return n

    with DecisionLog(tmp_path, CONFIG) as log:
        log.append([line(1)])
        monkeypatch.setattr(os, "write", nearly_full)
        with pytest.raises(LogFullError, match=r"No space left on device\. Nothing of these lines is in it"):
            log.append([line(2), line(3)])
        assert "No space left on device" in (log.problem or "")
        monkeypatch.setattr(os, "write", real)
        assert lines_in(tmp_path) == [line(1)]
        log.append([line(4)])
        assert log.problem is None
        assert log.lag.n_refused == 2
    assert lines_in(tmp_path) == [line(1), line(4)]


def test_a_failed_write_is_held_for_a_problem_only_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with DecisionLog(tmp_path, CONFIG) as log:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", refused)
            with pytest.raises(LogFullError, match="Input/output error"):
                log.append([line(1)])
        before = log.problem
        monkeypatch.setattr(decision_log, "_FAILED_S", 0.0)  # the while is over
        after = log.problem
    assert (before is not None, after) == (True, None)


def test_a_disk_below_its_reserve_is_full_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DecisionLog(tmp_path, ServeConfig(min_free_mb=100_000_000)) as log:
        with pytest.raises(LogFullError, match=r"MB left and serve\.min_free_mb is 100000000: nothing was written"):
            log.append([line(1)])
        assert lines_in(tmp_path) == []
        assert "MB left" in (log.problem or "")
        monkeypatch.setattr(log, "_config", CONFIG)  # room was made
        assert log.problem is None
        log.append([line(2)])
    assert lines_in(tmp_path) == [line(2)]


def test_a_failed_flush_is_told_once_for_each_line_and_never_taken_for_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    real = os.fdatasync
    with DecisionLog(tmp_path, CONFIG.model_copy(update={"durability": "disk"})) as log:
        monkeypatch.setattr(os, "fdatasync", failing)
        with pytest.raises(LogFullError, match="did not take the last lines"):
            log.append([line(1)])
        monkeypatch.setattr(os, "fdatasync", real)
        log.append([line(2)])
        assert (log.lag.n_sync_failures, log.lag.n_refused, log.lag.n_lines) == (1, 1, 1)
    assert [path.read_bytes() for path in sorted(tmp_path.glob("served-*"))][1:] == [line(2) + b"\n"]


def test_writers_in_many_threads_share_flushes_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_flushes, real = 0, os.fdatasync

    def slow(descriptor: int) -> None:
        nonlocal n_flushes
        n_flushes += 1
        time.sleep(0.005)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    with DecisionLog(tmp_path, CONFIG.model_copy(update={"durability": "disk", "sync_every_s": 60})) as log:

        def write(thread: int) -> None:
            for number in range(20):
                log.append([line(1000 * thread + number)])

        threads = [threading.Thread(target=write, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert n_flushes < 100  # of 160 appends
    assert sorted(lines_in(tmp_path)) == sorted(line(1000 * t + n) for t in range(8) for n in range(20))


@pytest.mark.parametrize("what", ["removed", "moved", "cut"])
def test_an_open_file_that_others_disturb_is_left_and_a_removed_one_written_again(tmp_path: Path, what: str) -> None:
    with DecisionLog(tmp_path, CONFIG.model_copy(update={"sync_every_s": 0.02})) as log:
        log.append([line(1)])
        (path,) = tmp_path.glob("served-*")
        if what == "removed":
            path.unlink()
        elif what == "moved":
            path.rename(tmp_path / "served-19990101-000001.jsonl")
        else:
            os.truncate(path, 0)
        deadline = time.monotonic() + 5
        while log.lag.n_disturbed == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        log.append([line(2)])
        assert log.lag.n_disturbed == 1
    assert lines_in(tmp_path) == ([line(2)] if what == "cut" else [line(1), line(2)])


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, CONFIG)
    log.close()
    log.close()
    with pytest.raises(LogFullError, match="is closed"):
        log.append([line(1)])


def test_a_folder_that_was_removed_refuses_and_once_it_is_back_has_every_line(tmp_path: Path) -> None:
    folder = tmp_path / "steps"
    with DecisionLog(folder, CONFIG.model_copy(update={"sync_every_s": 0.02})) as log:
        log.append([line(1)])
        shutil.rmtree(folder)
        deadline = time.monotonic() + 5
        while not log._is_lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(LogFullError, match="No such file or directory"):
            log.append([line(2)])
        folder.mkdir()
        log.append([line(3)])
    assert lines_in(folder) == [line(1), line(3)]
