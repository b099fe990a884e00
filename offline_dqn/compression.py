"""A smaller policy that acts like a given one: fewer units by distillation, fewer bytes by int8 weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from datasets.observations import Observations
from datasets.settings import Settings
from offline_dqn.architecture import Architecture, Weights, forward
from offline_dqn.choice import BehaviorModel, quantile_weights
from offline_dqn.devices import threads
from offline_dqn.int8_weights import Int8Weights
from offline_dqn.networks import initial_parameters, network_values, start_at, to_weights
from offline_dqn.q_policy import QPolicy


class DistillConfig(Settings):
    """How a student is trained on what its teacher says."""

    hidden: tuple[Annotated[int, Field(gt=0)], ...] = Field((32, 32))
    """Units of each of the student's hidden layers."""
    n_updates: int = Field(4_000, gt=0)
    batch_size: int = Field(512, gt=0)
    learning_rate: float = Field(3e-3, gt=0)
    """Of Adam at first; it falls to 0 in a straight line."""
    largest_rows: int = Field(200_000, gt=0)
    """Observations to learn from; of more, so many are drawn."""
    sharpness: float = Field(0.25, gt=0)
    """Temperature of the compared softmax, in standard deviations of the teacher's advantages. Small tells actions
    apart that are nearly as good."""
    seed: int = Field(0, ge=0)


def quantize(policy: QPolicy) -> QPolicy:
    """The policy whose weights, and those of its behavior model, are stored in int8."""
    behavior = policy.behavior
    if behavior is not None:
        behavior = replace(behavior, weights=Int8Weights.of(behavior.weights))
    return replace(policy, weights=Int8Weights.of(policy.weights), behavior=behavior)


def distill(
    policy: QPolicy,
    observations: Observations,
    available: NDArray[np.bool_],
    config: DistillConfig,
    *,
    on_update: Callable[[int], None] = lambda _: None,
) -> QPolicy:
    """One smaller network that says what the mean of a policy's networks says; its behavior model becomes small too.

    The student has as many quantiles as the teacher, so that it may choose by CVaR as well; an ensemble becomes one
    network, which cannot disagree with itself.

    Args:
        policy: the teacher.
        observations: at least n rows, of which the first n are looked at; of the training split only.
        available: (n, A) bool along the actions of the policy's contract, at least one per row.
        config: see its fields.
        on_update: called with the number of updates done, of both networks together.

    Source: Rusu et al. 2016, Policy Distillation (arXiv:1511.06295), eq. 1 and 3: squared error of the values plus KL
    of sharpened softmaxes, teacher to student. Differs from it: both together, and only over available actions.
    """
    rows = np.arange(len(available))
    if len(rows) > config.largest_rows:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, config.largest_rows, replace=False))
    encoded, masks = policy.encoder.encode(observations.take(rows)), available[rows]
    weights = quantile_weights(policy.architecture.n_quantiles, policy.choice.cvar_share)
    lesson = _Lesson.of(policy.architecture, policy.weights, encoded, masks, weights, logits=policy.kind == "logits")
    architecture, student = _student(lesson, policy.architecture, config, on_update)
    behavior = policy.behavior
    if behavior is not None:
        weights = quantile_weights(behavior.architecture.n_quantiles, 1.0)
        lesson = _Lesson.of(behavior.architecture, behavior.weights, encoded, masks, weights, logits=True)
        behavior = BehaviorModel(
            *_student(lesson, behavior.architecture, config, lambda n: on_update(config.n_updates + n))
        )
    return replace(policy, architecture=architecture, weights=student, behavior=behavior)


@dataclass(frozen=True)
class _Lesson:
    """What one network shall learn: inputs, (n, A, N) values to say, masks, and how values are scored."""

    encoded: Tensor
    values: Tensor
    available: Tensor
    quantiles: Tensor
    logits: bool

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        weights: Weights,
        encoded: NDArray[np.float32],
        available: NDArray[np.bool_],
        quantiles: NDArray[np.float64],
        *,
        logits: bool,
    ) -> _Lesson:
        values = forward(architecture, weights, encoded).mean(axis=0)
        return cls(
            torch.from_numpy(encoded),
            torch.from_numpy(values),
            torch.from_numpy(available),
            torch.from_numpy(quantiles.astype(np.float32)),
            logits,
        )

    def scores(self, values: Tensor, rows: Tensor) -> Tensor:
        """(B, A), -inf where not available."""
        return (values @ self.quantiles).masked_fill(~self.available[rows], -torch.inf)


def _student(
    lesson: _Lesson, teacher: Architecture, config: DistillConfig, on_update: Callable[[int], None]
) -> tuple[Architecture, Weights]:
    architecture = teacher.model_copy(update={"hidden": config.hidden, "n_members": 1, "dueling": False})
    parameters = initial_parameters(architecture, (config.seed,))
    every = torch.arange(len(lesson.encoded))
    level = 0.0 if lesson.logits else float(lesson.values[lesson.available].mean())
    start_at(architecture, parameters, level, (lesson.encoded == 0).all(dim=0))
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    value_scale, temperature = _scales(lesson, every, config)
    optimizer = torch.optim.Adam(list(parameters.values()), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0 - n / config.n_updates)
    generator = torch.Generator().manual_seed(config.seed)
    with threads(1):  # students are so small that threads would only wait for each other
        for update in range(config.n_updates):
            rows = torch.randint(len(every), (config.batch_size,), generator=generator)
            said = network_values(architecture, parameters, lesson.encoded[rows])[0]
            loss = _divergence(lesson, said, rows, temperature)
            if not lesson.logits:
                errors = (said - lesson.values[rows])[lesson.available[rows]] / value_scale
                loss = loss + errors.square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
            on_update(update + 1)
    return architecture, to_weights(parameters)


def _divergence(lesson: _Lesson, said: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy from the teacher's softmax to the student's: their KL, and a constant."""
    wanted = (lesson.scores(lesson.values[rows], rows) / temperature).softmax(dim=1)
    logs = (lesson.scores(said, rows) / temperature).log_softmax(dim=1)
    return -(wanted * logs.masked_fill(~lesson.available[rows], 0.0)).sum(dim=1).mean()


def _scales(lesson: _Lesson, rows: Tensor, config: DistillConfig) -> tuple[float, float]:
    """Standard deviation of the teacher's values, and the temperature at which actions are compared."""
    if lesson.logits:
        return 1.0, 1.0
    scores = lesson.scores(lesson.values, rows)
    known = lesson.available
    mean = scores.masked_fill(~known, 0.0).sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True)
    advantages = (scores - mean)[known]
    spread, advantage = float(lesson.values[known].std()), float(advantages.std())
    return spread or 1.0, config.sharpness * advantage or 1.0
