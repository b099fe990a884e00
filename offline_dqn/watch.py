"""What is watched of a training: its metrics, learners that diverged, and whether greedy actions have settled."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.errors import OfflineDqnError
from offline_dqn.architecture import Architecture
from offline_dqn.distributed import Ranks
from offline_dqn.learners import Learner, member_slices
from offline_dqn.losses import action_values
from offline_dqn.networks import Parameters, network_values
from offline_dqn.sampling import BatchSource
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import Metrics
from offline_dqn.training_data import Batch

_logger = logging.getLogger(__name__)

_SETTLED_MEASUREMENTS = 3
"""In a row, before training ends early."""

_PROBE_ROWS = 4_096
"""Observations on which greedy actions are watched."""


class TrainingDivergedError(OfflineDqnError):
    """The loss of every learner is no longer a finite number."""


@dataclass
class Parts:
    """The tensors of the last update that the metrics are made of, left on the device until one is due.

    Attributes:
        td, penalty, gradient_norms: (K,).
        td_target: (K, B, N).
        values: (K, B, A, N) at the batch's observations.
        batch: what they were made from.
    """

    td: Tensor
    penalty: Tensor
    gradient_norms: Tensor
    td_target: Tensor
    values: Tensor
    batch: Batch


class Watch:
    """Measures now and then, remembers what it measured, and says who diverged and whether all is settled.

    Attributes:
        history: metrics by update, each with its "step".
        diverged: learners whose loss stopped being finite, and when.
    """

    def __init__(
        self,
        source: BatchSource,
        config: TrainConfig,
        architecture: Architecture,
        learners: Sequence[Learner],
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.source, self.config, self.architecture, self.learners = source, config, architecture, learners
        self.device, self.ranks = device, ranks
        self.history: list[Metrics] = []
        self.diverged: dict[str, str] = {}
        self._probe: tuple[Tensor, Tensor] | None = None
        self._greedy: Tensor | None = None
        self._n_settled = 0
        self._at, self._step = time.perf_counter(), 0

    def measure(self, step: int, last: Parts, penalty_weights: Tensor, online: Parameters) -> Metrics:
        """Metrics after `step` updates, also kept in `history`; of a learner that diverged none.

        Raises:
            TrainingDivergedError: none of the Q-learners has finite ones any more. Such a value never leaves the
                weights again, so looking here, and not at every update, misses none.
        """
        now = time.perf_counter()
        metrics: Metrics = {"learning_rate": self.config.learning_rate}
        for learner, members in member_slices(self.learners):
            own = _metrics_of(learner, members, last, penalty_weights, self.source.reward_scale)
            metrics |= {f"{learner.name}/{name}": value for name, value in own.items()}
        metrics = self.ranks.mean_of(metrics, self.device)
        self._note_divergence(step, metrics)
        metrics["updates_per_s"] = (step - self._step) / max(now - self._at, 1e-9)
        if self.config.settled_share:
            metrics["changed_share"] = self._changed_share(online)
        self._at, self._step = now, step
        self.history.append({"step": float(step), **metrics})
        return metrics

    @property
    def settled(self) -> bool:
        """Whether greedy actions have stopped changing."""
        return self._n_settled >= _SETTLED_MEASUREMENTS

    def state(self) -> dict[str, Tensor]:
        """What `settled` depends on."""
        state = {"n_settled": torch.tensor(self._n_settled)}
        return state if self._greedy is None else {**state, "greedy": self._greedy}

    def restore(
        self, step: int, state: Mapping[str, Tensor], history: Sequence[Metrics], diverged: Mapping[str, str]
    ) -> None:
        """Goes on from a checkpoint."""
        self._step, self.history, self.diverged = step, list(history), dict(diverged)
        self._n_settled = int(state["n_settled"])
        self._greedy = state["greedy"].to(self.device) if "greedy" in state else None

    def _note_divergence(self, step: int, metrics: Metrics) -> None:
        for learner in self.learners:
            own = {k: v for k, v in metrics.items() if k.startswith(f"{learner.name}/")}
            bad = {name.split("/")[1]: value for name, value in own.items() if not np.isfinite(value)}
            if bad and learner.name not in self.diverged:
                found = ", ".join(f"{name} = {value}" for name, value in bad.items())
                self._drop(learner.name, f"diverged before update {step}: {found}")
        if "bc" in self.diverged:
            for learner in self.learners:
                if learner.support_threshold > 0 and learner.name not in self.diverged:
                    self._drop(learner.name, f"lost its cloned logger before update {step}, which diverged")
        for name in [name for name in metrics if name.split("/")[0] in self.diverged]:
            del metrics[name]  # what is left of it is no number that a history could hold
        q_learners = [learner.name for learner in self.learners if learner.kind == "values"]
        if all(name in self.diverged for name in q_learners or ["bc"]):
            found = "\n".join(f"  {name} {text}" for name, text in self.diverged.items())
            raise TrainingDivergedError(
                f"training diverged:\n{found}\nLower train.learning_rate (now {self.config.learning_rate:g}), raise "
                f"train.penalty_weights (now {', '.join(f'{w:g}' for w in self.config.penalty_weights)}), or look for "
                "extreme values among the rewards."
            )

    def _drop(self, name: str, why: str) -> None:
        self.diverged[name] = why
        _logger.warning("%s %s; it is no candidate", name, why)

    @torch.no_grad()
    def _changed_share(self, online: Parameters) -> float:
        """Share of probed observations whose greedy action changed since the last measurement, of all Q-learners."""
        if self._probe is None:
            self._probe = _probe(self.source)
        observations, available = self._probe
        values = network_values(self.architecture, online, observations)
        scores = torch.stack(
            [
                action_values(values[members], self.config.cvar_share).mean(dim=0)
                for learner, members in member_slices(self.learners)
                if learner.kind == "values"
            ]
        )
        greedy = scores.masked_fill(~available, -torch.inf).argmax(dim=-1)
        changed = 1.0 if self._greedy is None else float((greedy != self._greedy).double().mean())
        self._greedy = greedy
        self._n_settled = self._n_settled + 1 if changed < self.config.settled_share else 0
        return changed


def _probe(source: BatchSource) -> tuple[Tensor, Tensor]:
    """Some observations from everywhere in the replay dataset, and what was available there."""
    blocks = [(observations[::64], available[::64]) for observations, available in source.blocks()]
    observations, available = torch.cat([o for o, _ in blocks]), torch.cat([a for _, a in blocks])
    every = -(-len(observations) // _PROBE_ROWS)
    return observations[::every], available[::every]


def _metrics_of(learner: Learner, members: slice, last: Parts, penalty_weights: Tensor, reward_scale: float) -> Metrics:
    """Means over a learner's networks; values in reward units."""
    metrics = {
        "conservative_penalty": float(last.penalty[members].mean()),
        "gradient_norm": float(last.gradient_norms[members].mean()),
    }
    if learner.kind == "logits":
        return metrics
    q_values = last.values[members].mean(dim=-1)
    q_logged = q_values.gather(-1, last.batch.actions.expand(q_values.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    q_greedy = q_values.masked_fill(~last.batch.available, -torch.inf).amax(dim=-1)
    metrics |= {
        "td_loss": float(last.td[members].mean()),
        "td_error_abs": float((last.td_target[members].mean(dim=-1) - q_logged).abs().mean()) * reward_scale,
        "q_logged": float(q_logged.mean()) * reward_scale,
        "q_greedy": float(q_greedy.mean()) * reward_scale,
        "q_logged_minus_return": float((q_logged - last.batch.returns).mean()) * reward_scale,
    }
    if learner.n_members > 1:
        metrics["ensemble_spread"] = float(q_values.std(dim=0).mean()) * reward_scale
    if learner.target_gap is not None:
        metrics["penalty_weight"] = float(penalty_weights[members].mean())
        metrics["penalty_above_gap"] = metrics["conservative_penalty"] - learner.target_gap
    return metrics
