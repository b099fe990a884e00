"""What happens in a drill, day by day: who acts, what the nights decide, and what goes wrong on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from datasets.errors import OfflineDqnError
from offline_dqn.policy import save_policy
from offline_dqn.rule_policy import RulePolicy
from pipelines import stages
from pipelines.canary import CanaryRefusedError, CanaryWatch, start_canary
from pipelines.canary_state import read_canary
from pipelines.loop_fleet import Client, Day, Tally, play_day, start_of
from pipelines.loop_server import DrillServer
from pipelines.nights import NightRecord
from pipelines.serving.switch import disable, enable
from pipelines.workspace import Workspace, open_workspace
from reports.registry import TRAINING, PromotionRefusedError

NAME = "make loop"
"""Who it is that reviews, starts canaries and throws the switch."""

Kind = Literal["world", "train", "gate", "canary", "promotion", "rollback", "switch", "crash", "planted"]

_NIGHT = timedelta(minutes=30)
"""After midnight, when every outcome of the day is in and its window is closed."""


class NightFailedError(OfflineDqnError):
    """A night of the drill that did not run to its end."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """When what happens; days from 1, and None for what does not."""

    n_days: int = 15
    n_episodes: int = 960
    """Service-hours a day."""
    traffic: float = 0.6
    """Before the shift, of what services were planned for."""
    shifted_traffic: float = 1.2
    shift_on: int | None = 7
    """First day of the shifted traffic."""
    crash_on: int | None = 4
    """Day at whose noon the server is killed and started again."""
    planted_on: int | None = 5
    """Day from which on a bad release is planted, in the first night in which no canary runs."""
    switch_on: int | None = 14
    """Day on which the kill switch is thrown at 09:00 and undone at 15:00."""
    seed: int = 7

    def day(self, number: int) -> Day:
        """The world of one day."""
        shifted = self.shift_on is not None and number >= self.shift_on
        return Day(number, self.shifted_traffic if shifted else self.traffic, self.n_episodes, self.seed)

    @property
    def days(self) -> list[Day]:
        """All of them."""
        return [self.day(number) for number in range(1, self.n_days + 1)]


@dataclass(frozen=True)
class Event:
    """Something that happened: its day, with the hour as a fraction, and one sentence."""

    at: float
    kind: Kind
    text: str


@dataclass
class Told:
    """What a drill has seen: true returns, events and counts."""

    served: list[float] = field(default_factory=list)
    """Mean true return of a service-hour, by day."""
    releases: list[dict[str, int]] = field(default_factory=list)
    """Decisions by release, by day."""
    events: list[Event] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the ids of decisions."""
        return {"served": self.served, "releases": self.releases, "events": [asdict(event) for event in self.events]}


def live(root: Path, story: Story, server: DrillServer, told: Told, say: Callable[[str], None]) -> None:
    """Lives the days of a story on a workspace that is served: hour by hour the fleet and the canary, then the night.

    Args:
        told: is filled.
        say: is told each event.
    """
    drill = _Drill(root, story, server, told, say)
    for number in range(1, story.n_days + 1):
        drill.day(number)
        drill.night(number)


class _Drill:
    def __init__(self, root: Path, story: Story, server: DrillServer, told: Told, say: Callable[[str], None]) -> None:
        self._root, self._story, self._server, self._told, self._say = root, story, server, told, say
        self._client = Client(lambda: server.address)
        self._canary = CanaryWatch(open_workspace(root))
        self._planted = False

    def day(self, number: int) -> None:
        story, before = self._story, Counter(self._told.tally.releases)
        if number == story.shift_on:
            self._tell(number, "world", f"traffic {story.traffic:g} -> {story.shifted_traffic:g} of the plan")
        returns = play_day(
            story.day(number), self._client, self._told.tally, lambda hour, at: self._hour(number, hour, at)
        )
        self._look(number + 1, start_of(number + 1))
        served = self._told.tally.releases - before
        self._told.served.append(float(returns.mean()))
        self._told.releases.append({str(release): n for release, n in sorted(served.items())})
        shares = ", ".join(f"{'rules' if r == 0 else f'release {r}'} {n:,}" for r, n in sorted(served.items()))
        self._say(f"day {number}: true return {returns.mean():.2f} a service-hour; decisions by {shares}")

    def night(self, number: int) -> None:
        as_of = start_of(number + 1) + _NIGHT
        workspace = open_workspace(self._root, as_of)
        record = _run_night(self._root, as_of)
        if record.release is not None:
            self._trained(number, record, as_of)
        planted_on = self._story.planted_on
        if planted_on is not None and number >= planted_on and not self._planted and read_canary(workspace) is None:
            self._planted = True
            self._plant(number, as_of)

    # --- within a day

    def _hour(self, number: int, hour: int, at: datetime) -> None:
        if hour > 0:
            self._look(number + hour / 24, at)
        folder = open_workspace(self._root).serving_path
        if number == self._story.switch_on and hour == 9:
            disable(folder, by=NAME, note="drill")
            self._wait_for_switch(True)
            self._tell(number + hour / 24, "switch", "kill switch: the rules act")
        if number == self._story.switch_on and hour == 15:
            enable(folder, by=NAME, note="drill")
            self._wait_for_switch(False)
            self._tell(number + hour / 24, "switch", "kill switch undone")
        if number == self._story.crash_on and hour == 12:
            self._server.kill()
            self._server.start()
            self._tell(number + hour / 24, "crash", "server killed (SIGKILL) and started again")

    def _look(self, at: float, as_of: datetime) -> None:
        """One look at the canary, as the server takes them, in the clock of the simulation."""
        look = self._canary.evaluate(as_of)
        if look is None or not look.did:
            return
        canary = look.canary
        kind: Kind = "canary"
        if canary.ending == "promoted":
            kind = "promotion"
        elif canary.ending == "stopped":
            kind = "rollback"
        self._tell(at, kind, f"canary of release {canary.release}: {look.did}")

    # --- after a day

    def _trained(self, number: int, record: NightRecord, as_of: datetime) -> None:
        at = float(number + 1)
        self._tell(at, "train", f"release {record.release} trained. {record.decision}")
        self._tell(at, "gate", f"release {record.release}: gate {record.gate}. {record.reason}")
        if record.gate == "passed" and record.release is not None:
            self._start_canary(at, record.release, as_of, override=None)

    def _start_canary(self, at: float, release: int, as_of: datetime, override: str | None) -> None:
        try:
            canary = start_canary(
                open_workspace(self._root, as_of), release, plan=None, share=None, kind="slices", block_s=None,
                burn_in_s=0.0, reviewer=NAME, override=override, as_of=as_of,
            )  # fmt: skip
        except (CanaryRefusedError, PromotionRefusedError) as refused:
            self._tell(at, "canary", f"no canary of release {release}: {refused}")
            return
        self._tell(at, "canary", f"canary of release {release} begins with {canary.share:.0%}")

    def _plant(self, number: int, as_of: datetime) -> None:
        """A release that is worse, through a gate that is forced open by hand: for one evaluation it allows any loss.

        Nothing is forged. The release says in its tags what it is; its evaluation holds the margins with which it
        passed, and the canary the name and reason of the override that gave it more than its certified share.
        """
        workspace = open_workspace(self._root, as_of)
        champion = workspace.registry.champion()
        if champion is None:
            self._tell(number + 1, "planted", "no bad release planted: there is no champion to copy the snapshot of")
            return
        bad = RulePolicy(workspace.contract, (), "scale_up", exploration=0.7)
        with workspace.registry.staging() as staged:
            save_policy(staged, bad)
            training = json.loads((workspace.release_path(champion) / TRAINING).read_bytes())
            (staged / TRAINING).write_text(json.dumps({**training, "snapshot": self._new_snapshot(workspace, number)}))
            release = workspace.registry.register(
                staged,
                tags={"note": f"planted by {NAME}: always scales up, made to be stopped by the canary"},
                at=as_of,
            )
        gate = _with_gate_forced_open(workspace, lambda forced: stages.evaluate(forced, release, None))
        self._tell(
            number + 1, "planted", f"release {release} planted: always scales up; gate forced open by hand: {gate}"
        )
        self._start_canary(number + 1, release, as_of, override="drill: shall be stopped")

    def _new_snapshot(self, workspace: Workspace, number: int) -> str:
        """Digest of a snapshot of today, judged in the world of today."""
        shift_on = self._story.shift_on
        since = start_of(shift_on).date() if shift_on is not None and number >= shift_on else None
        path, _ = stages.snapshot(workspace, judge_since=since)
        return path.name

    # --- telling

    def _wait_for_switch(self, disabled: bool) -> None:
        self._client.wait_until("/v1/ready", lambda state: (state["disabled"] is not None) == disabled)

    def _tell(self, at: float, kind: Kind, text: str) -> None:
        self._told.events.append(Event(at, kind, text))
        self._say(f"  day {at:.2f} {kind}: {text}")


def _run_night(root: Path, as_of: datetime) -> NightRecord:
    """The nightly run as a shell starts it, in a process of its own.

    Raises:
        NightFailedError: it failed; with what it said.
    """
    told = subprocess.run(
        [
            sys.executable, "-c", "from pipelines.cli import main; main()",
            "nightly", "--as-of", f"{as_of:%Y-%m-%dT%H:%M:%S}", "--json", "--workspace", str(root),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if told.returncode != 0:
        raise NightFailedError(f"the night of {as_of:%Y-%m-%d} failed: {told.stderr[-2000:]}")
    return NightRecord.from_json(json.loads(told.stdout))


_FORCED_OPEN = """
[gate]
margin = 100.0
version_zero_margin = 100.0
slice_margin = 100.0
largest_design_effect = 1000.0
[gate.overlap]
largest_imbalance = 0.99
largest_tail_index = 0.99
largest_share = 1.0
fewest_events = 1.0
smallest_sample_size = 1.0
"""


def _with_gate_forced_open(workspace: Workspace, evaluate: Callable[[Workspace], Any]) -> str:
    """Evaluates under a gate whose margins allow any loss, and puts the settings back; says what the gate says."""
    path = workspace.root / "offline_dqn.toml"
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(before + _FORCED_OPEN, encoding="utf-8")
        outcome = evaluate(open_workspace(workspace.root, workspace.given_as_of))
    finally:
        path.write_text(before, encoding="utf-8")
    return "it passed at a margin of 100" if outcome.passed else f"it refused: {outcome.evaluation.decision.reason}"
