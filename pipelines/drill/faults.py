"""The faults: what each does to a night at its moment, how it is made good, and what a person must be told."""

from __future__ import annotations

import contextlib
import gzip
import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np

from pipelines.drill.night import Ended, NightProcess
from pipelines.drill.relay import Relay

BALLAST = ".ballast"

_SECOND_NIGHT_S = 900.0


@dataclass
class Scene:
    """Where a fault strikes.

    Attributes:
        root: the workspace.
        folder: beside it, for what the fault needs.
        night: the process, stopped at its moment.
        server: the relay to Prefect's server.
        rng: for what the fault draws.
        small_disk: whether the workspace lies on a small disk of its own.
        start_night: starts another night of the same workspace.
        others: how such nights ended.
    """

    root: Path
    folder: Path
    night: NightProcess
    server: Relay
    rng: np.random.Generator
    small_disk: bool
    start_night: Callable[[str], NightProcess]
    others: list[Ended] = field(default_factory=list)


Mend = Callable[[], None]
"""What a person does about it before the night is repeated."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: of it.
        what: it does, for the table.
        variants: among which each trial draws.
        strike: does it, and returns how it is made good; the night goes on in between.
        cause, remedy: words of which a message must hold one each; empty where the night has no occasion to speak.
        environment: of the night, for a variant.
        prepare: changes the workspace before its night.
        small_disk: whether the workspace must lie on a small disk.
        same_instant: whether nights take the undisturbed one's instant for now, so that their policy is the same.
    """

    name: str
    what: str
    variants: tuple[str, ...]
    strike: Callable[[Scene, str], Mend]
    cause: tuple[str, ...]
    remedy: tuple[str, ...]
    environment: Callable[[Path, str], Mapping[str, str | None]] = lambda _, __: {}
    prepare: Callable[[Path], None] = lambda _: None
    small_disk: bool = False
    same_instant: bool = True


def _nothing() -> None:
    pass


# --- kill


def _kill(scene: Scene, _: str) -> Mend:
    scene.night.kill()
    return _nothing


# --- disk


def _fill(scene: Scene, variant: str) -> Mend:
    """Fills the small disk but for a little; elsewhere no file may grow beyond a size that is soon reached."""
    room = 0 if variant == "full" else int(scene.rng.integers(4_096, 262_144))
    if not scene.small_disk:
        resource.prlimit(scene.night.pid, resource.RLIMIT_FSIZE, (room, room))
        return _nothing  # it ends with the process
    ballast = scene.root / BALLAST
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            pass
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(512)):
            pass
    os.truncate(ballast, max(0, ballast.stat().st_size - room))
    return lambda: ballast.unlink()


# --- Prefect's server


def _take_server(scene: Scene, variant: str) -> Mend:
    if variant == "its own":
        for pid in scene.night.children():
            with contextlib.suppress(OSError):
                if "uvicorn" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
        return _nothing
    scene.server.take_away()
    return scene.server.give_back


def _server_of(_: Path, variant: str) -> Mapping[str, str | None]:
    return {"PREFECT_API_URL": None, "PREFECT_HOME": None} if variant == "its own" else {}


# --- MLflow's database


def _take_database(scene: Scene, variant: str) -> Mend:
    database, kept = scene.root / "mlflow.db", scene.folder / "mlflow.db"
    if variant == "locked":
        holder = sqlite3.connect(database, timeout=30, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        return holder.close
    shutil.copy2(database, kept)
    if variant == "damaged":
        with database.open("r+b") as file:
            file.write(os.urandom(4096))
    else:
        database.unlink()

    def put_back() -> None:
        for rest in scene.root.glob("mlflow.db*"):
            rest.unlink()
        shutil.copy2(kept, database)

    return put_back


# --- Parquet


def _damage(scene: Scene, variant: str) -> Mend:
    """Cuts or alters a Parquet file of the lake, or of tonight's log; it is made good from a copy, as from a backup."""
    where = scene.root / ("logs/steps" if variant == "log cut" else "lake")
    tables = ("steps", "files", "batches") if where.name == "lake" else ("",)
    found = sorted(p for t in tables for p in (where / t).rglob("*.parquet") if not p.name.startswith("columns-"))
    damaged = found[int(scene.rng.integers(len(found)))]
    kept = scene.folder / "kept.parquet"
    shutil.copy2(damaged, kept)
    content = bytearray(damaged.read_bytes())
    if variant == "lake altered":
        for place in scene.rng.integers(4, len(content), 16):
            content[place] ^= int(scene.rng.integers(1, 256))
    else:
        del content[len(content) // 2 :]
    damaged.write_bytes(content)

    def put_back() -> None:
        if damaged.exists():  # the lake may have merged it into another meanwhile
            shutil.copy2(kept, damaged)

    return put_back


# --- a log twice


def _deliver_again(scene: Scene, variant: str) -> Mend:
    for log in sorted((scene.root / "logs" / "steps").glob("night-0002*")):
        again = log.with_name(f"again-{log.name}")
        if variant == "same bytes" or log.suffix != ".jsonl":
            shutil.copy2(log, again)
        else:
            again.with_name(f"{again.name}.gz").write_bytes(gzip.compress(log.read_bytes()))
    return _nothing


# --- two nights


def _start_another(scene: Scene, _: str) -> Mend:
    """Lets a second night come to its end while the first one is held at its moment."""
    scene.others.append(scene.start_night("second").ended(_SECOND_NIGHT_S))
    return _nothing


# --- the clock

CLOCK = "clock"
_JUMPS = {
    "a year back": timedelta(days=-365),
    "three hours back": timedelta(hours=-3),
    "a year on": timedelta(days=365),
    "a day on": timedelta(days=1),
}


def libfaketime() -> Path | None:
    """The library that lets a process see another time; None where it is not installed."""
    places = [
        *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
        *Path("/usr/lib").glob("faketime/libfaketimeMT*"),
    ]
    return next(iter(places), None)


def _jump(scene: Scene, variant: str) -> Mend:
    _set_clock(scene.folder / CLOCK, _JUMPS[variant])
    return lambda: _set_clock(scene.folder / CLOCK, timedelta())


def _set_clock(path: Path, by: timedelta) -> None:
    path.write_text(f"{by.total_seconds():+.0f}\n")


def _clock_of(folder: Path, _: str) -> Mapping[str, str | None]:
    library = libfaketime()
    assert library is not None  # asked for before
    folder.mkdir(parents=True, exist_ok=True)
    _set_clock(folder / CLOCK, timedelta())
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(folder / CLOCK),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }


def _judge_by_the_clock(root: Path) -> None:
    settings = root / "offline_dqn.toml"
    settings.write_text(settings.read_text().replace('as_of = "newest"', 'as_of = "now"'))


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("kill", "SIGKILL of the night", ("",), _kill, (), ()),
        Fault(
            "disk",
            "no room on the disk",
            ("full", "almost full"),
            _fill,
            ("No space left", "File too large", "disk is full"),
            ("room", "space"),
            small_disk=True,
        ),
        Fault(
            "prefect",
            "Prefect's server goes away",
            ("its own", "another's"),
            _take_server,
            ("Prefect's server",),
            ("start the server", "run the night again", "goes on from there"),
            environment=_server_of,
        ),
        Fault(
            "mlflow",
            "MLflow's database goes away",
            ("removed", "locked", "damaged"),
            _take_database,
            ("mlflow.db", "MLflow's database"),
            ("again", "backup"),
        ),
        Fault(
            "parquet",
            "a Parquet file is damaged",
            ("lake cut", "lake altered", "log cut"),
            _damage,
            (".parquet",),
            ("backup", "restore", "Restore", "put", "again"),
        ),
        Fault("twice", "tonight's logs are delivered twice", ("same bytes", "compressed"), _deliver_again, (), ()),
        Fault(
            "two nights",
            "a second night is started",
            ("",),
            _start_another,
            ("is in use by process",),
            ("Wait until it has ended",),
        ),
        Fault(
            CLOCK,
            "the clock jumps",
            tuple(_JUMPS),
            _jump,
            ("clock",),
            ("Set the clock",),
            environment=_clock_of,
            prepare=_judge_by_the_clock,
            same_instant=False,
        ),
    )
}
