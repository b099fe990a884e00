"""Kills and full disks: what was acknowledged is read back, and no part of a line ever is."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog, LogFullError, mend_log

CONFIG = ServeConfig(min_free_mb=0)

WRITER = """
import sys
from pathlib import Path
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog, LogFullError
folder, first, width, durability = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
log = DecisionLog(folder, ServeConfig(min_free_mb=0, rotate_mb=1, durability=durability))
for number in range(first, first + 10**6):
    try:
        log.append([b'{"n": %d, "fill": "%s"}' % (number, b"x" * width)])
        print(number, flush=True)
    except LogFullError as error:
        print("full:", error, flush=True)
        break
"""


def write_in_a_process(
    folder: Path, first: int = 0, width: int = 5000, durability: str = "process", **given: Any
) -> Any:
    arguments = [sys.executable, "-c", WRITER, str(folder), str(first), str(width), durability]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, **given)


def numbers_in(folder: Path) -> list[int]:
    """The numbers of the log's lines; fails where one is no whole line."""
    lines = [line for path in sorted(folder.glob("served-*")) for line in path.read_bytes().splitlines(keepends=True)]
    assert all(line.startswith(b'{"n": ') and line.endswith(b'x"}\n') for line in lines)
    return [int(line[6:].split(b",")[0]) for line in lines]


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_every_line_acknowledged_before_a_sigkill_is_read_back(tmp_path: Path, durability: str) -> None:
    acknowledged: list[int] = []
    for run in range(3):
        first = run * 1_000_000
        writer = write_in_a_process(tmp_path, first, durability=durability)
        acknowledged += [int(writer.stdout.readline()) for _ in range(300 + 57 * run)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(number) for number in writer.stdout.read().split("\n")[:-1]]
        writer.wait()
        assert mend_log(tmp_path) is not None
        found = numbers_in(tmp_path)
        assert found == sorted(found)
        assert set(acknowledged) <= set(found)
        assert len(set(found)) == len(found)
        assert len(found) - len(acknowledged) <= run + 1  # at most the line under way at each kill


class KilledError(BaseException):
    """Ends the writing as a kill does: nothing behind it runs."""


@given(
    batches=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6),
    killed_at=st.integers(0, 600),
    pieces=st.integers(1, 64),
)
@settings(max_examples=80, deadline=None)
def test_a_kill_at_any_byte_costs_nothing_that_was_acknowledged(
    batches: list[list[int]], killed_at: int, pieces: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, left, real = tmp_path_factory.mktemp("log"), killed_at, os.write
    log = DecisionLog(folder, CONFIG)
    written = [
        [b'{"n": %d, "fill": "%s"}' % (10 * i + j, b"x" * width) for j, width in enumerate(widths)]
        for i, widths in enumerate(batches)
    ]

    def dying(descriptor: int, data: bytes) -> int:
        nonlocal left
        if not left:
            raise KilledError
        n = real(descriptor, bytes(data)[: min(left, pieces)])
        left -= n
        return n

    acknowledged: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", dying)
        try:
            for lines in written:
                log.append(lines)
                acknowledged += lines
        except KilledError:
            pass
    log._closed.set()
    log._syncer.join()
    log._held.close()  # the system frees a dead process's lock

    everything = [line for lines in written for line in lines]
    n_whole, total = 0, 0
    for line in everything:
        total += len(line) + 1
        n_whole += total <= killed_at
    assert len(acknowledged) <= n_whole
    more = b'{"n": 99, "fill": "x"}'
    with DecisionLog(folder, CONFIG) as again:
        again.append([more])
    lines = b"".join(path.read_bytes() for path in sorted(folder.glob("served-*"))).splitlines()
    assert lines == [*everything[:n_whole], more]


# --- full disks


def test_a_log_that_may_not_grow_refuses_and_keeps_whole_lines(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    writer = write_in_a_process(tmp_path, preexec_fn=limit)
    *numbers, last = writer.stdout.read().split("\n")[:-1]
    assert writer.wait() == 0
    assert last.startswith(
        f"full: The log in {tmp_path} cannot be written: File too large. Nothing of these lines is in"
    )
    assert numbers_in(tmp_path) == [int(number) for number in numbers]
    assert len(numbers) == 300_000 // (5000 + len('{"n": 10, "fill": ""}\n'))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_a_full_disk_refuses_until_there_is_room_and_loses_nothing(small_disk: Path, durability: str) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    config = CONFIG.model_copy(update={"durability": durability})
    acknowledged, refused, told = list[int](), 0, set[str]()
    with DecisionLog(small_disk / "steps", config) as log:
        for number in range(60):
            line = b'{"n": %d, "fill": "%s"}' % (number, b"x" * 9000)
            try:
                log.append([line, line.replace(b'": %d,' % number, b'": %d,' % (1000 + number))])
                acknowledged += [number, 1000 + number]
            except LogFullError as error:
                told.add(str(error))
                refused += 1
                if refused == 5:
                    assert numbers_in(small_disk / "steps") == acknowledged
                    ballast.unlink()
        assert log.lag.n_refused == 2 * refused
    assert refused > 5  # full again
    assert [text.partition("written: ")[2][:59] for text in told] == [
        "No space left on device. Nothing of these lines is in it. M"
    ]
    assert 30 < len(acknowledged) < 120
    assert numbers_in(small_disk / "steps") == acknowledged


def test_a_disk_without_room_for_a_file_refuses(small_disk: Path) -> None:
    with DecisionLog(small_disk / "steps", CONFIG) as log:
        (small_disk / "ballast").write_bytes(b"x" * 380_000)
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "more").write_bytes(b"x" * 300_000)
        with pytest.raises(LogFullError, match="No space left on device"):
            log.append([b'{"n": 1, "fill": "%s"}' % (b"x" * 100_000)])
        (small_disk / "more").unlink()
        log.append([b'{"n": 2, "fill": "x"}'])
    assert numbers_in(small_disk / "steps") == [2]


# --- two processes


def test_a_folder_belongs_to_one_process_and_is_free_once_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serving.decision_log._LOCK_WAIT_S", 0.0)
    writer = write_in_a_process(tmp_path)
    assert int(writer.stdout.readline()) == 0
    with pytest.raises(Exception, match=f"in use by process {writer.pid}"):
        DecisionLog(tmp_path, CONFIG)
    assert mend_log(tmp_path) is None
    writer.kill()
    writer.wait()
    deadline = time.monotonic() + 5
    while mend_log(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    DecisionLog(tmp_path, CONFIG).close()
