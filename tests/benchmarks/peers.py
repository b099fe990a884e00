"""The peers' own environments, and what runs in them: `python -m tests.benchmarks.peers [NAME]` makes them.

d3rlpy pins other versions than the project does, and SCOPE-RL and OBP fight with both; they live in `.venv-peers`.
Evidently and NannyML want an older pandas than all of these; they live in `.venv-drift-peers`. All are run as processes
of their own, with arrays handed over as files. Ray Serve lives in `.venv-serve-peers`, and is asked over HTTP.
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
D3RLPY = "d3rlpy 2.8.1"
_FIT = Path(__file__).with_name("peer_scripts") / "d3rlpy_fit.py"
_ESTIMATE = Path(__file__).with_name("peer_scripts") / "peer_estimators.py"
_DRIFT = Path(__file__).with_name("peer_scripts") / "peer_drift.py"


@dataclass(frozen=True)
class Environment:
    """A folder below the repository's, and which files beside this one name its packages.

    Attributes:
        requirements: pinned, with all that they require.
        alone: packages installed beside them without what they require; a file that need not be there.
    """

    folder: Path
    requirements: Path
    alone: Path

    @classmethod
    def named(cls, name: str) -> Environment:
        """`.venv-NAME`."""
        files = (Path(__file__).with_name(f"{name}-{what}.txt") for what in ("requirements", "without-dependencies"))
        return cls(ROOT / f".venv-{name}", *files)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


ENVIRONMENTS = {
    "learners": Environment.named("peers"),
    "drift": Environment.named("drift-peers"),
    "serving": Environment.named("serve-peers"),
}


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


@dataclass(frozen=True)
class PeerDrift:
    """What a peer found between two windows, and what it took.

    Attributes:
        values: by statistic and column.
        wall_s: seconds from frames in memory to values.
        read_s: seconds to read the frames from their files.
    """

    version: str
    values: dict[str, dict[str, float]]
    wall_s: float
    read_s: float


def drift_by(peer: str, reference: Path, live: Path) -> PeerDrift:
    """Divergences of all columns of two Parquet files by "evidently", "evidently_functions" or "nannyml".

    Raises:
        RuntimeError: the environment is missing or the peer failed.
    """
    with tempfile.TemporaryDirectory(dir=reference.parent) as place:
        result = Path(place) / "result.json"
        run_peer([str(_DRIFT), str(reference), str(live), str(result), peer], "drift")
        return PeerDrift(**json.loads(result.read_text()))


def run_peer(arguments: list[str], environment: str = "learners") -> str:
    """What a script prints that the interpreter of an environment runs.

    Raises:
        RuntimeError: the environment is missing or the script failed.
    """
    python = interpreter_of(environment)
    ran = subprocess.run([str(python), "-W", "ignore", *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{arguments[0]} failed in {python.parents[1].name}:\n{ran.stderr[-2000:]}")
    return ran.stdout


def interpreter_of(environment: str) -> Path:
    """The interpreter of an environment.

    Raises:
        RuntimeError: the environment is missing.
    """
    python = ENVIRONMENTS[environment].python
    if not python.exists():
        raise RuntimeError(
            f"{python} does not exist: run `python -m tests.benchmarks.peers {environment}` once to make it."
        )
    return python


def make_environment(name: str) -> None:
    """Create an environment from its pinned requirements; again where they changed."""
    environment = ENVIRONMENTS[name]
    ready = environment.folder / ".ready"
    alone = environment.alone if environment.alone.exists() else None
    wanted = environment.requirements.read_text() + ("" if alone is None else alone.read_text())
    if ready.exists() and ready.read_text() == wanted:
        return
    print(f"Installing peers into {environment.folder} (a few minutes the first time) ...", file=sys.stderr)
    if not environment.python.exists():
        venv.create(environment.folder, with_pip=True, symlinks=True)
    install = [str(environment.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--requirement", str(environment.requirements)], check=True)
    if alone is not None:
        subprocess.run([*install, "--no-deps", "--ignore-requires-python", "--requirement", str(alone)], check=True)
    ready.write_text(wanted)


if __name__ == "__main__":
    for asked_for in sys.argv[1:] or ENVIRONMENTS:
        make_environment(asked_for)
