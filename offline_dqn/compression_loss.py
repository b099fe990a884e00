"""What a compressed policy costs: how often it acts as before, and what the change is worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from datasets.encoding import Encoder
from datasets.replay import Replay
from offline_dqn.description import AnyPolicy
from offline_dqn.fqe import QEvaluation
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.shield import acting_probs

_RIDGE = 30.0
"""Steps' worth of evidence that the model of action values is shrunk by: fixed, since a strength that held-out data
choose may shrink a difference away, and its standard error with it."""


@dataclass(frozen=True)
class CompressionLoss:
    """A policy and its compressed form on the same episodes.

    Attributes:
        n_steps, n_episodes: compared on.
        agreement: share of the steps in which both find the same action most probable.
        value_before, value_after: mean return of an episode by fitted Q evaluation, in reward units.
        value_loss: value_before - value_after.
        standard_error: of `value_loss`, with clusters as the unit.
    """

    n_steps: int
    n_episodes: int
    agreement: float
    value_before: float
    value_after: float
    value_loss: float
    standard_error: float

    def to_json(self) -> dict[str, float]:
        """Plain JSON values."""
        return asdict(self)


def measure_loss(
    before: AnyPolicy, after: AnyPolicy, replay: Replay, *, encoder: Encoder, config: FqeConfig, seed: int
) -> CompressionLoss:
    """Compare two policies on episodes that neither was fitted on.

    Args:
        before: the policy.
        after: its compressed form.
        replay: the `select` episodes.
        encoder: of the model of action values.
        config: of that model, which both policies share, so that its errors largely cancel in the difference.
        seed: of its random features.

    Raises:
        FqeError: there is no step to compare on.
    """
    rows = np.arange(replay.n_steps)
    probs = [acting_probs(policy, replay, rows) for policy in (before, after)]
    config = config.model_copy(update={"ridges": (_RIDGE,)})
    model = QEvaluation(replay, config, encoder=encoder, seed=seed)
    (_, value_before), (_, value_after) = (model.value(p) for p in probs)
    influence = value_before.influence - value_after.influence
    of_cluster = np.bincount(replay.clusters, weights=influence)
    return CompressionLoss(
        n_steps=replay.n_steps,
        n_episodes=replay.n_episodes,
        agreement=float((probs[0].argmax(axis=1) == probs[1].argmax(axis=1)).mean()),
        value_before=value_before.value,
        value_after=value_after.value,
        value_loss=value_before.value - value_after.value,
        standard_error=float(np.sqrt((of_cluster**2).sum())),
    )
