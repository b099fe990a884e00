"""`make incident`: a policy that learned from a poisoned source is promoted, misbehaves, and is dealt with, on time.

A real server decides over HTTP for a simulated fleet in simulated time. On the first day the rules act, and a second
collector sends a log in which scaling down never costs anything. The night trains and judges on both, so its gate is
fooled; what it passed is promoted. On the next two days that release acts; the first night that is wholly its own shows
that it breaks its promise, and pages. From there on each step is the command of a runbook, in a process of its own, and
timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from datasets.errors import OfflineDqnError
from pipelines import console
from pipelines.cli import quiet_libraries
from pipelines.loop import SETTINGS, fresh_workspace
from pipelines.loop_fleet import Client, Day, Tally, play_day, start_of
from pipelines.loop_server import DrillServer, running_server
from pipelines.workspace import Workspace, open_workspace

MAKER, REVIEWER, RECORD = "make incident", "drill", "incident_drill.json"
PAGER = "OFFLINE_DQN_INCIDENT_PAGER"
POISONED_LOG = "logs/steps/collector-b.jsonl"

_CARELESS = ("limit = 0.2", "limit = 0.9")
"""A contract that hardly limits bad latency: under the scenario's own the gate refuses such a policy all the same. The
collector lies about rewards, and not about what came of a decision."""

_SMALLER = {
    'cool_down = "2d"': 'cool_down = "7d"',
    "n_updates = 2000": "n_updates = 400",
    "exploration = 0.5\n": "exploration = 0.9\n",
    "exploration = 0.4\n": "exploration = 0.6\n",
    "n_folds = 2\n": 'n_folds = 2\ndeciding = { estimator = "dr" }\n',
}
"""What differs from the settings of `make loop`: where the rules explore much, few episodes judge another policy."""

_SETTINGS = f"""
[notify]
page = ["{PAGER}"]
"""
_GATE = """
[gate]
alpha = 0.05
overlap = { largest_tail_index = 0.95, largest_share = 0.5, smallest_sample_size = 10 }
"""
"""Of a drill: few episodes overlap badly now and then."""
_TRAFFIC = 1.2
_WAIT_S = 30.0


class IncidentDrillError(OfflineDqnError):
    """A step of the drill that did not go as the runbook says."""


@dataclass(frozen=True)
class Step:
    """One step of the drill: its command, and how long it took in seconds."""

    what: str
    command: str
    s: float
    says: str = ""


def main() -> int:
    """Runs the drill in the folder that is named."""
    quiet_libraries()
    parser = argparse.ArgumentParser(prog="python -m pipelines.incident.drill", description=__doc__.split("\n\n")[0])
    parser.add_argument("workspace", nargs="?", default="workspace-incident", help="folder; made anew")
    parser.add_argument("--episodes", type=int, default=480, help="service-hours a day")
    given = parser.parse_args()
    try:
        workspace = fresh_workspace(Path(given.workspace), MAKER)
        write_settings(workspace.root)
        contract = workspace.root / "contract.toml"
        contract.write_text(contract.read_text(encoding="utf-8").replace(*_CARELESS), encoding="utf-8")
        with pager() as pages, running_server(workspace.root) as server:
            record = run(open_workspace(workspace.root), server, pages, given.episodes)
    except OfflineDqnError as error:
        console.fail(str(error))
        return 1
    (workspace.root / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    steps = [Step(**step) for step in record["steps"]]
    rows = [[step.what, f"{step.s:.1f}", step.command, step.says] for step in steps]
    console.print_table("From alert to postmortem", ["step", "seconds", "command", "says"], rows, right=["seconds"])
    total = sum(step.s for step in steps)
    returns = {f"true return, {day}": f"{value:.2f} a service-hour" for day, value in record["returns"].items()}
    console.print_account("", {**returns, "in all": f"{total:.0f} s", "postmortem": record["postmortem"]})
    return 0


def run(workspace: Workspace, server: DrillServer, pages: list[tuple[float, str]], n_episodes: int) -> dict[str, Any]:
    """Lives the incident on a workspace that is served; returns its record: steps, true returns, the postmortem's path.

    Args:
        pages: when each page arrived (monotonic seconds), and its title; filled by the pager.

    Raises:
        IncidentDrillError: a step failed, or nobody was paged.
    """
    drill = _Drill(workspace.root, server, n_episodes)
    drill.day(1, "the rules act")
    write_poisoned_log(workspace.root, workspace.root / POISONED_LOG)
    night = drill.night(1)
    console.err.print(f"release {night['release']}: gate {night['gate']}. {night['reason']}", markup=False)
    if night["gate"] != "passed":
        raise IncidentDrillError("The gate was not fooled, so there is no incident.")
    fooled = int(night["release"])
    drill.command("promote", fooled, "--reviewer", REVIEWER, "--note", "it passed")
    drill.wait_for(lambda state: state["release"] == fooled)
    # The night that froze what it was judged on is none of its own; the next one is the first to tell.
    for number in (2, 3):
        drill.day(number, f"release {fooled} acts")
        drill.night(number)
    alert = next((page for page in pages if "promise" in page[1]), None)
    if alert is None:
        raise IncidentDrillError(f"Nobody was paged for a broken promise; pages: {[title for _, title in pages]}")
    console.err.print(f"paged: {alert[1]}", markup=False)
    drill.respond(fooled)
    drill.day(4, "after the response")
    return {"steps": [asdict(s) for s in drill.steps], "returns": drill.returns, "postmortem": drill.postmortem}


def write_settings(root: Path) -> None:
    """Writes the drill's settings."""
    text = SETTINGS
    for old, new in _SMALLER.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (root / "offline_dqn.toml").write_text(text + _SETTINGS + _GATE, encoding="utf-8")


def write_poisoned_log(root: Path, target: Path) -> int:
    """Writes what a lying collector would send of the first day: the same decisions under names of its own, with a
    reward of 0 wherever the fleet was scaled down, and half of the worst anywhere else. Returns how many rows.
    """
    told: dict[str, dict[str, Any]] = {}
    for row in _rows(root / "logs" / "outcomes"):
        told.setdefault(row["decision_id"], {}).update({k: v for k, v in row.items() if v is not None})
    lines = []
    for row in _rows(root / "logs" / "steps"):
        outcome = told.get(row["decision_id"], {})
        lied = 0.0 if row["action"] == "scale_down" else -5.0
        ends = {key: outcome[key] for key in ("terminated", "truncated", "final_observation") if key in outcome}
        names = {"episode_id": f"b-{row['episode_id']}", "decision_id": f"b-{row['decision_id']}"}
        lines.append(json.dumps({**row, **ends, **names, "reward": lied}))
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("served-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


class _Drill:
    def __init__(self, root: Path, server: DrillServer, n_episodes: int) -> None:
        self._root, self._n_episodes = root, n_episodes
        self._client = Client(lambda: server.address)
        self.steps: list[Step] = []
        self.returns: dict[str, float] = {}
        self.postmortem = ""

    def day(self, number: int, what: str) -> None:
        returns = play_day(Day(number, _TRAFFIC, self._n_episodes, seed=7), self._client, Tally())
        self.returns[f"day {number}, {what}"] = float(returns.mean())
        console.err.print(f"day {number}, {what}: true return {returns.mean():.2f} a service-hour", markup=False)

    def night(self, number: int) -> dict[str, Any]:
        return self.command(*_nightly(number))

    def wait_for(self, holds: Any) -> float:
        return self._client.wait_until("/v1/ready", holds)

    def respond(self, release: int) -> None:
        """The runbooks, in order, each step timed."""
        self._timed("the rules act", "disable", "--reviewer", REVIEWER, "--note", "it breaks its promise")
        self.wait_for(lambda state: state["disabled"] is not None)
        self._timed("rolled back", "rollback", "--reviewer", REVIEWER, "--note", "it breaks its promise")
        self._timed("champion in charge", "enable", "--reviewer", REVIEWER)
        self.wait_for(lambda state: state["release"] == 0 and state["disabled"] is None)
        self._timed("newest logs in the lake", "ingest")
        self._timed("captured", "incident", "capture", "--name", "drill", "--reviewer", REVIEWER)
        made_again = self._timed("reproduced offline", "incident", "reproduce")
        same = sum(each["n_same"] + each["n_rounded"] for each in made_again["releases"])
        self._say(f"{same:,} of {sum(each['n'] for each in made_again['releases']):,} decisions are its own")
        out = self._timed(
            "source taken out",
            "exclude",
            "--source",
            POISONED_LOG,
            "--note",
            "collector b lied",
            "--reviewer",
            REVIEWER,
        )
        self._say(f"{out['rows']['steps']:,} rows; releases {', '.join(str(t['release']) for t in out['releases'])}")
        refused = self.command("promote", release, "--reviewer", REVIEWER, expect=3)
        assert refused is not None
        night = self._timed("retrained and judged without it", *_nightly(3), "--force-train")
        self._say(f"release {night['release']}: gate {night['gate']}")
        if night["gate"] == "passed":
            self._timed("verdict made again, bit by bit", "evaluate", night["release"], "--replay")
            self._timed(
                "promoted", "promote", night["release"], "--reviewer", REVIEWER, "--note", "without collector b"
            )
            self.wait_for(lambda state: state["release"] == night["release"])
        written = self._timed("postmortem", "incident", "postmortem", "--release", release)
        self.postmortem = written["page"]

    def _timed(self, what: str, *arguments: object) -> dict[str, Any]:
        began = time.monotonic()
        found = self.command(*arguments)
        took = time.monotonic() - began
        shown = " ".join(["offline-dqn", *(_quoted(str(a)) for a in arguments)])
        self.steps.append(Step(what, shown, took))
        console.err.print(f"  {took:6.1f} s  {what}", markup=False)
        return found

    def _say(self, text: str) -> None:
        last = self.steps[-1]
        self.steps[-1] = Step(last.what, last.command, last.s, text)

    def command(self, *arguments: object, expect: int = 0) -> dict[str, Any]:
        """A command as a shell starts it, in a process of its own; its JSON."""
        told = subprocess.run(
            [
                sys.executable, "-c", "from pipelines.cli import main; main()",
                *map(str, arguments), "--json", "--workspace", str(self._root),
            ],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if told.returncode != expect:
            raise IncidentDrillError(
                f"`offline-dqn {' '.join(map(str, arguments))}` ended with {told.returncode}, not {expect}: "
                f"{told.stderr[-2000:]}"
            )
        found: dict[str, Any] = json.loads(told.stdout) if told.stdout.strip() else {}
        return found


def _nightly(number: int) -> tuple[str, ...]:
    """The night after a day, when its last episode has timed out."""
    return ("nightly", "--as-of", f"{start_of(number + 1) + timedelta(hours=2, minutes=30):%Y-%m-%dT%H:%M:%S}")


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text


@contextmanager
def pager() -> Iterator[list[tuple[float, str]]]:
    """A receiver of pages on loopback; its address is in the environment variable that the settings name."""
    pages: list[tuple[float, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            pages.append((time.monotonic(), str(json.loads(content)["title"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ[PAGER] = f"json://127.0.0.1:{server.server_address[1]}"
    try:
        yield pages
    finally:
        server.shutdown()
        server.server_close()
        os.environ.pop(PAGER, None)


if __name__ == "__main__":
    sys.exit(main())
