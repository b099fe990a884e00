"""A whole drill: the scratch workspace, an undisturbed night, then one disturbed night after the other."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets.durable import write_durably
from pipelines.drill.faults import CLOCK, FAULTS, libfaketime
from pipelines.drill.moments import Change, draw_trials, read_changes
from pipelines.drill.night import DrillError, NightProcess
from pipelines.drill.relay import Relay, relay
from pipelines.drill.remains import look
from pipelines.drill.scratch import write_scratch_workspace
from pipelines.drill.trial import NIGHT, Outcome, Stage, run_trial
from pipelines.prefect_server import api_url, free_port, prefect_server
from pipelines.workspace import open_workspace

_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Drill:
    """What a drill did.

    Attributes:
        seed: from which all moments follow.
        outcomes: of its trials.
        left_out: faults that could not be injected here, and why.
        n_changes: of an undisturbed night to its workspace, by stage.
        n_rows: rows of an undisturbed lake, by table.
        cpu_s: CPU seconds of the drill, with all of its nights.
    """

    seed: int
    outcomes: tuple[Outcome, ...]
    left_out: dict[str, str]
    n_changes: dict[str, int]
    n_rows: dict[str, int]
    cpu_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "outcomes": [outcome.to_json() for outcome in self.outcomes]}


def run_drill(
    folder: Path,
    *,
    faults: Sequence[str] = tuple(FAULTS),
    rounds: int = 4,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
    tell_outcome: Callable[[Outcome], None] = lambda _: None,
) -> Drill:
    """Drills in `folder`, which must be new or empty.

    Args:
        faults: names of those to inject.
        rounds: trials of each.
        tell: hears what is being prepared.
        tell_outcome: hears of each trial as it ends.

    Raises:
        DrillError: the folder is in use, a fault is unknown, or the undisturbed night fails.
    """
    unknown = sorted(set(faults) - set(FAULTS))
    if unknown:
        raise DrillError(f"There is no fault {', '.join(unknown)}. Known: {', '.join(FAULTS)}.")
    if folder.exists() and any(folder.iterdir()):
        raise DrillError(f"{folder} is not empty; nothing in it was touched. Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    left_out = {}
    if CLOCK in faults and libfaketime() is None:
        left_out[CLOCK] = "libfaketime is not installed (Debian: apt-get install faketime)"
    tell("a scratch workspace and its first night")
    write_scratch_workspace(folder / "template")
    with _server(folder / "prefect") as server:
        environment = {
            "PREFECT_API_URL": api_url(server.port),
            "PREFECT_HOME": str(folder / "prefect"),
            "OMP_NUM_THREADS": "1",
        }
        tell("a night that nothing disturbs")
        changes = _undisturbed_night(folder, environment)
        stage = Stage(
            folder,
            folder / "template",
            folder / "undisturbed",
            look(open_workspace(folder / "undisturbed")),
            server,
            environment,
            _TIMEOUT_S,
        )
        n_changes = {name: sum(c.stage == name for c in changes) for name in dict.fromkeys(c.stage for c in changes)}
        drill = Drill(seed, (), left_out, n_changes, dict(stage.wanted.n_rows), _cpu_s())
        for trial in draw_trials(changes, [name for name in faults if name not in left_out], rounds, seed):
            outcome = run_trial(stage, trial)
            drill = replace(drill, outcomes=(*drill.outcomes, outcome), cpu_s=_cpu_s())
            write_durably(folder / "drill.json", json.dumps(drill.to_json(), indent=1))
            tell_outcome(outcome)
    return drill


def _undisturbed_night(folder: Path, environment: dict[str, str]) -> list[Change]:
    root = folder / "undisturbed"
    shutil.copytree(folder / "template", root)
    night = NightProcess(root, folder, "undisturbed-night", NIGHT, stop_before=0, environment=environment)
    ended = night.ended(_TIMEOUT_S)
    if ended.code != 0:
        raise DrillError(f"The undisturbed night ended with {ended.code}, so there is nothing to compare: {ended.err}")
    return read_changes(night.record)


@contextmanager
def _server(home: Path) -> Iterator[Relay]:
    """A Prefect server for all nights, behind a relay by which it can be taken away."""
    port = free_port()
    with ExitStack() as running:
        running.enter_context(
            prefect_server(
                "prefect.server.api.server:create_app",
                port=port,
                log_path=home / "server.log",
                timeout_s=180,
                settings={"PREFECT_HOME": str(home), "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"},
            )
        )
        yield running.enter_context(relay(port))


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(u.ru_utime + u.ru_stime for u in used), 1)


def free_folder() -> Path:
    """Where a drill takes place unless it is told."""
    return Path(os.environ.get("TMPDIR", "/tmp")) / f"offline-dqn-drill-{os.getpid()}"
