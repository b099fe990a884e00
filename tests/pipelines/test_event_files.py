"""TensorBoard's event files of a training, on a machine whose clock is set."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipelines.event_files import event_files


def test_a_clock_that_is_set_back_neither_ends_nor_holds_up_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    real = time.time

    def write() -> None:
        with event_files(tmp_path) as write_metrics:
            write_metrics(0, {"loss": 1.0})
            time.sleep(0.2)  # its thread has flushed, and waits for the next time to do so
            monkeypatch.setattr(time, "time", lambda: real() - 365 * 86400)
            for step in range(1, 60):  # more than the writer's queue holds
                write_metrics(step, {"loss": 1.0})
                time.sleep(0.005)

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(30)

    assert not writing.is_alive(), "the training waits for a thread that has died"
    assert died == []
    (written,) = (tmp_path / "all").iterdir()
    assert written.stat().st_size > 60 * 20
