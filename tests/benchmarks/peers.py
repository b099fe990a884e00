"""The peers' own environment, and what runs in it: `python -m tests.benchmarks.peers` makes it.

d3rlpy pins other versions than the project does, and SCOPE-RL and OBP fight with both; they live in `.venv-peers` and
are run as processes of their own, with arrays handed over as files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.encoding import Encoder
from datasets.observations import Observations
from datasets.replay import Replay

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).with_name("peers-requirements.txt")
ALONE = Path(__file__).with_name("peers-without-dependencies.txt")
D3RLPY = "d3rlpy 2.8.1"
_FIT = Path(__file__).with_name("peer_scripts") / "d3rlpy_fit.py"
_ESTIMATE = Path(__file__).with_name("peer_scripts") / "peer_estimators.py"


@dataclass(frozen=True)
class PeerPolicy:
    """What a peer's learner does, within the masks that it could not learn with: the available action it values most.

    Attributes:
        contract: of the log.
        encoder: that encoded the log for the peer.
        layers: (out, in) weights and (out,) biases of a ReLU network.
        wall_s, cpu_s: that the training took.
    """

    contract: Contract
    encoder: Encoder
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    wall_s: float
    cpu_s: float

    @property
    def actions(self) -> tuple[str, ...]:
        """The contract's."""
        return self.contract.actions.names

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A), all on one action."""
        outputs = self.encoder.encode(observations)
        for weight, bias in self.layers[:-1]:
            outputs = np.maximum(outputs @ weight.T + bias, 0.0)
        outputs = outputs @ self.layers[-1][0].T + self.layers[-1][1]
        best = np.where(available, outputs, -np.inf).argmax(axis=1)
        probs: NDArray[np.float64] = np.eye(len(self.actions))[best]
        return probs


def fit_d3rlpy(replay: Replay, encoder: Encoder, asked: dict[str, Any], folder: Path | None = None) -> PeerPolicy:
    """d3rlpy's DiscreteCQL or DiscreteBC, trained on the steps of a replay.

    Args:
        replay: what to learn from.
        encoder: the peer gets the same encoded observations as the project's learner.
        asked: "learner" ("cql" or "bc"), "alpha", "n_updates", "batch_size", "learning_rate", "hidden",
            "target_sync_every", "n_threads", "seed".
        folder: for the files that are handed over; a temporary one by default.

    Raises:
        RuntimeError: the environment is missing or the peer failed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        log, result = Path(place) / "log.npz", Path(place) / "result.npz"
        np.savez(
            log,
            observations=encoder.encode(replay.observations),
            actions=replay.actions,
            rewards=replay.rewards,
            terminated=replay.terminated,
            next_row=replay.next_row,
            offsets=replay.offsets,
        )
        settings = json.dumps({"alpha": 0.0, "gamma": replay.contract.gamma} | asked)
        run_peer([str(_FIT), str(log), str(result), settings])
        with np.load(result) as found:
            n_layers = sum(name.startswith("weight_") for name in found.files)
            layers = tuple((found[f"weight_{i}"], found[f"bias_{i}"]) for i in range(n_layers))
            wall_s, cpu_s = (float(s) for s in found["seconds"])
    return PeerPolicy(replay.contract, encoder, layers, wall_s, cpu_s)


@dataclass(frozen=True)
class PeerEstimates:
    """What a peer's estimators gave, and what they took."""

    version: str
    values: dict[str, float]
    """By the peer's own names."""
    intervals: dict[str, list[float]]
    wall_s: float
    cpu_s: float
    peak_mb: float
    """By how much the process grew beyond its inputs."""


def estimate_by(peer: str, log: Path, asked: dict[str, Any]) -> PeerEstimates:
    """Values and percentile intervals by the estimators of "scope_rl" or "obp" on the arrays of a file.

    Args:
        peer: whose.
        log: an .npz, as `peer_scripts/peer_estimators.py` says.
        asked: "horizon" and "gamma", or "switch" and "shrinkage"; "n_replicates" and "estimators" where wanted.

    Raises:
        RuntimeError: the environment is missing or the peer failed.
    """
    result = log.with_name("result.json")
    run_peer([str(_ESTIMATE), str(log), str(result), json.dumps({"peer": peer} | asked)])
    return PeerEstimates(**json.loads(result.read_text()))


def run_peer(arguments: list[str]) -> str:
    """What a script prints that the peers' interpreter runs.

    Raises:
        RuntimeError: the environment is missing or the script failed.
    """
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"{python} does not exist: run `python -m tests.benchmarks.peers` once to make it.")
    ran = subprocess.run([str(python), "-W", "ignore", *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{arguments[0]} failed in {ENVIRONMENT.name}:\n{ran.stderr[-2000:]}")
    return ran.stdout


def make_environment() -> None:
    """Create `.venv-peers` from the pinned requirements; again where they changed."""
    ready = ENVIRONMENT / ".ready"
    wanted = REQUIREMENTS.read_text() + ALONE.read_text()
    if ready.exists() and ready.read_text() == wanted:
        return
    print(f"Installing the peers into {ENVIRONMENT} (a few minutes the first time) ...", file=sys.stderr)
    if not (ENVIRONMENT / "bin" / "python").exists():
        venv.create(ENVIRONMENT, with_pip=True, symlinks=True)
    install = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--requirement", str(REQUIREMENTS)], check=True)
    subprocess.run(
        [*install, "--no-deps", "--ignore-requires-python", "--requirement", str(ALONE)],
        check=True,
    )
    ready.write_text(wanted)


if __name__ == "__main__":
    make_environment()
