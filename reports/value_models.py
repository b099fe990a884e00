"""The models that evaluation cross-fits: a table where observations are few, else linear, or a network of values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datasets.replay import Replay
from offline_dqn.fqe import HeldOutValues
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.fqe_ensemble import FqeEnsemble
from offline_dqn.fqe_network import fit_q_network
from offline_dqn.tabular_evaluation import Table, TabularEvaluation, tabulated
from reports.crossfit import Fold, FoldFitter, FoldModels
from reports.estimators import Floats, Ints


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

    def held_out(self, evaluation_probs: Floats, held_probs: Floats) -> HeldOutValues:
        """See `FoldModels`."""
        fold, steps = self.fold, self.fold.steps
        codes, times, first = self.table.codes[steps], self._times[steps], fold.held.offsets[:-1]
        tables = self._evaluation.q_table(evaluation_probs)
        q_values = tables[np.minimum(times, len(tables) - 1), codes]
        starts = np.bincount(codes[first], minlength=self.table.n_states) / fold.held.n_episodes
        moved = self._evaluation.fit_errors(evaluation_probs, tables, starts)
        return HeldOutValues(
            q_values=q_values,
            member_values=np.array([(held_probs[first] * q_values[first]).sum(axis=1).mean()]),
            influence=np.add.reduceat(moved, fold.outside.offsets[:-1]),
        )

    def state_weights(self, ratios: Floats, *, outside: bool = False) -> Floats:
        """See `FoldModels`."""
        steps = self.fold.outside_steps if outside else self.fold.steps
        return self._evaluation.weights_at(ratios, self.table.codes[steps], self._times[steps])

    @property
    def _times(self) -> Ints:
        return self.fold.replay.step_in_episode

    @cached_property
    def _evaluation(self) -> TabularEvaluation:
        replay, out = self.fold.replay, self.fold.outside_steps
        return TabularEvaluation(
            table=self.table.of(out),
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

    def held_out(self, evaluation_probs: Floats, held_probs: Floats) -> HeldOutValues:
        """See `FoldModels`; a network does not know what its fit owes to each episode."""
        fold = self.fold
        if self.config.model == "linear":
            return self._ensemble.held_out(evaluation_probs, fold.held, held_probs)
        fitted = fit_q_network(fold.outside, evaluation_probs, self.config, encoder=fold.encoder, seed=fold.seed)
        q_values, first = np.asarray(fitted.q_values(fold.held), dtype=np.float64), fold.held.offsets[:-1]
        return HeldOutValues(q_values, np.array([(held_probs[first] * q_values[first]).sum(axis=1).mean()]), None)

    def state_weights(self, ratios: Floats, *, outside: bool = False) -> Floats:
        """See `FoldModels`."""
        fitted = self._ensemble.first.fit_state_weights(ratios)
        return fitted.state_weights(self.fold.outside if outside else self.fold.held)

    @cached_property
    def _ensemble(self) -> FqeEnsemble:
        return FqeEnsemble(self.fold.outside, self.config, encoder=self.fold.encoder, seed=self.fold.seed)
