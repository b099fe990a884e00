"""A tiny workspace with a champion and a candidate, and a server's logs of episodes whose true worth is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from datasets.durable import append_record
from pipelines.canary import _rules_digest
from pipelines.canary_state import Canary, Share, record_event
from pipelines.workspace import Workspace, open_workspace
from reports.history import Promotion
from reports.manifest import Manifest, write_manifest

START = datetime(2026, 1, 5, tzinfo=UTC)
CONTRACT = """
name = "tiny"
gamma = 1.0
[features.load]
type = "numeric"
[actions]
names = ["wait", "act"]
safe = "wait"
[reward]
min = -20.0
max = 20.0
[success]
when = "next_observation.load <= 1"
[constraints.hot]
breached = "next_observation.load > 2"
limit = 0.1
[episodes]
timeout = "10m"
"""
LATER = '\n[outcomes]\nattribution_window = "5m"\n'

Draw = Callable[[np.random.Generator, bool], dict[str, Any]]
"""(rng, is the candidate's) -> mean, load, late, version, of one episode; what is left out is as usual."""


def tiny_workspace(root: Path, settings: str = "", *, outcomes: bool = False) -> Workspace:
    """Champion 1 and candidate 2, both whole; no MLflow."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "contract.toml").write_text(CONTRACT + (LATER if outcomes else ""))
    (root / "offline_dqn.toml").write_text(f"[canary]\n{settings}\n")
    for kind in ("steps", "outcomes"):
        (root / "logs" / kind).mkdir(parents=True)
    for release in (1, 2):
        folder = root / "releases" / str(release)
        folder.mkdir(parents=True)
        (folder / "policy.json").write_text(f'{{"release": {release}}}')
        (folder / "evaluation.json").write_text('{"decision": {"certified_share": 1.0}}')
        tags = {"judged_against": "none" if release == 1 else "1"}
        manifest = Manifest.of_folder(folder, release=release, created_at=START, gate="passed", tags=tags)
        write_manifest(folder, manifest)
    append_record(root / "releases" / "history.jsonl", Promotion(START, "promote", None, 1, "Ada", "").to_json())
    return open_workspace(root)


def started(workspace: Workspace, **changes: Any) -> Canary:
    """A canary of release 2 that began at START."""
    manifest = Manifest.of_folder(
        workspace.release_path(2), release=2, created_at=START, gate="passed", tags={"judged_against": "1"}
    )
    usual: dict[str, Any] = {
        "id": 1, "release": 2, "champion": 1, "kind": "slices", "salt": "s", "plan": (0.2, 0.5, 1.0),
        "shares": (Share(at=START, share=changes.pop("share", 0.2)),), "started_at": START, "started_by": "Ada",
        "digest": manifest.digest, "rules": _rules_digest(workspace), "certified_share": 1.0,
    }  # fmt: skip
    canary = Canary(**{**usual, **changes})
    record_event(workspace, "started", canary, START)
    return canary


class Server:
    """Writes the logs as a server would: decisions as they come, the reward and the end of each as an outcome."""

    def __init__(self, workspace: Workspace, seed: int = 0) -> None:
        self.workspace, self.rng, self.n = workspace, np.random.default_rng(seed), 0
        self.now = START

    def episodes(self, canary: Canary, n: int, draw: Draw, *, every_s: float = 30.0, n_steps: int = 2) -> None:
        """`n` episodes one after another, each of steps that lie five seconds apart."""
        steps, outcomes = [], []
        for _ in range(n):
            self.now += timedelta(seconds=every_s)
            self.n += 1
            name = f"e-{self.n}"
            ours = canary.assigned(name, self.now)
            drawn = {"mean": 0.0, "load": 0.5, "late": False, "version": "2" if ours else "1"} | draw(self.rng, ours)
            for k in range(n_steps):
                at = self.now + timedelta(seconds=5 * k)
                steps.append(self.step(name, k, at, drawn))
                outcomes.append(self.outcome(name, k, at, drawn, last=k == n_steps - 1))
        self.write("steps", steps)
        self.write("outcomes", outcomes)

    def step(self, name: str, k: int, at: datetime, drawn: dict[str, Any]) -> dict[str, Any]:
        return {
            "decision_id": f"{name}-{k}", "episode_id": name, "step": k, "timestamp": at.isoformat(),
            "observation": {"load": drawn["load"]}, "action": "act", "behavior_prob": 0.5,
            "behavior_probs": [0.5, 0.5], "policy_version": drawn["version"],
            "decided_by": "late" if drawn["late"] else "policy",
        }  # fmt: skip

    def outcome(self, name: str, k: int, at: datetime, drawn: dict[str, Any], *, last: bool) -> dict[str, Any]:
        reward = float(np.clip(drawn["mean"] + self.rng.normal(), -20, 20))
        line: dict[str, Any] = {"decision_id": f"{name}-{k}", "timestamp": at.isoformat(), "reward": reward}
        if last:
            line |= {"truncated": True, "final_observation": {"load": drawn["load"]}}
        return line

    def write(self, kind: str, lines: list[dict[str, Any]]) -> None:
        path = self.workspace.root / "logs" / kind / "served-20260105-000001.jsonl"
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    @property
    def later(self) -> datetime:
        """When everything written so far is complete."""
        return self.now + timedelta(minutes=20)


def alike(_rng: np.random.Generator, _ours: bool) -> dict[str, Any]:
    """Both do the same."""
    return {}


def shifted(by: float) -> Draw:
    """The candidate earns `by` more in each step."""
    return lambda _rng, ours: {"mean": by * ours}
