"""Estimators with bootstrap intervals beside SCOPE-RL's and OBP's, on the same arrays, each in a process of its own.

`python -m tests.benchmarks.estimators_work LOG.npz RESULT.json SETTINGS` is the project's process: it does the same
work as `peer_scripts/peer_estimators.py` and writes the same. All run on one thread, and CPU seconds are compared, so
that a busy machine does not count.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports import estimators
from reports.estimators import Floats, RatioSum
from reports.intervals import bootstrap, percentile_interval
from reports.one_step import shrunk, switched
from tests.benchmarks.peers import PeerEstimates, estimate_by
from tests.benchmarks.rows import BenchRow, bench_row

GAMMA, SWITCH, SHRINKAGE = 0.99, 1.2, 10.0
SCOPE_RL = {"tis": "is", "pdis": "pdis", "dr": "dr", "sntis": "wis", "snpdis": "wpdis", "sndr": "wdr", "dm": "direct"}
"""The project's name of each estimator of SCOPE-RL; on episodes of one length the definitions are the same."""
OBP = {"ipw": "is", "snipw": "wis", "dr": "dr", "switch-dr": "switch_dr", "dr-os": "dros", "dm": "direct"}
IMPORTANCE = ("tis", "pdis", "dr", "sntis", "snpdis", "sndr")

Arrays = Mapping[str, NDArray[Any]]


def peer_rows(n_episodes: int = 20_000, horizon: int = 50, n_replicates: int = 2_000) -> list[BenchRow]:
    """Six importance estimators beside SCOPE-RL, five one-step ones beside OBP, and what memory they took."""
    with tempfile.TemporaryDirectory(prefix="estimators-") as folder:
        log, longer, one_step = (Path(folder) / name / "log.npz" for name in ("log", "longer", "one_step"))
        write_log(log, drawn_log(n_episodes, horizon))
        write_log(longer, drawn_log(n_episodes, 2 * horizon))
        write_log(one_step, drawn_log(n_episodes, 1))
        asked = {"horizon": horizon, "gamma": GAMMA, "n_replicates": n_replicates, "estimators": IMPORTANCE}
        ours, theirs = _in_turns(log, "scope_rl", asked)
        ours_longer = estimate_by_ourselves(longer, "scope_rl", asked | {"horizon": 2 * horizon})
        settings = {"horizon": 1, "gamma": 1.0, "switch": SWITCH, "shrinkage": SHRINKAGE, "n_replicates": n_replicates}
        bandit, obp = _in_turns(one_step, "obp", settings | {"estimators": [name for name in OBP if name != "dm"]})
    size = f"{n_episodes:,} x {horizon} steps, {n_replicates:,} replicates, one thread"
    scope = f"SCOPE-RL {theirs.version}"
    six = "IS, PDIS, DR, WIS, WPDIS, WDR with intervals"
    return [
        bench_row(f"estimators: {six} on {size}", ours.cpu_s, theirs.cpu_s, scope, "s of CPU", largest_ratio=0.1),
        bench_row(f"estimators: peak memory of the same on {size}", ours.peak_mb, theirs.peak_mb, scope, "MB"),
        bench_row(
            f"estimators: memory of the same at {2 * horizon} steps over that at {horizon}",
            ours_longer.peak_mb / ours.peak_mb, None, "", "times", largest=2.2,
        ),
        bench_row(
            f"estimators: IPS, SNIPS, DR, Switch-DR, DRos with intervals on {n_episodes:,} decisions, "
            f"{n_replicates:,} replicates, one thread",
            bandit.cpu_s, obp.cpu_s, f"OBP {obp.version}", "s of CPU",
        ),
    ]  # fmt: skip


def drawn_log(n_episodes: int, horizon: int, *, n_actions: int = 3, spread: float = 0.1) -> Arrays:
    """Episodes of one length under a policy up to `spread` off the logging one, and a model of its values.

    Only `random`, whose stream numpy keeps the same over versions as far as it can, is drawn from: values are pinned.
    """
    rng = np.random.default_rng(0)
    n = n_episodes * horizon
    behavior = 1.0 + rng.random((n, n_actions))
    behavior /= behavior.sum(axis=1, keepdims=True)
    probs = behavior * (1.0 - spread + 2 * spread * rng.random((n, n_actions)))
    probs /= probs.sum(axis=1, keepdims=True)
    actions = (rng.random((n, 1)) > behavior.cumsum(axis=1)[:, :-1]).sum(axis=1)
    q = 4 * rng.random((n, n_actions)) - 2
    rewards = q[np.arange(n), actions] + 2 * rng.random(n) - 1
    return {
        "actions": actions,
        "rewards": rewards,
        "behavior_probs": behavior[np.arange(n), actions],
        "probs": probs,
        "q": q,
    }


def tables(log: Arrays, names: tuple[str, ...], asked: Mapping[str, Any]) -> dict[str, RatioSum]:
    """The project's estimators by its own names, on episodes of `horizon` steps."""
    taken = np.arange(len(log["actions"])), log["actions"]
    rewards, gamma = log["rewards"], asked["gamma"]
    offsets = np.arange(0, len(rewards) + 1, asked["horizon"])
    weights = estimators.cumulative_log_weights(log["probs"][taken], log["behavior_probs"], offsets)
    whole = estimators.episode_log_weights(weights, offsets)
    returns = estimators.on_policy_returns(rewards, offsets, gamma)
    model = rewards, log["q"][taken], np.einsum("ta,ta->t", log["probs"], log["q"])

    def corrected(shrunken: Floats) -> RatioSum:
        return estimators.mean_of(model[2] + shrunken * (rewards - model[1]))

    made: dict[str, Callable[[], RatioSum]] = {
        "direct": lambda: estimators.mean_of(model[2][offsets[:-1]]),
        "is": lambda: estimators.importance_sampling(returns, whole),
        "wis": lambda: estimators.weighted_importance_sampling(returns, whole),
        "pdis": lambda: estimators.per_decision(rewards, weights, offsets, gamma),
        "dr": lambda: estimators.doubly_robust(*model, weights, offsets, gamma),
        "wpdis": lambda: estimators.weighted_per_decision(rewards, weights, offsets, gamma),
        "wdr": lambda: estimators.weighted_doubly_robust(*model, weights, offsets, gamma),
        "switch_dr": lambda: corrected(switched(weights, float(np.log(asked["switch"])))),
        "dros": lambda: corrected(shrunk(weights, asked["shrinkage"])),
    }
    return {name: made[name]() for name in names}


def write_log(path: Path, log: Arrays) -> None:
    """As the processes read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **log)  # type: ignore[arg-type]  # numpy's stub takes the names for its own switches


def estimate_by_ourselves(log: Path, peer: str, asked: Mapping[str, Any]) -> PeerEstimates:
    """The project's process, on the same file and with the peer's names of the estimators."""
    result = log.with_name("ours.json")
    command = [sys.executable, "-m", __spec__.name, str(log), str(result), json.dumps({"peer": peer, **asked})]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return PeerEstimates(**json.loads(result.read_text()))


def _in_turns(log: Path, peer: str, asked: Mapping[str, Any]) -> tuple[PeerEstimates, PeerEstimates]:
    """Both on the same file, three times in turns, each with its median CPU time; their values must agree."""
    found = [(estimate_by_ourselves(log, peer, asked), estimate_by(peer, log, dict(asked))) for _ in range(3)]
    for name, value in found[0][1].values.items():
        np.testing.assert_allclose(found[0][0].values[name], value, rtol=1e-8, atol=1e-12, err_msg=name)
    by_time = [sorted(side, key=lambda e: e.cpu_s) for side in zip(*found, strict=True)]
    return by_time[0][1], by_time[1][1]


def resident_mb(what: str) -> float:
    """Resident memory of this process, now ("VmRSS") or at its peak ("VmHWM"): Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def main(log_path: str, result_path: str, settings: str) -> None:
    """Values and percentile intervals; the time is the median of three, memory that of the first."""
    asked = json.loads(settings)
    with np.load(log_path) as file:
        log = {name: file[name] for name in file.files}
    names = SCOPE_RL if asked["peer"] == "scope_rl" else OBP
    wanted = {name: names[name] for name in asked["estimators"]}
    clusters = np.arange(len(log["actions"]) // asked["horizon"])

    def work() -> dict[str, Any]:
        sums = tables(log, tuple(wanted.values()), asked)
        rng = np.random.default_rng(0)
        drawn = bootstrap(sums, clusters, n_replicates=asked["n_replicates"], rng=rng)
        return {name: (drawn[own].value, percentile_interval(drawn[own].values, 0.95)) for name, own in wanted.items()}

    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, from what is resident now
    took = []
    for _ in range(3):
        began = time.perf_counter(), time.process_time()
        found = work()
        took.append((time.process_time() - began[1], time.perf_counter() - began[0]))
        if len(took) == 1:
            peak = resident_mb("VmHWM")
    result = PeerEstimates(
        version="",
        values={name: value for name, (value, _) in found.items()},
        intervals={name: [interval.low, interval.high] for name, (_, interval) in found.items()},
        wall_s=statistics.median(wall for _, wall in took),
        cpu_s=statistics.median(cpu for cpu, _ in took),
        peak_mb=peak - before,
    )
    Path(result_path).write_text(json.dumps(vars(result)))


if __name__ == "__main__":
    main(*sys.argv[1:])
