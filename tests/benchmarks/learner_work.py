"""Updates of the learner against d3rlpy's and against a hand-written PyTorch loop.

On one thread CPU time is what is measured, so that other work on the machine does not count; on two it is wall time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import nn

from datasets.contract import Contract
from datasets.encoding import Encoder, fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.learner import fit
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from tests.benchmarks.peers import D3RLPY, fit_d3rlpy
from tests.benchmarks.rows import BenchRow, bench_row
from tests.offline_dqn.worlds import make_replay

N_FEATURES, N_ACTIONS, HIDDEN, ENSEMBLE = 12, 4, 256, 5
Precision = Literal["fp32", "bf16"]
BATCHES, THREADS = (256, 1024), (1, 2)


def update_rows(n_updates: int = 400, rounds: int = 3) -> list[BenchRow]:
    """Milliseconds per conservative Double DQN update with a 256x256 network."""
    replay = random_replay(n_episodes=5_000, n_steps=20)
    encoder = fit_encoder(replay.contract, replay.observations)
    rows: list[BenchRow] = []
    for batch, threads in product(BATCHES, THREADS):
        rows += _rows_of(replay, encoder, batch, threads, n_updates * 256 // batch, rounds)
    return [*rows, *_ensemble_rows(replay, encoder, n_updates, rounds)]


def _rows_of(replay: Replay, encoder: Encoder, batch: int, threads: int, n_updates: int, rounds: int) -> list[BenchRow]:
    fp32, bf16, bare, d3rlpy = in_turns(
        [
            lambda: our_update(replay, encoder, batch, threads, n_updates),
            lambda: our_update(replay, encoder, batch, threads, n_updates, precision="bf16"),
            lambda: bare_loop(encoder.size, batch, threads, n_updates),
            lambda: d3rlpy_update(replay, encoder, batch, threads, n_updates),
        ],
        rounds=rounds,
    )
    loop = f"a hand-written loop on PyTorch {torch.__version__}, fp32, one fixed batch, no data loading"
    learner = f"{D3RLPY} DiscreteCQL, fp32"
    what = f"updates of conservative Double DQN, {HIDDEN}x{HIDDEN}, batch {batch}, {_threads_named(threads)}"
    return [
        bench_row(f"{what}, fp32", fp32, bare, loop, "ms per update", largest_ratio=1.0),
        bench_row(f"{what}, fp32", fp32, d3rlpy, learner, "ms per update", largest_ratio=1 / 3.5),
        bench_row(f"{what}, bf16", bf16, d3rlpy, learner, "ms per update", largest_ratio=1 / 5),
    ]


def _ensemble_rows(replay: Replay, encoder: Encoder, n_updates: int, rounds: int) -> list[BenchRow]:
    """An ensemble against one network, both ours."""
    rows = []
    goals: tuple[tuple[Precision, float], ...] = (("fp32", 4.0), ("bf16", 3.0))
    for precision, largest_ratio in goals:
        one_network = partial(our_update, replay, encoder, 256, 1, n_updates, precision=precision)
        many, one = in_turns([partial(one_network, n_members=ENSEMBLE), one_network], rounds=rounds)
        what = f"updates of an ensemble of {ENSEMBLE}, {HIDDEN}x{HIDDEN}, batch 256, {_threads_named(1)}, {precision}"
        rows.append(bench_row(what, many, one, "one network, ours", "ms per update", largest_ratio=largest_ratio))
    return rows


def in_turns(works: Sequence[Callable[[], float]], *, rounds: int) -> tuple[float, ...]:
    """The median of each, measured in turns: whatever slows the machine for a while slows all."""
    found = [[work() for work in works] for _ in range(rounds)]
    return tuple(statistics.median(values) for values in zip(*found, strict=True))


def our_update(
    replay: Replay, encoder: Encoder, batch: int, threads: int, n_updates: int, *, precision: Precision = "fp32",
    n_members: int = 1,
) -> float:  # fmt: skip
    """Milliseconds per update of the project's loop, sampling included."""
    config = TrainConfig(
        n_updates=n_updates + n_updates // 4, batch_size=batch, hidden=(HIDDEN, HIDDEN), n_threads=threads,
        penalty_weights=(1.0,), bcq_thresholds=(), clone=False, n_members=n_members, candidates_at=(1.0,),
        precision=precision, device="cpu", log_every=max(1, n_updates // 4),
    )  # fmt: skip
    clock, at = _clock(threads), []
    source = InMemorySource(replay, config, encoder=encoder)
    fit(source, config, on_metrics=lambda step, _: at.append((step, clock())))
    (first, began), (last, ended) = at[0], at[-1]  # the first quarter warms up
    return (ended - began) / (last - first) * 1e3


def d3rlpy_update(replay: Replay, encoder: Encoder, batch: int, threads: int, n_updates: int) -> float:
    """Milliseconds per update of d3rlpy's loop, in its own environment."""
    asked = {
        "learner": "cql", "alpha": 1.0, "n_updates": n_updates, "warm_up": n_updates // 4, "batch_size": batch,
        "learning_rate": 3e-4, "hidden": [HIDDEN, HIDDEN], "target_sync_every": 200, "n_threads": threads, "seed": 0,
    }  # fmt: skip
    fitted = fit_d3rlpy(replay, encoder, asked)
    return (fitted.cpu_s if threads == 1 else fitted.wall_s) / n_updates * 1e3


def bare_loop(n_inputs: int, batch: int, threads: int, n_updates: int) -> float:
    """Milliseconds per update of the same loss as one would write it in a script, on one batch that never changes."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _bare_loop(n_inputs, batch, n_updates, _clock(threads))
    finally:
        torch.set_num_threads(before)


def _bare_loop(n_inputs: int, batch: int, n_updates: int, clock: Callable[[], float]) -> float:
    def network() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(n_inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, N_ACTIONS)
        )

    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=3e-4, fused=True)
    observations, following = torch.randn(batch, n_inputs), torch.randn(batch, n_inputs)
    actions, rewards = torch.randint(N_ACTIONS, (batch, 1)), torch.randn(batch)
    warm_up = n_updates // 4
    for update in range(warm_up + n_updates):
        if update == warm_up:
            began = clock()
        with torch.no_grad():
            best = online(following).argmax(dim=1, keepdim=True)
            td_target = rewards + 0.99 * target(following).gather(1, best).squeeze(1)
        q = online(observations)
        taken = q.gather(1, actions).squeeze(1)
        loss = nn.functional.mse_loss(taken, td_target) + (q.logsumexp(dim=1) - taken).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(online.parameters(), 10.0)
        optimizer.step()
        if (update + 1) % 200 == 0:
            target.load_state_dict(online.state_dict())
    return (clock() - began) / n_updates * 1e3


def _clock(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def _threads_named(threads: int) -> str:
    return "one thread (CPU time)" if threads == 1 else f"{threads} threads (wall time)"


def random_replay(n_episodes: int, n_steps: int) -> Replay:
    """Episodes of noise: what is learned from them does not matter."""
    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(N_FEATURES)]
    contract = Contract.model_validate(
        {
            "name": "noise",
            "gamma": 0.99,
            "features": {name: {"type": "numeric"} for name in names},
            "actions": {"names": [f"a{i}" for i in range(N_ACTIONS)]},
        }
    )
    total = n_episodes * n_steps
    return make_replay(
        contract,
        Observations({name: rng.standard_normal(total) for name in names}, {}),
        rng.integers(N_ACTIONS, size=total),
        rng.standard_normal(total),
        np.full(n_episodes, n_steps),
    )
