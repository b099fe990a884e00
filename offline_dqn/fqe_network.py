"""Fitted Q evaluation by a network, on the loop that trains policies: for observations that a linear model cannot see.

`offline_dqn.fqe` is the default. This one needs as many target updates as episodes have steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.encoding import Encoder, FeatureEncoding
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.architecture import Architecture, Weights, forward
from offline_dqn.choice import score
from offline_dqn.devices import resolve_device
from offline_dqn.fqe import check_probs, check_steps, return_bounds
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.learner import fit
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig

_TIME = "step in episode"
"""What the network sees beside the observation. No feature of a contract has spaces in its name."""

_SYNCS = 50
"""Target updates of a fit."""


@dataclass(frozen=True)
class FittedQNetwork:
    """Q(observation, action, step index) of one evaluation policy.

    Attributes:
        encoder: of the observation and the step index.
        architecture, weights, reward_scale: from there to values in reward units.
        low, high: smallest and largest return that rewards like the log's allow; values are cut there.
    """

    encoder: Encoder
    architecture: Architecture
    weights: Weights
    reward_scale: float
    low: float
    high: float

    def q_values(self, replay: Replay) -> NDArray[np.float64]:
        """(T, A) float64 in reward units: the value of each action at each step, then of the evaluation policy."""
        encoded = self.encoder.encode(_with_time(replay).observations)
        q_values = score(forward(self.architecture, self.weights, encoded)) * self.reward_scale
        return np.clip(q_values, self.low, self.high)


def fit_q_network(
    replay: Replay, evaluation_probs: NDArray[np.float64], config: FqeConfig, *, encoder: Encoder, seed: int
) -> FittedQNetwork:
    """Fit Q of one evaluation policy to logged episodes; arguments and errors as of `fqe.QEvaluation`.

    The last logged step of an episode does not bootstrap, whatever its flags: what lies beyond the cut is no part of
    the estimand.

    Source: Le et al. 2019, Batch Policy Learning under Constraints (arXiv:1903.08738), algorithm 3.
    Differs from it: a gradient step per batch instead of a regression per iteration; the step index is an input.
    """
    check_steps(replay)
    check_probs(evaluation_probs, (replay.n_steps, replay.n_actions))
    timed = _with_time(replay)
    steps = timed.step_in_episode
    time = FeatureEncoding("number", mean=(float(steps.mean()),), scale=(float(steps.std()) or 1.0,))
    timed_encoder = Encoder({**encoder.features, _TIME: time})
    train = TrainConfig(
        n_updates=config.network_updates,
        hidden=config.network_hidden,
        learning_rate=1e-3,
        target_sync_every=max(1, config.network_updates // _SYNCS),
        penalty_weights=(0.0,),
        bcq_thresholds=(),
        clone=False,
        candidates_at=(1.0,),
        seed=seed,
        log_every=config.network_updates,
    )
    source = InMemorySource(timed, train, encoder=timed_encoder, device=resolve_device(train.device))
    trained = fit(source, train, evaluation_probs=torch.from_numpy(evaluation_probs.astype(np.float32)))
    network = trained.networks[-1]
    low, high = return_bounds(replay)
    return FittedQNetwork(
        encoder=timed_encoder,
        architecture=network.architecture,
        weights=network.weights,
        reward_scale=source.reward_scale,
        low=low,
        high=high,
    )


def _with_time(replay: Replay) -> Replay:
    """The steps alone, each ending where its episode is cut, and observed with their index."""
    rows = np.arange(replay.n_steps)
    last = np.zeros(replay.n_steps, dtype=bool)
    last[replay.offsets[1:] - 1] = True
    observations = replay.observations.take(rows)
    columns: Mapping[str, NDArray[np.float64]] = {
        **observations.columns,
        _TIME: replay.step_in_episode.astype(np.float64),
    }
    return replace(
        replay,
        observations=Observations(columns, observations.vocabularies),
        available=replay.available[rows],
        terminated=last,
        truncated=np.zeros_like(last),
        next_row=np.where(last, -1, rows + 1),
    )
