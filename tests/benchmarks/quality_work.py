"""What the learners' policies are truly worth, beside d3rlpy's, from the same logs and as many updates.

Every result is kept in a work folder as soon as it is there, so that a run that was interrupted goes on. It holds for
the log and the settings, and of ours for the code of the training loop, that made it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from datasets.encoding import fit_encoder
from datasets.replay import TRAIN, Replay
from datasets.settings import Settings
from offline_dqn.candidates import (
    Candidate,
    counted_candidates,
    network_candidates,
    other_forms,
    simple_candidates,
)
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.learner import fit
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import TrainedQ
from reports.evaluate_config import PropensityConfig
from reports.gate import GateConfig
from reports.judging import Judge
from reports.select_config import SelectConfig
from reports.selection import Selection, select_candidate
from tests.benchmarks.peers import D3RLPY, ROOT, fit_d3rlpy
from tests.benchmarks.quality_rows import QualityRow, Result, quality_rows
from tests.benchmarks.quality_worlds import WORLDS, World

WORK = ROOT / "build" / "quality"
_CODE = ("offline_dqn/**/*.py", "reports/**/*.py", "datasets/encoding.py")
"""Files that decide what is learned and chosen."""


class QualityConfig(Settings):
    """What all learners share; each learns from the training split of the same logs."""

    n_seeds: int = Field(3, ge=2)
    """Logs per world, and first weights."""
    n_updates: int = 8_000
    batch_size: int = 256
    learning_rate: float = 3e-4
    hidden: tuple[int, ...] = (256, 256)
    target_sync_every: int = 200


PEERS: dict[str, dict[str, Any]] = {
    f"{D3RLPY} DiscreteCQL, alpha 1": {"learner": "cql", "alpha": 1.0},
    f"{D3RLPY} DiscreteCQL, alpha 4": {"learner": "cql", "alpha": 4.0},
    f"{D3RLPY} DiscreteBC": {"learner": "bc"},
}
"""Settings beyond those that are shared, as `peers.fit_d3rlpy` wants them; the rest are d3rlpy's defaults."""

FITS: dict[str, dict[str, Any]] = {
    "": {"penalty_weights": (0.0, 1.0, 4.0), "target_gaps": (2.0,), "bcq_thresholds": (0.3,)},
    ", 3-step": {"penalty_weights": (1.0,), "bcq_thresholds": (), "clone": False, "n_step": 3},
    ", 16 quantiles": {"penalty_weights": (1.0,), "bcq_thresholds": (), "clone": False, "n_quantiles": 16},
}
"""Trainings of ours by what they add to the names of their learners. From what the first leaves, the project's own
choice is made on the `select` split."""

CHOSEN = "the project's choice"


def described(config: QualityConfig) -> str:
    """What the page says of the trainings."""
    shape = "x".join(str(size) for size in config.hidden)
    return (
        f"Every learner makes {config.n_updates:,} updates with batches of {config.batch_size}, a {shape} network, "
        "Adam "
        f"at {config.learning_rate:g} and target copies every {config.target_sync_every} updates, on the same 80 % of "
        f'the same logs; {D3RLPY} with its defaults otherwise (no reward scaling). "{CHOSEN}" is what selection '
        "takes, without the truth, judged on the other 20 %, of the networks of the first training, the counted model, "
        "the best constant action and a small tree."
    )


def measure_quality(config: QualityConfig, folder: Path = WORK) -> list[QualityRow]:
    """Every learner on every world and seed; the peers beside ours, in two processes.

    Raises:
        RuntimeError: the peers' environment is missing or a peer failed.
    """
    with ThreadPoolExecutor(max_workers=1) as beside:
        peers = beside.submit(lambda: list(peer_results(config, folder)))
        ours = list(our_results(config, folder))
        return quality_rows([*ours, *peers.result()], worlds=WORLDS, peers=tuple(PEERS))


def peer_results(config: QualityConfig, folder: Path) -> Iterator[Result]:
    """d3rlpy's learners, one after the other."""
    kept = _Kept(folder / "peers.json")
    shared = config.model_dump(mode="json", exclude={"n_seeds"}) | {"n_threads": 1}
    for seed, world, name in product(range(config.n_seeds), WORLDS, PEERS):
        replay = world.log(seed).of_split(TRAIN)
        asked = shared | PEERS[name] | {"seed": seed}
        made = [D3RLPY, _log_digest(replay), asked]
        work = partial(_peer_values, replay, world, name, asked)
        yield from kept.results(f"{world.name} | {name} | {seed}", made, work)


def _peer_values(replay: Replay, world: World, name: str, asked: dict[str, Any]) -> list[Result]:
    policy = fit_d3rlpy(replay, fit_encoder(replay.contract, replay.observations), asked)
    return [Result(world.name, name, asked["seed"], world.value(policy), policy.wall_s)]


def our_results(config: QualityConfig, folder: Path) -> Iterator[Result]:
    """The trainings of `FITS`, each of several learners at once."""
    kept, code = _Kept(folder / "ours.json"), _code_digest()
    shared = config.model_dump(exclude={"n_seeds"}) | {"exploration": 0.0, "device": "cpu"}
    for seed, world, suffix in product(range(config.n_seeds), WORLDS, FITS):
        replay = world.log(seed)
        train = TrainConfig(**shared, **FITS[suffix], seed=seed)
        made = [code, _log_digest(replay), train.model_dump(mode="json")]
        work = partial(_our_values, replay, world, suffix, train)
        yield from kept.results(f"{world.name} | {suffix} | {seed}", made, work)


def _our_values(replay: Replay, world: World, suffix: str, train: TrainConfig) -> list[Result]:
    """Of the last networks; of the first training also what is chosen among all that it kept."""
    began, train_split = time.perf_counter(), replay.of_split(TRAIN)
    encoder = fit_encoder(replay.contract, train_split.observations)
    trained = fit(InMemorySource(train_split, train, encoder=encoder), train)
    took = time.perf_counter() - began
    last = [network for network in trained.networks if network.step == trained.n_updates]
    results = [
        Result(world.name, network.name + suffix, train.seed, world.value(trained.policy(network)), took / len(last))
        for network in last
    ]
    if suffix:
        return results
    selection = _choose(replay, train_split, trained)
    print(f"{world.name}: chose {selection.chosen.name}", file=sys.stderr)
    return [
        *results, Result(world.name, CHOSEN, train.seed, world.value(selection.policy), time.perf_counter() - began)
    ]  # fmt: skip


def _choose(replay: Replay, train_split: Replay, trained: TrainedQ) -> Selection:
    """As `pipelines.training.choose` does it, without a workspace, a champion and a version 0."""
    config, encoder = SelectConfig(), trained.encoder
    judge = Judge(
        replay, encoder, baseline=None, baseline_wrote_select=False, config=config, fqe=FqeConfig(),
        propensity=PropensityConfig(), gate=GateConfig(), n_gate_episodes=replay.n_episodes * 2 // 3, seed=0,
    )  # fmt: skip

    def forms(candidate: Candidate) -> Iterator[Candidate]:
        return other_forms(
            candidate, judge.episodes, None, temperatures=config.temperatures,
            support_thresholds=config.support_thresholds, mixture_shares=config.mixture_shares,
        )  # fmt: skip

    exploration = trained.config.exploration
    counted = counted_candidates(
        train_split, encoder, exploration, pessimisms=config.pessimisms, largest=config.largest_counted
    )
    candidates = [*simple_candidates(train_split, exploration), *counted, *network_candidates(trained)]
    return select_candidate(candidates, judge, other_forms=forms)


class _Kept:
    """Results in a JSON file, by key, with what made them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def results(self, key: str, made: Any, measure: Callable[[], list[Result]]) -> list[Result]:
        """The kept results if the same thing made them, else measured ones, which are kept at once."""
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        known = self._known.get(key)
        if known and known["digest"] == digest:
            return [Result(**values) for values in known["results"]]
        found = measure()
        for result in found:
            print(f"quality {key}: {result.learner} {result.value:.4g}", file=sys.stderr, flush=True)
        self._known[key] = {"digest": digest, "results": [asdict(result) for result in found]}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(self._path.name + ".new")
        beside.write_text(json.dumps(self._known, indent=1))
        beside.replace(self._path)
        return found


def _log_digest(replay: Replay) -> str:
    digest = hashlib.sha256()
    columns = [replay.observations.columns[name] for name in sorted(replay.observations.columns)]
    for values in [*columns, replay.actions, replay.rewards, replay.available, replay.next_row]:
        digest.update(values.tobytes())
    return digest.hexdigest()


def _code_digest() -> str:
    files = sorted(path for pattern in _CODE for path in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
