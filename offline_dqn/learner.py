"""Offline Q-learning on a fixed replay dataset: `fit` is the whole of it, `_Training.update` the loop's one step.

Every learner of the family (Double DQN, conservative Q-learning, discrete BCQ, behavior cloning) is a few of K networks
that are trained side by side as one batched computation; they share batches and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline_dqn.architecture import Architecture, ImageShape
from offline_dqn.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from offline_dqn.devices import autocast, refuse_too_large, resolve_device, threads
from offline_dqn.distributed import ALONE, Ranks
from offline_dqn.learners import Learner, learners_of, member_slices
from offline_dqn.losses import (
    action_values,
    conservative_penalty,
    double_dqn_target,
    expected_target,
    of_action,
    quantile_huber_loss,
    supported_actions,
    td_loss,
)
from offline_dqn.networks import (
    Parameters,
    initial_parameters,
    network_values,
    start_at,
    to_weights,
    with_mean_head,
)
from offline_dqn.sampling import BatchSource
from offline_dqn.stopping import TrainingStoppedError
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import Metrics, TrainedNetwork, TrainedQ, feasible_maximum
from offline_dqn.training_data import Batch
from offline_dqn.watch import Parts, Watch

_logger = logging.getLogger(__name__)

_LARGEST_CACHE = 32_000_000
"""Target values of all observations are kept between syncs up to so many numbers (128 MB)."""

_MULTIPLIERS = math.log(1e-4), math.log(1e4)
"""Range of a Lagrange multiplier's logarithm: from either end it is soon back where it matters."""


def fit(
    source: BatchSource,
    config: TrainConfig,
    *,
    warm_start: Parameters | None = None,
    evaluation_probs: Tensor | None = None,
    checkpoint_dir: Path | None = None,
    on_metrics: Callable[[int, Metrics], None] | None = None,
    may_update: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> TrainedQ:
    """Train every configured learner on the given steps and nothing else.

    Args:
        source: the replay dataset (the training split), and the order of its batches.
        config: see its fields.
        warm_start: parameters of `n_members` networks that every Q-learner begins with.
        evaluation_probs: (M, A) probabilities of a policy at every observation of the source: its own value is learned
            instead of the best one (fitted Q evaluation).
        checkpoint_dir: where to leave checkpoints, and to resume from one of the same data and settings; killed
            anywhere and called again, training ends in the same bits. None keeps nothing.
        on_metrics: called with the number of updates done and their metrics, every `log_every` updates.
        may_update: called with the number of updates done before the next; a TrainingStoppedError that it raises ends
            the training once a checkpoint of just here is left.
        ranks: the processes that train together, each of which calls this with the same; one alone by default. Metrics
            and checkpoints are those of the first.

    Raises:
        TrainingDivergedError: the loss of every Q-learner stopped being finite.
        TrainingStoppedError: `may_update` raised it.
        CheckpointError: a checkpoint could not be written.
        DeviceError: there is no such device or precision here, or the networks do not fit into its memory.
        DistributedError: the processes have different data, settings or checkpoints, or cannot divide a batch.
    """
    device = resolve_device(config.device)
    rows = None if source.observations is None else len(source.observations)
    if evaluation_probs is not None and len(evaluation_probs) != rows:
        raise ValueError(
            f"evaluation_probs want one row for each observation in memory, found {len(evaluation_probs)} for {rows}"
        )
    given = dict(warm_start or {}) | ({} if evaluation_probs is None else {"evaluation_probs": evaluation_probs})
    fingerprint = _fingerprint(source, config, given, device, ranks)
    with threads(config.n_threads):
        training = _Training(source, config, device, warm_start, evaluation_probs, ranks)
        if checkpoint_dir is not None and (checkpoint := load_checkpoint(checkpoint_dir, fingerprint)):
            training.restore(checkpoint)
        ranks.check(config.batch_size, fingerprint, training.step)
        keep_at = {max(1, round(share * config.n_updates)) for share in config.candidates_at}
        while training.step < config.n_updates and not training.watch.settled:
            try:
                if ranks.writes:
                    may_update(training.step)
            except TrainingStoppedError:
                if checkpoint_dir is not None and training.step:
                    save_checkpoint(checkpoint_dir, training.checkpoint(), fingerprint)
                raise
            training.update()
            if training.step in keep_at:
                training.keep()
            if _is_due(training.step, config.log_every, config):
                metrics = training.measure()
                if on_metrics is not None and ranks.writes:
                    on_metrics(training.step, metrics)
            due = _is_due(training.step, config.checkpoint_every, config)
            if checkpoint_dir is not None and due and ranks.writes:
                save_checkpoint(checkpoint_dir, training.checkpoint(), fingerprint)
        if training.watch.settled:
            training.keep()
        return training.trained()


class _Training:
    """Networks, optimizer and source of batches: the state that `update` moves and a checkpoint holds."""

    def __init__(
        self,
        source: BatchSource,
        config: TrainConfig,
        device: torch.device,
        warm_start: Parameters | None,
        evaluation_probs: Tensor | None,
        ranks: Ranks,
    ) -> None:
        self.source, self.config, self.device, self.ranks = source, config, device, ranks
        self.evaluation_probs = None if evaluation_probs is None else evaluation_probs.to(device)
        self.learners = learners_of(config)
        members = [(learner, i) for learner in self.learners for i in range(learner.n_members)]
        self.architecture = architecture_of(source, config, n_members=len(members))
        refuse_too_large(self.architecture, config, source.n_steps, device)
        parameters = initial_parameters(self.architecture, tuple(config.seed * 10_007 + i for _, i in members))
        start_at(self.architecture, parameters, source.start_level, source.silent_inputs.cpu())
        learned = torch.tensor([learner.kind == "values" for learner, _ in members])
        for name, start in (warm_start or {}).items():  # the same for every learner, member by member
            n_learners = int(learned.sum()) // len(start)
            parameters[name][learned] = start.repeat(n_learners, *[1] * (start.ndim - 1))
        self.online = {name: p.to(device).requires_grad_(True) for name, p in parameters.items()}
        self.target = {name: p.detach().clone() for name, p in self.online.items()}
        fused = device.type in {"cpu", "cuda"}
        self.optimizer = torch.optim.Adam(list(self.online.values()), lr=config.learning_rate, fused=fused)

        def of_members(value: Callable[[Learner], float]) -> Tensor:
            return torch.tensor([value(learner) for learner, _ in members], device=device)

        self.td_weights = of_members(lambda learner: learner.td_weight)
        self.penalty_weights = of_members(lambda learner: learner.penalty_weight)
        self.gaps = of_members(lambda learner: math.nan if learner.target_gap is None else learner.target_gap)
        self.has_gap = bool((~self.gaps.isnan()).any())
        self.thresholds = of_members(lambda learner: learner.support_threshold)[:, None, None]
        self.has_threshold = bool((self.thresholds > 0).any())
        self.step = 0
        self.kept: dict[int, Parameters] = {}
        self.watch = Watch(source, config, self.architecture, self.learners, device, ranks)
        self._precision = autocast(config.precision, device)
        self._target_values: Tensor | None = None
        self._last: Parts | None = None

    # --- one update

    def update(self) -> None:
        """One gradient step of every network on a fresh batch; target networks follow."""
        config = self.config
        whole = self.source.draw(self.step / config.n_updates)
        batch = self.ranks.part(whole)
        with self._precision:
            with torch.no_grad():
                td_target = self.td_target(batch)
            values = network_values(self.architecture, self.online, batch.observations).float()
        quantiles = of_action(values, batch.actions)  # (K, B, N)
        if config.n_quantiles == 1:
            td = td_loss(quantiles.squeeze(-1), td_target.squeeze(-1), config.td_loss)
        else:
            td = quantile_huber_loss(quantiles, td_target)
        penalty = conservative_penalty(action_values(values), action_values(quantiles), batch.available)
        if batch.weights is not None:
            td, penalty = td * batch.weights, penalty * batch.weights
        td, penalty = td.mean(dim=1), penalty.mean(dim=1)  # (K,)
        loss = (self.td_weights * td + self.penalty_weights * penalty).sum()

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.ranks.mean_(p.grad for p in self.online.values() if p.grad is not None)
        gradient_norms = clip_member_gradients(self.online, config.max_gradient_norm)
        self.optimizer.step()
        self.step += 1
        self._follow()
        if self.has_gap:
            self._move_multipliers(self.ranks.mean(penalty.detach()))
        if batch.weights is not None:  # steps are drawn by priority
            td_errors = (quantiles.detach().mean(dim=-1) - td_target.mean(dim=-1)).abs()
            self.source.learn(whole, self.ranks.gathered(self._mean_of_learners(td_errors)))
        self._last = Parts(td.detach(), penalty.detach(), gradient_norms, td_target, values.detach(), batch)

    def _mean_of_learners(self, td_errors: Tensor) -> Tensor:
        """(B,) mean over the Q-networks of (K, B); one that diverged must not decide what the others see."""
        counts = td_errors.isfinite() & (self.td_weights > 0)[:, None]
        return torch.where(counts, td_errors, 0.0).sum(dim=0) / counts.sum(dim=0).clamp(min=1)

    def td_target(self, batch: Batch) -> Tensor:
        """(K, B, N) what each network's value of the logged action should be."""
        if self.evaluation_probs is not None:
            next_probs = self.evaluation_probs[batch.next_rows]
            return expected_target(batch.rewards, batch.discounts, next_probs, self._next_target(batch))
        online = network_values(self.architecture, self.online, batch.next_observations).float()
        next_q = action_values(online, self.config.cvar_share)
        available = batch.next_available
        if self.has_threshold:
            available = supported_actions(action_values(online[-1]), available, self.thresholds)  # the clone is last
        return double_dqn_target(batch.rewards, batch.discounts, next_q, self._next_target(batch), available)

    def _next_target(self, batch: Batch) -> Tensor:
        """(K, B, A, N) target values at the next observations; looked up where all of them are known."""
        if self._target_values is None and self._worth_caching():
            self._target_values = self._all_target_values()
        if self._target_values is not None:
            return self._target_values[:, batch.next_rows]
        return network_values(self.architecture, self.target, batch.next_observations).float()

    def _worth_caching(self) -> bool:
        """Whether all target values cost less once per sync than those of every batch until the next one."""
        observations, config = self.source.observations, self.config
        if observations is None or config.polyak is not None:
            return False
        values = len(observations) * self.architecture.n_members * self.architecture.n_actions * config.n_quantiles
        return len(observations) <= config.target_sync_every * config.batch_size and values <= _LARGEST_CACHE

    def _all_target_values(self) -> Tensor:
        observations = self.source.observations
        assert observations is not None
        blocks = torch.split(observations, 4_096)
        return torch.cat([network_values(self.architecture, self.target, b).float() for b in blocks], dim=1)

    @torch.no_grad()
    def _follow(self) -> None:
        """Target networks: a copy now and then (Mnih et al. 2015), or a share each time (Lillicrap et al. 2016)."""
        if self.config.polyak is not None:
            for name, target in self.target.items():
                target.lerp_(self.online[name], self.config.polyak)
        elif self.step % self.config.target_sync_every == 0:
            for name, target in self.target.items():
                target.copy_(self.online[name])
            self._target_values = None

    def _move_multipliers(self, penalty: Tensor) -> None:
        """Dual ascent on the logarithm of the penalty weight towards the target gap.

        Source: Kumar et al. 2020 (arXiv:2006.04779), appendix F, CQL with a Lagrange threshold. Differs from it: plain
        ascent on the logarithm, within a range from which it finds back.
        """
        steps = self.config.gap_learning_rate * (penalty - self.gaps)
        moved = (self.penalty_weights.log() + steps).clamp(*_MULTIPLIERS).exp()
        self.penalty_weights = torch.where(self.gaps.isnan(), self.penalty_weights, moved)

    def measure(self) -> Metrics:
        """Metrics of the last update; see `Watch.measure`."""
        assert self._last is not None
        return self.watch.measure(self.step, self._last, self.penalty_weights, self.online)

    # --- what is left behind

    def keep(self) -> None:
        """Remember the networks as they are now."""
        self.kept[self.step] = {name: p.detach().clone() for name, p in self.online.items()}

    def trained(self) -> TrainedQ:
        """All kept networks of the learners that did not diverge."""
        networks = [
            self._network(step, parameters, learner, members)
            for step, parameters in sorted(self.kept.items())
            for learner, members in member_slices(self.learners)
            if learner.name not in self.watch.diverged
        ]
        return TrainedQ(
            contract=self.source.contract,
            encoder=self.source.encoder,
            config=self.config,
            reward_scale=self.source.reward_scale,
            snapshot_digest=self.source.snapshot_digest,
            n_steps=self.source.n_steps,
            n_unusable_steps=self.source.n_unusable_steps,
            n_updates=self.step,
            networks=tuple(networks),
            diverged=dict(self.watch.diverged),
            feasible_max=None if self.config.potential else feasible_maximum(self.source.contract),
            history=tuple(self.watch.history),
        )

    @torch.no_grad()
    def _network(self, step: int, parameters: Parameters, learner: Learner, members: slice) -> TrainedNetwork:
        architecture = self.architecture.model_copy(update={"n_members": learner.n_members})
        own = {name: p[members] for name, p in parameters.items()}
        if learner.kind == "logits":  # one of each action is all that a clone was trained on
            architecture, own = with_mean_head(architecture, own)
        total, largest, n_rows = 0.0, -math.inf, 0
        for observations, available in self.source.blocks():
            values = network_values(architecture, own, observations).mean(dim=(0, -1))
            greedy = values.masked_fill(~available, -torch.inf).amax(dim=-1).double()
            total, n_rows = total + float(greedy.sum()), n_rows + len(greedy)
            largest = max(largest, float(greedy.max()))
        return TrainedNetwork(
            name=learner.name,
            step=step,
            learner=learner,
            architecture=architecture,
            weights=to_weights(own),
            q_greedy_mean=total / n_rows * self.source.reward_scale,
            q_greedy_max=largest * self.source.reward_scale,
        )

    def checkpoint(self) -> Checkpoint:
        """The state as it is now."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "online": self.online,
            "target": self.target,
            "optimizer": optimizer_tensors(self.optimizer),
            "source": self.source.state(),
            "multipliers": {"penalty_weights": self.penalty_weights},
            "watch": self.watch.state(),
        }
        groups |= {f"kept.{step}": parameters for step, parameters in self.kept.items()}
        return Checkpoint(self.step, groups, tuple(self.watch.history), dict(self.watch.diverged))

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        groups = checkpoint.groups
        for name, parameter in self.online.items():
            parameter.copy_(groups["online"][name])
            self.target[name].copy_(groups["target"][name])
        restore_optimizer(self.optimizer, groups["optimizer"])
        self.source.restore(groups["source"])
        self.penalty_weights = groups["multipliers"]["penalty_weights"].to(self.device)
        for group, tensors in groups.items():
            if group.startswith("kept."):
                self.kept[int(group.removeprefix("kept."))] = {k: t.to(self.device) for k, t in tensors.items()}
        self.step = checkpoint.step
        self.watch.restore(self.step, groups["watch"], checkpoint.history, checkpoint.diverged)


def architecture_of(source: BatchSource, config: TrainConfig, *, n_members: int) -> Architecture:
    """The shape of the networks for these observations."""
    image = source.encoder.image_shape
    return Architecture(
        n_inputs=source.encoder.size,
        n_actions=len(source.contract.actions.names),
        hidden=config.hidden,
        dueling=config.dueling,
        n_members=n_members,
        n_quantiles=config.n_quantiles,
        image=ImageShape(height=image[0], width=image[1], channels=image[2]) if image else None,
    )


@torch.no_grad()
def clip_member_gradients(parameters: Parameters, largest_norm: float) -> Tensor:
    """Shorten each member's gradient to the largest norm; returns the (K,) norms before.

    Source: Pascanu et al. 2013, On the difficulty of training recurrent neural networks (arXiv:1211.5063), section 3.2.
    """
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    squares = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    norms: Tensor = torch.linalg.vector_norm(squares, dim=0)
    factors = (largest_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
    return norms


def _is_due(step: int, every: int, config: TrainConfig) -> bool:
    return step % every == 0 or step == config.n_updates


def _fingerprint(
    source: BatchSource, config: TrainConfig, given: Parameters, device: torch.device, ranks: Ranks
) -> str:
    """Digest of all that decides the bits of the result: data, settings, given tensors, device and torch's version."""
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={"checkpoint_every", "device", "n_threads"})
    tensors = hashlib.sha256()
    for name, tensor in sorted(given.items()):
        tensors.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    parts = {
        "data": source.digest,
        "settings": settings,
        "given": tensors.hexdigest(),
        "torch": torch.__version__,
        "device": device.type,
        "n_threads": config.n_threads or torch.get_num_threads(),
        "ranks": ranks.n_ranks,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
