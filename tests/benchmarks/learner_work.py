"""Updates of the learner against a hand-written PyTorch loop."""

from __future__ import annotations

import statistics

import numpy as np
import torch
from torch import nn

from datasets.contract import Contract
from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.learner import fit
from offline_dqn.train_config import TrainConfig
from tests.benchmarks.rows import BenchRow, bench_row, side_by_side
from tests.offline_dqn.worlds import make_replay

N_FEATURES, N_ACTIONS, BATCH, HIDDEN = 12, 4, 256, 256


def update_rows(n_updates: int = 400, rounds: int = 5) -> list[BenchRow]:
    """Milliseconds per conservative Double DQN update, 256x256, batch 256, one thread."""
    replay = random_replay(n_episodes=5_000, n_steps=20)
    encoder = fit_encoder(replay.contract, replay.observations)

    def ours() -> float:
        rates: list[float] = []
        config = TrainConfig(
            n_updates=n_updates, batch_size=BATCH, hidden=(HIDDEN, HIDDEN), n_threads=1, device="cpu",
            log_every=max(1, n_updates // 4),
        )  # fmt: skip
        fit(replay, config, encoder=encoder, on_metrics=lambda _, metrics: rates.append(metrics["updates_per_s"]))
        return 1e3 / statistics.median(rates[1:])  # the first warms up

    took, peer = side_by_side(ours, lambda: bare_loop(encoder.size, n_updates), rounds=rounds)
    return [
        bench_row(
            f"updates of conservative Double DQN, {HIDDEN}x{HIDDEN}, batch {BATCH}, one thread, sampling included",
            took, peer, f"a hand-written loop on PyTorch {torch.__version__}, one fixed batch, no data loading",
            "ms per update", largest_ratio=1.0,
        )
    ]  # fmt: skip


def bare_loop(n_inputs: int, n_updates: int) -> float:
    """Milliseconds per update of the same loss as one would write it in a script, on one batch that never changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _bare_loop(n_inputs, n_updates)
    finally:
        torch.set_num_threads(threads)


def _bare_loop(n_inputs: int, n_updates: int) -> float:
    import time

    def network() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(n_inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, N_ACTIONS)
        )

    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=3e-4, fused=True)
    observations, following = torch.randn(BATCH, n_inputs), torch.randn(BATCH, n_inputs)
    actions, rewards = torch.randint(N_ACTIONS, (BATCH, 1)), torch.randn(BATCH)
    warm_up = n_updates // 4
    for update in range(warm_up + n_updates):
        if update == warm_up:
            began = time.perf_counter()
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
    return (time.perf_counter() - began) / n_updates * 1e3


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
