"""Conservative Double DQN on a fixed replay dataset: `fit` is the whole of it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.contract import Contract
from datasets.encoding import Encoder
from datasets.errors import OfflineDqnError
from datasets.replay import Replay
from offline_dqn.architecture import Architecture, Weights
from offline_dqn.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from offline_dqn.losses import conservative_penalty, double_dqn_target, td_loss
from offline_dqn.networks import QNetwork
from offline_dqn.q_policy import QPolicy
from offline_dqn.train_config import TrainConfig
from offline_dqn.training_data import (
    Batch,
    TrainingData,
    prepare_training_data,
    returns_to_go,
    reward_scale,
    usable_steps,
)

_logger = logging.getLogger(__name__)

Metrics = dict[str, float]
"""Values (`q_*`, `td_error_abs`) are in reward units; `td_loss` and `conservative_penalty` are what is minimised, in
units of the reward scale."""


class TrainingDivergedError(OfflineDqnError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainedQ:
    """What training yields.

    Attributes:
        contract, encoder, architecture, weights, config: with `reward_scale`, all that acting needs.
        reward_scale: reward units per unit of the network's output.
        snapshot_digest: of the replay dataset trained on.
        n_steps, n_unusable_steps: steps learned from, and steps left out because nothing is known to follow them.
        q_greedy_mean, q_greedy_max: value of the best available action over the training observations, reward units.
        feasible_max: no policy can earn more from any observation, in reward units; None where that is not known.
        history: metrics by update, each with its "step".
    """

    contract: Contract
    encoder: Encoder
    architecture: Architecture
    weights: Weights
    config: TrainConfig
    reward_scale: float
    snapshot_digest: str
    n_steps: int
    n_unusable_steps: int
    q_greedy_mean: float
    q_greedy_max: float
    feasible_max: float | None
    history: tuple[Metrics, ...]

    @property
    def q_exceeds_feasible(self) -> bool:
        """Whether the network promises more than can be earned: a sign of divergence."""
        return self.feasible_max is not None and self.q_greedy_max > self.feasible_max

    def to_policy(self) -> QPolicy:
        """The policy that acts on these values, with the configured exploration."""
        return QPolicy(
            contract=self.contract,
            encoder=self.encoder,
            architecture=self.architecture,
            weights=self.weights,
            reward_scale=self.reward_scale,
            exploration=self.config.exploration,
            snapshot_digest=self.snapshot_digest,
            config=self.config.model_dump(mode="json"),
        )


def fit(
    replay: Replay,
    config: TrainConfig,
    *,
    encoder: Encoder,
    checkpoint_dir: Path | None = None,
    on_metrics: Callable[[int, Metrics], None] | None = None,
) -> TrainedQ:
    """Train a Q-network on the given episodes (the training split) and nothing else.

    Args:
        replay: the steps to learn from; gamma comes from its contract.
        config: see its fields.
        encoder: fitted on the training split.
        checkpoint_dir: where to leave checkpoints, and to resume from one of the same data and settings; killed
            anywhere and called again, training ends in the same bits. None keeps nothing.
        on_metrics: called with the number of updates done and their metrics, every `log_every` updates.

    Raises:
        TrainingDataError: nothing can be learned from these steps.
        TrainingDivergedError: the loss stopped being finite.
    """
    usable = usable_steps(replay)
    scale = config.reward_scale or (reward_scale(replay.rewards[usable]) if len(usable) else 1.0)
    data = prepare_training_data(replay, encoder, scale)
    fingerprint = _fingerprint(data, config)
    device = _device(config.device)
    data = data.to(device)
    start_level = float(returns_to_go(replay)[usable].mean()) / scale
    architecture = Architecture(
        n_inputs=encoder.size, n_actions=replay.n_actions, hidden=config.hidden, dueling=config.dueling
    )
    with _threads(config.n_threads):
        training = _Training(architecture, data, config, scale, start_level, device)
        if checkpoint_dir is not None and (checkpoint := load_checkpoint(checkpoint_dir, fingerprint)):
            training.restore(checkpoint)
        while training.step < config.n_updates:
            training.update()
            if _is_due(training.step, config.log_every, config):
                metrics = training.measure()
                if on_metrics is not None:
                    on_metrics(training.step, metrics)
            if checkpoint_dir is not None and _is_due(training.step, config.checkpoint_every, config):
                save_checkpoint(checkpoint_dir, training.checkpoint(), fingerprint)
        q_greedy = training.greedy_values() * scale
    feasible_max = feasible_maximum(replay)
    trained = TrainedQ(
        contract=replay.contract,
        encoder=encoder,
        architecture=architecture,
        weights=training.online.to_weights(),
        config=config,
        reward_scale=scale,
        snapshot_digest=replay.digest,
        n_steps=data.n_steps,
        n_unusable_steps=replay.n_steps - data.n_steps,
        q_greedy_mean=float(q_greedy.mean()),
        q_greedy_max=float(q_greedy.max()),
        feasible_max=feasible_max,
        history=tuple(training.history),
    )
    if trained.q_exceeds_feasible:
        _logger.warning(
            "greedy Q reaches %.4g where no policy can earn more than %.4g: raise train.penalty_weight",
            trained.q_greedy_max,
            feasible_max,
        )
    return trained


def feasible_maximum(replay: Replay) -> float | None:
    """The largest discounted return that any policy can earn from any step, from the contract's reward range.

    None where the contract names no largest reward, or gamma = 1 and a positive reward can be earned forever.
    """
    contract = replay.contract
    largest = contract.reward.max
    if largest is None or largest <= 0.0 or contract.episodes.kind == "one_step":
        return largest  # where every reward is a cost, ending after one step is the best that can happen
    return largest / (1.0 - contract.gamma) if contract.gamma < 1.0 else None


@dataclass
class _Parts:
    """The tensors of the last update that the metrics are made of, left on the device until one is due."""

    td_loss: Tensor
    penalty: Tensor
    gradient_norm: Tensor
    td_target: Tensor
    q_values: Tensor
    batch: Batch


class _Training:
    """Networks, optimizer and generator: the state that `update` moves and a checkpoint holds."""

    def __init__(
        self,
        architecture: Architecture,
        data: TrainingData,
        config: TrainConfig,
        scale: float,
        start_level: float,
        device: torch.device,
    ) -> None:
        self.data, self.config, self.scale = data, config, scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.online = QNetwork(architecture)
        self.online.start_at(start_level, silent_inputs=(data.observations == 0).all(dim=0).cpu())
        self.online.to(device)
        self.target = QNetwork(architecture).to(device).requires_grad_(False)
        self.target.load_state_dict(self.online.state_dict())
        fused = device.type in {"cpu", "cuda"}
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=config.learning_rate, fused=fused)
        self.sampling = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.history: list[Metrics] = []
        self._last: _Parts | None = None
        self._measured_at, self._measured_step = time.perf_counter(), 0

    def update(self) -> None:
        """One gradient step on a fresh batch; the target network follows every `target_sync_every` steps."""
        steps = torch.randint(self.data.n_steps, (self.config.batch_size,), generator=self.sampling)
        batch = self.data.batch(steps.to(self.data.rows.device))
        with torch.no_grad():
            td_target = double_dqn_target(
                batch.rewards,
                batch.discounts,
                self.online(batch.next_observations),
                self.target(batch.next_observations),
                batch.next_available,
            )
        q_values = self.online(batch.observations)
        q_logged = q_values.gather(1, batch.actions[:, None]).squeeze(1)
        td = td_loss(q_logged, td_target, self.config.td_loss)
        penalty = conservative_penalty(q_values, batch.actions, batch.available)
        loss = td + self.config.penalty_weight * penalty

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradient_norm = nn.utils.clip_grad_norm_(self.online.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        self.step += 1
        if self.step % self.config.target_sync_every == 0:
            self.target.load_state_dict(self.online.state_dict())
        self._last = _Parts(td.detach(), penalty.detach(), gradient_norm, td_target, q_values.detach(), batch)

    def measure(self) -> Metrics:
        """Metrics of the last update, also kept in `history`.

        Raises:
            TrainingDivergedError: one of them is not finite. Such a value never leaves the weights again, so
                looking here, and not at every update, misses none.
        """
        assert self._last is not None
        last, now = self._last, time.perf_counter()
        q_logged = last.q_values.gather(1, last.batch.actions[:, None]).squeeze(1)
        q_greedy = last.q_values.masked_fill(~last.batch.available, -torch.inf).amax(dim=1)
        metrics = {
            "td_loss": float(last.td_loss),
            "td_error_abs": float((last.td_target - q_logged).abs().mean()) * self.scale,
            "conservative_penalty": float(last.penalty),
            "q_logged": float(q_logged.mean()) * self.scale,
            "q_greedy": float(q_greedy.mean()) * self.scale,
            "gradient_norm": float(last.gradient_norm),
            "learning_rate": self.config.learning_rate,
        }
        bad = {name: value for name, value in metrics.items() if not np.isfinite(value)}
        if bad:
            found = ", ".join(f"{name} = {value}" for name, value in bad.items())
            raise TrainingDivergedError(
                f"training diverged before update {self.step}: {found}. Lower train.learning_rate (now "
                f"{self.config.learning_rate:g}), raise train.penalty_weight (now {self.config.penalty_weight:g}), or "
                "look for extreme values among the rewards."
            )
        metrics["updates_per_s"] = (self.step - self._measured_step) / max(now - self._measured_at, 1e-9)
        self._measured_at, self._measured_step = now, self.step
        self.history.append({"step": float(self.step), **metrics})
        return metrics

    @torch.no_grad()
    def greedy_values(self) -> Tensor:
        """(S,) value of the best available action at every step learned from, in scaled units."""
        parts = []
        for rows in torch.split(self.data.rows, 65_536):
            q_values = self.online(self.data.observations[rows])
            parts.append(q_values.masked_fill(~self.data.available[rows], -torch.inf).amax(dim=1))
        return torch.cat(parts).double().cpu()

    def checkpoint(self) -> Checkpoint:
        """The state as it is now."""
        return Checkpoint(
            step=self.step,
            online=self.online.state_dict(),
            target=self.target.state_dict(),
            optimizer=optimizer_tensors(self.optimizer),
            sampling=self.sampling.get_state(),
            history=tuple(self.history),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.online.load_state_dict(dict(checkpoint.online))
        self.target.load_state_dict(dict(checkpoint.target))
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.sampling.set_state(checkpoint.sampling)
        self.step = self._measured_step = checkpoint.step
        self.history = list(checkpoint.history)


def _is_due(step: int, every: int, config: TrainConfig) -> bool:
    return step % every == 0 or step == config.n_updates


def _fingerprint(data: TrainingData, config: TrainConfig) -> str:
    """Digest of all that decides the bits of the result: data, settings and torch's version."""
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={"checkpoint_every", "log_every"})
    text = json.dumps({"data": data.digest(), "settings": settings, "torch": torch.__version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


@contextmanager
def _threads(n_threads: int | None) -> Iterator[None]:
    """Let torch use so many threads, and give the process its own number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
