"""What a stage took of the machine, measured around it and kept: one line per stage in a file per month."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from datasets.durable import append_record, read_records
from offline_dqn.stopping import TrainingStoppedError
from pipelines.metrics.config import CostConfig

_GB = 1e9
_HOUR_S = 3600.0
_RESET_PEAK = "5"
"""Written to clear_refs, it sets the kernel's peak of resident memory back to what is held now (proc(5))."""

Ended = Literal["done", "failed", "stopped"]


@dataclass(frozen=True)
class Usage:
    """What was used between two moments. None where the system does not tell.

    Attributes:
        wall_s: seconds by the clock.
        cpu_s: CPU seconds of every thread, of child processes that have ended and were waited for, and of an engine's
            workers.
        peak_bytes: most resident memory of one process at once: this one, or an engine's worker.
        read_bytes, written_bytes: that went to disks; what a cache answered is not counted.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None

    def cost(self, prices: CostConfig) -> float:
        """What it cost; what the system does not tell is not charged."""
        return (
            prices.cpu_hour * self.cpu_s / _HOUR_S
            + prices.memory_gb_hour * (self.peak_bytes or 0) / _GB * self.wall_s / _HOUR_S
            + prices.read_gb * (self.read_bytes or 0) / _GB
            + prices.written_gb * (self.written_bytes or 0) / _GB
        )


@dataclass(frozen=True)
class StageUsage(Usage):
    """A stage's line in the log.

    Attributes:
        stage: its name.
        night: ISO date of the `as_of` that it ended with.
        began_at: by the clock.
        ended: "stopped" by a budget.
        n_updates: that a training did; None of other stages.
        first: what it had used before the first of them.
    """

    stage: str = ""
    night: str = ""
    began_at: str = ""
    ended: Ended = "done"
    n_updates: int | None = None
    first: Usage | None = None


class Meter:
    """Runs from its making on."""

    def __init__(self) -> None:
        self.began_at = datetime.now(UTC)
        with contextlib.suppress(OSError):  # another system than Linux: the peak is then that of the whole process
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        self._wall, self._cpu, self._io = time.perf_counter(), _cpu_seconds(), _io_bytes()
        _elsewhere.peak_bytes = 0

    def read(self) -> Usage:
        """What was used so far."""
        read_bytes, written_bytes = (
            None if now is None or before is None else now - before
            for now, before in zip(_io_bytes(), self._io, strict=True)
        )
        return Usage(
            wall_s=time.perf_counter() - self._wall,
            cpu_s=_cpu_seconds() - self._cpu,
            peak_bytes=_highest(_peak_bytes(), _elsewhere.peak_bytes),
            read_bytes=read_bytes,
            written_bytes=written_bytes,
        )


@dataclass
class _Elsewhere:
    """What pieces of the stage under way took in processes that are no children of this one, as these tell."""

    cpu_s: float = 0.0
    peak_bytes: int = 0


_elsewhere = _Elsewhere()


def used_elsewhere(cpu_s: float, peak_bytes: int) -> None:
    """Counts a piece that an engine's worker has worked out: its CPU seconds, and the memory its process has held."""
    _elsewhere.cpu_s += cpu_s
    _elsewhere.peak_bytes = max(_elsewhere.peak_bytes, peak_bytes)


def _highest(own: int | None, elsewhere: int) -> int | None:
    return None if own is None else max(own, elsewhere)


def _cpu_seconds() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime + _elsewhere.cpu_s


def _peak_bytes() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return int(line.split()[1]) * 1024 if line is not None else None


def _io_bytes() -> tuple[int | None, int | None]:
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:  # some containers hide it
        return None, None
    found = dict(line.split(": ") for line in text.splitlines())
    return int(found["read_bytes"]), int(found["write_bytes"])


@dataclass
class Measured:
    """A stage that is being measured.

    Attributes:
        meter: of it.
        ended: how it ended.
        n_updates: of a training.
        first: what it had used before its first update.
    """

    meter: Meter
    ended: Ended = "done"
    n_updates: int | None = None
    first: Usage | None = None


class UsageLog:
    """The files of a workspace's stages; only ever appended to, by whoever holds the workspace's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def stage(self, name: str, night: Callable[[], str]) -> Iterator[Measured]:
        """Measures a stage, and writes its line when it ends, however it does.

        Args:
            night: called at the end, gives the ISO date of the night.
        """
        measured = Measured(Meter())
        try:
            yield measured
        except BaseException as error:
            measured.ended = "stopped" if isinstance(error, TrainingStoppedError) else "failed"
            raise
        finally:
            used = asdict(measured.meter.read())
            began_at = measured.meter.began_at
            with contextlib.suppress(OSError):  # on a full disk the stage's own error is the one to tell of
                line = StageUsage(
                    **used,
                    stage=name,
                    night=night(),
                    began_at=began_at.isoformat(timespec="milliseconds"),
                    ended=measured.ended,
                    n_updates=measured.n_updates,
                    first=measured.first,
                )
                append_record(self._folder / f"usage-{began_at:%Y-%m}.jsonl", asdict(line))

    def of_night(self, night: str) -> list[StageUsage]:
        """Every stage of a night, those of failed attempts too, in the order in which they ended."""
        return [line for path in self._files() for line in _read(path) if line.night == night]

    def of_month(self, at: datetime) -> list[StageUsage]:
        """Every stage that began in the calendar month of an instant, UTC."""
        return _read(self._folder / f"usage-{at.astimezone(UTC):%Y-%m}.jsonl")

    def last(self, stage: str, *, trained: bool = False) -> StageUsage | None:
        """The newest line of a stage that was done; with `trained`, or that was stopped after some updates."""
        for path in reversed(self._files()):
            for line in reversed(_read(path)):
                enough = line.ended == "done" or (trained and line.ended == "stopped")
                if line.stage == stage and enough and (not trained or line.n_updates):
                    return line
        return None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("usage-[0-9][0-9][0-9][0-9]-[0-9][0-9].jsonl"))


_FIELDS = {field.name for field in fields(StageUsage)}


def _read(path: Path) -> list[StageUsage]:
    return [_line(record) for record in read_records(path)]


def _line(record: Mapping[str, Any]) -> StageUsage:
    known = {name: value for name, value in record.items() if name in _FIELDS}
    return StageUsage(**{**known, "first": Usage(**known["first"]) if known.get("first") else None})


def together(lines: list[StageUsage]) -> Usage:
    """Several stages, one after the other: sums, and the highest of the peaks."""

    def total(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Usage(
        wall_s=sum(line.wall_s for line in lines),
        cpu_s=sum(line.cpu_s for line in lines),
        peak_bytes=max((line.peak_bytes for line in lines if line.peak_bytes is not None), default=None),
        read_bytes=total([line.read_bytes for line in lines]),
        written_bytes=total([line.written_bytes for line in lines]),
    )
