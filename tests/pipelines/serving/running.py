"""A workspace with releases that nobody trained, and a real server on it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from datasets.durable import append_record
from datasets.encoding import fit_encoder
from datasets.observations import observations_from_records
from offline_dqn.architecture import Architecture
from offline_dqn.policy import QPolicy, save_policy
from pipelines.workspace import Workspace, open_workspace, write_workspace
from reports.history import Promotion
from reports.manifest import Manifest, write_manifest

OBSERVATION = {"cpu": 0.9, "request_rate": 90.0, "replicas": 2, "pending": 0, "p95_ms": 300, "hour": 3.0, "zone": "a"}


def served_workspace(root: Path, *, releases: int = 2, champion: int | None = 1) -> Workspace:
    """An autoscaler workspace; releases 1, 2, ... have networks of random weights, and need no MLflow to act."""
    workspace = write_workspace(root, "autoscaler")
    contract = root / "contract.toml"
    contract.write_text(f'{contract.read_text()}\n[outcomes]\nattribution_window = "1h"\n')
    for number in range(1, releases + 1):
        add_release(workspace, number)
    if champion is not None:
        make_champion(workspace, champion)
    return open_workspace(root)


def add_release(
    workspace: Workspace, number: int, *, exploration: float = 0.3, hidden: tuple[int, ...] = (32, 32)
) -> None:
    """A release folder as the registry leaves it."""
    folder = workspace.release_path(number)
    folder.mkdir(parents=True)
    save_policy(folder, random_policy(workspace, number, exploration, hidden))
    manifest = Manifest.of_folder(folder, release=number, created_at=datetime.now(UTC), gate="passed", tags={})
    write_manifest(folder, manifest)


def random_policy(
    workspace: Workspace, seed: int, exploration: float = 0.3, hidden: tuple[int, ...] = (32, 32)
) -> QPolicy:
    """Networks of random weights under the workspace's contract."""
    rng, contract = np.random.default_rng(seed), workspace.contract
    rows = [
        OBSERVATION | {"cpu": rng.random(), "request_rate": 200 * rng.random(), "replicas": int(rng.integers(1, 16))}
        for _ in range(50)
    ]
    encoder = fit_encoder(contract, observations_from_records(contract, rows))
    architecture = Architecture(n_inputs=encoder.size, n_actions=len(contract.actions.names), hidden=hidden)
    weights = {
        name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in architecture.parameter_shapes().items()
    }
    return QPolicy(contract, encoder, architecture, weights, reward_scale=1.0, exploration=exploration)


def make_champion(workspace: Workspace, number: int, action: str = "promote") -> None:
    """The line of the history that a promotion writes, and nothing else: MLflow follows when it is next opened."""
    at = datetime.now(UTC)
    promotion = Promotion(at, "promote" if action == "promote" else "rollback", None, number, "Ada", "")
    append_record(workspace.releases_path / "history.jsonl", promotion.to_json())


def configure(workspace: Workspace, **settings: Any) -> Workspace:
    """Puts a [serve] table into the settings."""
    path = workspace.root / "offline_dqn.toml"
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    path.write_text(f"{path.read_text()}\n[serve]\n{lines}\n")
    return open_workspace(workspace.root)


@dataclass
class Server:
    """A server that runs as a process of its own."""

    process: subprocess.Popen[str]
    address: str

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    def ask(
        self, path: str, body: Any = None, *, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of an answer; bytes are sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, content, dict(headers or {}))
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text.decode()
        finally:
            connection.close()

    def act(self, episode_id: str = "e", **more: Any) -> Any:
        """The answer to one decision that is not refused."""
        status, answer = self.ask("/v1/act", {"episode_id": episode_id, "observation": OBSERVATION, **more})
        assert status == 200, answer
        return answer

    def stop(self) -> tuple[int, str]:
        """Ends it as an operator does; its exit code, and what it said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@contextmanager
def serving(workspace: Workspace | Path, *options: str, **environment: str) -> Iterator[Server]:
    """A server on a free port; killed at the end if it still runs."""
    root = workspace.root if isinstance(workspace, Workspace) else workspace
    process = start_server(root, *options, **environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the server did not start: {process.communicate(timeout=20)[1]}")
        yield Server(process, json.loads(line)["address"])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def start_server(root: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """`offline-dqn serve` on a free port."""
    command = "from pipelines.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "serve", "--port", "0", "--json", "--workspace", str(root), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def logged(workspace: Workspace, kind: str = "steps") -> list[dict[str, Any]]:
    """Every whole line that servers wrote, oldest first."""
    folder = workspace.logs_path if kind == "steps" else workspace.outcome_logs_path
    lines = [line for path in sorted(folder.glob("served-*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]
    return [json.loads(line) for line in lines]


def eventually(condition: Any, within_s: float = 10.0) -> float:
    """Waits until it holds; how long that took, in seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise AssertionError(f"it did not hold within {within_s} s")
        time.sleep(0.02)
    return time.monotonic() - began
