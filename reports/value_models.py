"""The models that evaluation cross-fits: a table where observations are few, else linear, or a network of values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datasets.replay import Replay
from offline_dqn.fqe import QEvaluation
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.fqe_network import fit_q_network
from offline_dqn.tabular_evaluation import Table, TabularEvaluation, tabulated
from reports.crossfit import Fold, FoldFitter, FoldModels
from reports.estimators import Floats


def fold_fitter(replay: Replay, config: FqeConfig) -> FoldFitter:
    """What models suit a replay: a table where its observations are a small set, else what `config.model` says."""
    table = None
    if config.model == "linear":
        table = tabulated(
            replay,
            largest=config.largest_table,
            smallest_visits=config.smallest_visits,
            most_cut=config.most_cut_in_table,
        )
    if table is None:
        return lambda fold: LinearModels(fold, config)
    known = table

    def tabular(fold: Fold) -> FoldModels:
        return TabularModels(fold, known, config.table_shrinkage)

    return tabular


@dataclass(frozen=True)
class TabularModels:
    """Averages per observation and action; `table` is of the whole replay."""

    fold: Fold
    table: Table
    shrinkage: float

    def q_values(self, evaluation_probs: Floats) -> Floats:
        """See `FoldModels`."""
        return self._evaluation.q_table(evaluation_probs)[self.table.codes[self.fold.steps]]

    def state_weights(self, ratios: Floats, *, outside: bool = False) -> Floats:
        """See `FoldModels`."""
        steps = ~self.fold.steps if outside else self.fold.steps
        return self._evaluation.state_weights(ratios)[self.table.codes[steps]]

    @cached_property
    def _evaluation(self) -> TabularEvaluation:
        replay, out = self.fold.replay, ~self.fold.steps
        return TabularEvaluation(
            table=Table(self.table.codes[out], self.table.following[out], self.table.n_states),
            actions=replay.actions[out],
            rewards=replay.rewards[out],
            times=replay.step_in_episode[out],
            n_actions=replay.n_actions,
            gamma=replay.contract.gamma,
            horizon=int(replay.lengths.max()),
            shrinkage=self.shrinkage,
        )


@dataclass(frozen=True)
class LinearModels:
    """Fitted Q evaluation in random features, or by a network; visits always in random features."""

    fold: Fold
    config: FqeConfig

    def q_values(self, evaluation_probs: Floats) -> Floats:
        """See `FoldModels`."""
        fold = self.fold
        if self.config.model == "network":
            fitted = fit_q_network(fold.outside, evaluation_probs, self.config, encoder=fold.encoder, seed=fold.seed)
            return np.asarray(fitted.q_values(fold.held), dtype=np.float64)
        return self._evaluation.fit(evaluation_probs).q_values(fold.held)

    def state_weights(self, ratios: Floats, *, outside: bool = False) -> Floats:
        """See `FoldModels`."""
        fitted = self._evaluation.fit_state_weights(ratios)
        return fitted.state_weights(self.fold.outside if outside else self.fold.held)

    @cached_property
    def _evaluation(self) -> QEvaluation:
        return QEvaluation(self.fold.outside, self.config, encoder=self.fold.encoder, seed=self.fold.seed)
