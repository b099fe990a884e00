"""One trial: a night that is disturbed at its moment, the repair, the repeated night, and what is held against it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.drill.faults import FAULTS, Fault, Scene
from pipelines.drill.moments import Trial
from pipelines.drill.night import DrillError, Ended, NightProcess
from pipelines.drill.relay import Relay
from pipelines.drill.remains import Remains, differences, look
from pipelines.workspace import open_workspace

NIGHT = ("nightly", "--force-train", "--json")

_DISK_BYTES = 64 << 20


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: that was made.
        variant: of its fault.
        moment: where the night was, in words.
        first: exit code of the disturbed night; negative is a signal, None a night that did not end.
        said: what it said of the fault; "" where it went on and had nothing to say.
        resumed: what the repeated night says of the first.
        lost, added: rows of the lake, against an undisturbed night.
        n_new_releases: made by both nights together.
        same_policy: whether the release is the undisturbed one's, to the bit; None where it cannot be, since another
            instant was taken for now, or where nothing came of the night.
        wrong: what must not be, in words; empty where the fault was survived.
        seconds: of the whole trial.
    """

    trial: Trial
    variant: str
    moment: str
    first: int | None
    said: str
    resumed: str
    lost: int
    added: int
    n_new_releases: int
    same_policy: bool | None
    wrong: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "wrong": list(self.wrong)}


@dataclass(frozen=True)
class Stage:
    """What all trials share.

    Attributes:
        folder: of the drill.
        template: workspace that each trial begins with.
        undisturbed: the same after a night that nothing disturbed.
        wanted: what that left.
        server: the relay to Prefect's server.
        environment: of every night.
        timeout_s: for a night.
        night: the command that is disturbed and repeated.
    """

    folder: Path
    template: Path
    undisturbed: Path
    wanted: Remains
    server: Relay
    environment: Mapping[str, str | None]
    timeout_s: float
    night: tuple[str, ...] = NIGHT


def run_trial(stage: Stage, trial: Trial) -> Outcome:
    """Disturbs a night in a copy of the template; the copy is gone afterwards unless something was wrong.

    Raises:
        DrillError: the drill itself cannot go on.
    """
    began, fault = time.monotonic(), FAULTS[trial.fault]
    rng = np.random.default_rng(trial.seed)
    variant = fault.variants[trial.turn % len(fault.variants)]
    folder = stage.folder / f"trial-{trial.number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    environment = {**stage.environment, **fault.environment(folder, variant)}
    with _disk(folder / "workspace", small=fault.small_disk) as small_disk, ExitStack() as running:
        root = folder / "workspace"
        shutil.copytree(stage.template, root, dirs_exist_ok=True)
        fault.prepare(root)

        def start(name: str, stop_before: int = -1) -> NightProcess:
            night = NightProcess(root, folder, name, stage.night, stop_before=stop_before, environment=environment)
            running.callback(night.end)  # a night that is held at its moment would outlive a drill that is stopped
            return night

        night = start("first", trial.change)
        moment, others = "after its end", list[Ended]()
        if night.wait_until_stopped(stage.timeout_s):
            moment = night.moment()
            if trial.fault == "kill" and trial.delay_s:
                night.go_on()
                time.sleep(trial.delay_s)
            scene = Scene(root, folder, night, stage.server, rng, small_disk, start)
            mend = fault.strike(scene, variant)
            night.go_on()
            first = night.ended(stage.timeout_s)
            others = scene.others
            mend()
        else:
            first = night.ended(stage.timeout_s)
        repeated = start("repeated").ended(stage.timeout_s)
        record = _record(repeated)
        found = look(open_workspace(root), stage.undisturbed) if repeated.code == 0 else None
        wrong = [
            *_wrong_with_night(fault, first, others),
            *_wrong_with_repeat(repeated),
            *(differences(found, stage.wanted) if found is not None else ()),
        ]
        if wrong and small_disk:
            shutil.copytree(root, folder / "kept", dirs_exist_ok=True)
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(
        trial=trial,
        variant=variant,
        moment=moment,
        first=first.code,
        said=_said(first, others),
        resumed=str(record.get("resumed") or ""),
        lost=found.lost if found is not None else 0,
        added=found.added if found is not None else 0,
        n_new_releases=len(set(found.releases) - {0, 1}) if found is not None else 0,
        same_policy=_same_policy(found, stage.wanted) if fault.same_instant and found is not None else None,
        wrong=tuple(wrong),
        seconds=round(time.monotonic() - began, 1),
    )


def _same_policy(found: Remains, wanted: Remains) -> bool:
    new = wanted.policies.keys() - {0, 1}
    return all(found.policies.get(release) == wanted.policies[release] for release in new)


def _record(ended: Ended) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(ended.out)
    except ValueError:
        return {}
    return found


def _said(first: Ended, others: list[Ended]) -> str:
    """The error messages of a night and of a second one, and the warnings in its record."""
    said = [line for ended in (first, *others) for line in ended.err.splitlines() if line.startswith("error: ")]
    return " / ".join([*(line.removeprefix("error: ") for line in said), *_record(first).get("warnings", [])])


def _wrong_with_night(fault: Fault, first: Ended, others: list[Ended]) -> list[str]:
    wrong = []
    for name, ended in (("the disturbed night", first), *(("the second night", other) for other in others)):
        if ended.code is None:
            wrong.append(f"{name} did not end")
        if re.search(r"^Traceback|^Fatal Python error|terminate called|panicked at", ended.err, re.MULTILINE):
            wrong.append(f"{name} printed a traceback: {ended.err.strip().splitlines()[-1][:300]}")
        if ended.left_behind:
            wrong.append(f"{name} left {ended.left_behind} processes behind")
        if (ended.code or 0) > 0:
            wrong += [
                f"{name} says no {what}: {ended.err.strip()[-600:]}"
                for what, words in (("cause", fault.cause), ("remedy", fault.remedy))
                if words and not any(word in ended.err for word in words)
            ]
            if not fault.cause:
                wrong.append(f"{name} failed: {ended.err.strip()[-600:]}")
    return wrong


def _wrong_with_repeat(repeated: Ended) -> list[str]:
    if repeated.code == 0:
        return []
    return [f"the repeated night ended with {repeated.code}: {repeated.err.strip()[-600:]}"]


@contextmanager
def _disk(root: Path, *, small: bool) -> Iterator[bool]:
    """A small disk at `root` while the context lasts, where this user may mount one; yields whether there is one."""
    root.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(root)]
    if not small or subprocess.run(mount, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        if subprocess.run(["umount", "-l", str(root)], capture_output=True).returncode:
            raise DrillError(f"{root} could not be unmounted: do it by hand (umount {root}).")
