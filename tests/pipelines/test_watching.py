"""What a person sees of a training while it runs: the bar, the plain lines, TensorBoard's files."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import console
from pipelines.event_files import event_files


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the event files of a run hold by tag, in the order of the files."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):  # length, its checksum, the record, its checksum
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_each_learner_is_a_run_of_its_own(tmp_path: Path) -> None:
    with event_files(tmp_path) as write:
        for step in (10, 20):
            write(step, {"dqn/td_loss": 1.0 / step, "cql 1/td_loss": float("nan"), "updates_per_s": 300.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "cql 1", "dqn"]
    assert scalars(tmp_path / "all") == {"updates_per_s": [(10, 300.0), (20, 300.0)]}
    assert [step for step, _ in scalars(tmp_path / "dqn")["td_loss"]] == [10, 20]
    assert scalars(tmp_path / "cql 1") == {}


def test_files_that_cannot_be_written_are_a_warning_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder would be")
    with caplog.at_level(logging.WARNING), event_files(tmp_path / "tensorboard") as write:
        write(10, {"dqn/td_loss": 1.0})
        write(20, {"dqn/td_loss": 1.0})
    assert len([record for record in caplog.records if "no TensorBoard files any more" in record.message]) == 1


@pytest.mark.parametrize(
    ("done", "total", "per_s", "wanted"),
    [
        (2_000, 10_000, 250.0, "250 updates/s, 32 s left"),
        (10_000, 10_000, 250.0, "250 updates/s"),
        (10, None, 0.5, "0.5 updates/s"),
        (10, 100, None, ""),
    ],
)
def test_pace_says_rate_and_time_left(done: int, total: int | None, per_s: float | None, wanted: str) -> None:
    assert console.pace(done, total, per_s, "updates") == wanted


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, force_terminal=True, width=120))
    with console.progress("training", 100, "updates") as advance:
        advance(40, 20.0)
    assert "20 updates/s, 3 s left" in shown.getvalue()
    assert "40/100" in shown.getvalue()

    plain = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=plain, width=120))
    monkeypatch.setattr(console, "_LINE_EVERY_S", 0.0)
    with console.progress("training", 100, "updates") as advance:
        advance(40, 20.0)
    assert plain.getvalue() == "training ...\ntraining: 40 of 100 after 0 s, 20 updates/s, 3 s left\n"
