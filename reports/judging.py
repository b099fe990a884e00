"""What candidates are judged by before any of them meets `gate`: a model on reused episodes, and weights on `select`.

The model ("direct") judges every policy, but is biased as far as it is wrong, and most in favor of policies that were
fitted to the same luck; so training episodes count less than those of `select`. Weighting (cross-fitted DR, exactly as
the gate does it) is unbiased, but judges only what the log covers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from datasets.encoding import Encoder
from datasets.replay import SELECT, TRAIN, Replay
from offline_dqn.counted_model import CountedModel, count_observations
from offline_dqn.fqe import DirectValue, QEvaluation
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.policy import Policy
from offline_dqn.shield import acting_probs
from reports.assessment import Assessment, assess
from reports.crossfit import estimated_probs, step_probs
from reports.estimators import (
    Floats,
    Ints,
    cumulative_log_weights,
    effective_sample_size,
    episode_log_weights,
    on_policy_returns,
)
from reports.evaluate_config import AssessmentConfig, PropensityConfig
from reports.gate import GateConfig
from reports.intervals import cluster_codes
from reports.select_config import SelectConfig
from reports.trial import Arm, Trial, feasible_range

_CLAIM_ALPHA = 0.05
"""Of the bound that a candidate's own Q-values must not exceed: the gate's would need more replicates than a choice
among many is worth."""


@dataclass(frozen=True)
class Difference:
    """A candidate's value minus the baseline's.

    Attributes:
        value: the candidate's own, in reward units.
        difference: to the baseline.
        standard_error: of the difference, by cluster.
    """

    value: float
    difference: float
    standard_error: float

    def low(self, level: float) -> float:
        """One-sided lower bound."""
        return self.difference - float(stats.norm.ppf(level)) * self.standard_error

    def high(self, level: float) -> float:
        """One-sided upper bound."""
        return self.difference + float(stats.norm.ppf(level)) * self.standard_error


class ValueModel(Protocol):
    """Prepared episodes that give a policy's action values and value."""

    def judge(self, evaluation_probs: Floats) -> DirectValue:
        """Of a policy with (T, A) probabilities at the steps of its episodes."""

    def q_values(self, evaluation_probs: Floats, replay: Replay) -> Floats:
        """(T', A) of the same policy at the steps of other episodes."""


@dataclass(frozen=True)
class _Counted:
    """Where observations are a small set."""

    model: CountedModel
    encoder: Encoder
    keys: NDArray[np.float32]

    def judge(self, evaluation_probs: Floats) -> DirectValue:
        return self.model.value(evaluation_probs)[1]

    def q_values(self, evaluation_probs: Floats, replay: Replay) -> Floats:
        table, _ = self.model.value(evaluation_probs)
        known = {key.tobytes(): i for i, key in enumerate(self.keys)}
        encoded = self.encoder.encode(replay.observations.take(np.arange(replay.n_steps))) + np.float32(0.0)
        rows = np.array([known.get(row.tobytes(), -1) for row in encoded])
        return np.asarray(np.where((rows >= 0)[:, None], table[rows], table.min()))


@dataclass(frozen=True)
class _Linear:
    """Everywhere else."""

    evaluation: QEvaluation

    def judge(self, evaluation_probs: Floats) -> DirectValue:
        return self.evaluation.value(evaluation_probs)[1]

    def q_values(self, evaluation_probs: Floats, replay: Replay) -> Floats:
        return self.evaluation.fit(evaluation_probs).q_values(replay)


def value_model(
    replay: Replay, encoder: Encoder, weights: Floats | None, fqe: FqeConfig, *, largest_counted: int, seed: int
) -> ValueModel:
    """Counted where the observations allow it, else fitted Q evaluation; `weights` (N,) of the episodes."""
    observed = count_observations(replay, encoder, largest=largest_counted)
    if observed is not None:
        return _Counted(CountedModel.of(replay, observed, weights), encoder, observed.keys)
    return _Linear(QEvaluation(replay, fqe, encoder=encoder, seed=seed, episode_weights=weights))


class Judge:
    """Judges policies on the `train` and `select` episodes; `gate` is dropped before anything is looked at."""

    def __init__(
        self,
        replay: Replay,
        encoder: Encoder,
        *,
        baseline: Policy | None,
        baseline_wrote_select: bool,
        config: SelectConfig,
        fqe: FqeConfig,
        propensity: PropensityConfig,
        gate: GateConfig,
        n_gate_episodes: int,
        seed: int,
        judge_since: date | None = None,
    ) -> None:
        """Prepare models.

        Args:
            replay: every split.
            encoder: fitted on the training split.
            baseline: what runs today; None for the logging policy.
            baseline_wrote_select: whether exactly that policy logged every `select` episode.
            config: of the choice; `fqe`, `propensity` and `gate` as the evaluation uses them.
            n_gate_episodes: how many will judge.
            seed: of features, folds and bootstrap.
            judge_since: after a change of the world, the first night of the new one: older training episodes say
                nothing of what a policy is worth there. `select` holds none of them.

        Raises:
            ValueError: no episode may judge.
        """
        usable = _may_judge(replay, judge_since)
        if not usable.n_episodes:
            raise ValueError(
                f"none of {replay.n_episodes} episodes may judge: wants `select`, or `train` of the new world"
            )
        observed = count_observations(usable, encoder, largest=config.largest_counted)
        self.episodes = usable if observed is not None else _at_most(usable, config.max_steps, seed)
        self._distinct = _distinct_steps(self.episodes, countable=observed is not None)
        self._in_select = self.episodes.split[self.episodes.episode_of_step] == SELECT
        self.select, self.train = self.episodes.of_split(SELECT), self.episodes.of_split(TRAIN)
        self.config, self.gate, self.n_gate_episodes, self.seed = config, gate, n_gate_episodes, seed
        self._encoder, self._fqe, self._propensity = encoder, fqe, propensity
        self._weights = np.where(self.episodes.split == SELECT, 1.0, config.reuse_weight)
        fqe = fqe.model_copy(update={"max_steps": max(fqe.max_steps, config.max_steps)})
        self._model = value_model(
            self.episodes, encoder, self._weights, fqe, largest_counted=config.largest_counted, seed=seed
        )
        self._train_model: ValueModel | None = None
        wrote = baseline_wrote_select and self.select.n_episodes > 0  # of no episodes everything is true
        self._baseline = None if wrote else baseline
        self._wrote = baseline if wrote else None
        self._baseline_direct = self._baseline_value()
        # The new world may have the old logger, and the model of it wants many steps.
        logged = self.train if judge_since is None else _at_most(replay.of_split(TRAIN), config.max_steps, seed)
        behavior_probs = self._select_behavior_probs(logged)
        unknown = _with_unknown(behavior_probs, self.select)
        self._n_unknown = int(unknown.sum())
        self._weighed = self.select.subset(~unknown) if self._n_unknown else self.select
        known_steps = ~unknown[self.select.episode_of_step]
        self._weighed_steps = np.flatnonzero(self._in_select)[known_steps]
        self._behavior_probs = None if behavior_probs is None else behavior_probs[known_steps]
        self._gate_like = _gate_like(gate, self.select.n_episodes, n_gate_episodes)

    @property
    def baseline_value(self) -> float:
        """By the model, or the log's mean return where the baseline wrote it."""
        return self._baseline_direct.value

    @cached_property
    def baseline_probs(self) -> Floats | None:
        """(T, A) as `probs` gives them; None where the log is the baseline."""
        baseline = self._wrote or self._baseline
        return None if baseline is None else self.probs(baseline)

    def direct(self, probs: Floats) -> Difference:
        """By the model; `probs` (T, A) from `probs`."""
        found = self._model.judge(probs)
        difference = found.value - self._baseline_direct.value
        influence = found.influence - self._baseline_direct.influence
        return Difference(found.value, difference, clustered_error(influence, self.episodes.clusters))

    def probs(self, policy: Policy) -> Floats:
        """(T, A) at the steps of the episodes that judge; asked once for each distinct observation and mask."""
        rows, of_step = self._distinct
        return acting_probs(policy, self.episodes, rows)[of_step]

    def why_not_weighted(self, probs: Floats) -> str | None:
        """Why the weights of a policy need not be looked at any closer; None where they may do."""
        weighed, left_out = self._weighed, ""
        if self._n_unknown:
            left_out = f", without {self._n_unknown} episodes that lack a probability"
        if weighed.n_episodes < 2:
            return f"`select` holds {weighed.n_episodes} episodes{left_out}"
        if self._behavior_probs is None:
            return "the log lacks the probabilities of its actions"
        taken = probs[self._weighed_steps, weighed.actions]
        log_weights = cumulative_log_weights(taken, self._behavior_probs, weighed.offsets)
        size = effective_sample_size(episode_log_weights(log_weights, weighed.offsets))
        wanted = self._gate_like.overlap.smallest_sample_size
        if size < wanted:
            return f"the effective sample size on `select` is {size:.1f} episodes, under {wanted:.1f}{left_out}"
        return None

    def prepare(self, candidates: Iterable[Floats]) -> None:
        """Fits once what `weighted` will share, before candidates are judged apart; (T, A) probabilities of each."""
        wanted = self._train_model is None and self.train.n_episodes > 0
        if wanted and any(self.why_not_weighted(probs) is None for probs in candidates):
            self._train_model = self._model_of_train()

    def weighted(self, policy: Policy, probs: Floats) -> Assessment:
        """As the gate would judge it, but on `select`; only where `why_not_weighted` names nothing.

        As there, episodes with an unknown probability are left out.
        """
        weighed = self._weighed
        assert self._behavior_probs is not None
        arms = {"candidate": self._arm(probs)}
        if self._wrote is not None:
            arms["baseline"] = Arm(probs=step_probs(self._wrote, weighed), q=None)
        elif self._baseline is not None:
            arms["baseline"] = self._arm(self.probs(self._baseline))
        reward, gamma = weighed.contract.reward, weighed.contract.gamma
        own_q = policy.q_values(weighed.observations.take(np.arange(weighed.n_steps)))
        trial = Trial(
            names=weighed.contract.actions.names,
            actions=weighed.actions,
            rewards=weighed.rewards,
            available=weighed.available[: weighed.n_steps],
            permitted=weighed.permitted[: weighed.n_steps],
            behavior_probs=self._behavior_probs,
            propensity_kind=weighed.contract.behavior.propensity,
            offsets=weighed.offsets,
            clusters=weighed.clusters,
            nights=weighed.nights,
            truncated=weighed.truncated[weighed.offsets[1:] - 1],
            gamma=gamma,
            feasible=feasible_range(reward.min, reward.max, gamma, int(self.episodes.lengths.max())),
            largest_reward=reward.max,
            candidate=arms["candidate"],
            baseline=arms.get("baseline"),
            version_zero=None,
            own_q=None if own_q is None else np.asarray(own_q, dtype=np.float64),
        )
        assessment = AssessmentConfig(n_replicates=self.config.n_replicates, propensity=self._propensity)
        return assess(trial, assessment, self._gate_like, np.random.default_rng(self.seed))

    def _arm(self, probs: Floats) -> Arm:
        """Action values from training episodes alone: DR wants a model that never saw the episodes it corrects.

        Without such episodes they are 0, which leaves the weights alone to judge.
        """
        own = probs[self._weighed_steps]
        if not self.train.n_episodes:
            return Arm(probs=own, q=np.zeros_like(own))
        if self._train_model is None:
            self._train_model = self._model_of_train()
        in_train = ~self._in_select
        q_values = self._train_model.q_values(probs[in_train], self._weighed)
        return Arm(probs=own, q=np.asarray(q_values, dtype=np.float64))

    def _model_of_train(self) -> ValueModel:
        return value_model(
            self.train, self._encoder, None, self._fqe, largest_counted=self.config.largest_counted, seed=self.seed
        )

    def _baseline_value(self) -> DirectValue:
        if self._baseline is not None:
            return self._model.judge(self.probs(self._baseline))
        returns = on_policy_returns(self.episodes.rewards, self.episodes.offsets, self.episodes.contract.gamma)
        # Others than the champion may have written training episodes.
        weights = self._weights if self._wrote is None else (self.episodes.split == SELECT).astype(np.float64)
        mean = float(np.average(returns, weights=weights))
        return DirectValue(mean, weights / weights.sum() * (returns - mean))

    def _select_behavior_probs(self, logged: Replay) -> Floats | None:
        """(T,) of `select`; None where every one is unknown, or a model of them, fitted on `logged`, misses one."""
        probs = self.select.behavior_prob
        if self.select.contract.behavior.propensity != "estimated":
            return None if np.isnan(probs).all() else probs
        if not self.select.n_episodes or not logged.n_episodes:
            return None
        probs = estimated_probs(logged, self.select, self._encoder, self._propensity, self.seed)
        return None if np.isnan(probs).any() else probs


def _may_judge(replay: Replay, since: date | None) -> Replay:
    """`select`, and `train` since the world is as it is."""
    if since is None:
        return replay.of_split(TRAIN, SELECT)
    return replay.subset((replay.split == SELECT) | ((replay.split == TRAIN) & (replay.nights >= np.datetime64(since))))


def _with_unknown(behavior_probs: Floats | None, replay: Replay) -> NDArray[np.bool_]:
    """(N,) whether an episode lacks a probability while others have theirs: the gate leaves such out, too."""
    if behavior_probs is None:
        return np.zeros(replay.n_episodes, dtype=bool)
    steps = replay.episode_of_step[np.isnan(behavior_probs)]
    return np.asarray(np.bincount(steps, minlength=replay.n_episodes) > 0)


def _distinct_steps(replay: Replay, *, countable: bool) -> tuple[Ints, Ints]:
    """A step for each distinct observation and mask, and (T,) which of them each step is like; else every step.

    Distinct as logged, byte by byte: what one encoder holds for the same, a rule or a policy with an encoder of its own
    may tell apart.
    """
    steps = np.arange(replay.n_steps)
    if not countable:
        return steps, steps
    masks = np.packbits(replay.permitted[: replay.n_steps], axis=1)
    columns = [np.ascontiguousarray(c[: replay.n_steps]) for c in replay.observations.columns.values()]
    keys = np.column_stack([masks, *[c.view(np.uint8).reshape(replay.n_steps, -1) for c in columns]])
    whole = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.shape[1]))).ravel()
    _, rows, of_step = np.unique(whole, return_index=True, return_inverse=True)
    return np.asarray(rows, dtype=np.int64), np.asarray(of_step, dtype=np.int64).ravel()


def clustered_error(influence: Floats, clusters: Ints) -> float:
    """Standard error of an estimate whose error is the sum of (N,) influences, when clusters are independent."""
    sums = np.bincount(cluster_codes(clusters), weights=influence)
    if len(sums) < 2:
        return float("inf")
    return float(np.sqrt(len(sums) / (len(sums) - 1) * ((sums - sums.mean()) ** 2).sum()))


def _gate_like(gate: GateConfig, n_select: int, n_gate: int) -> GateConfig:
    """The gate's settings for the fewer episodes of `select`: of what grows with them, a share is asked for."""
    share = min(1.0, n_select / max(1, n_gate))
    overlap = gate.overlap.model_copy(
        update={
            "smallest_sample_size": max(2.0, gate.overlap.smallest_sample_size * share),
            "largest_share": min(1.0, gate.overlap.largest_share / share) if share else 1.0,
        }
    )
    return gate.model_copy(update={"alpha": _CLAIM_ALPHA, "overlap": overlap})


def _at_most(replay: Replay, max_steps: int, seed: int) -> Replay:
    """The episodes of `select` first, then random ones of `train`, of at most `max_steps` steps in all."""
    if replay.n_steps <= max_steps:
        return replay
    order = np.random.default_rng(seed).permutation(replay.n_episodes)
    order = order[np.argsort(replay.split[order] != SELECT, kind="stable")]
    n_kept = max(1, int(np.searchsorted(np.cumsum(replay.lengths[order]), max_steps, side="right")))
    kept = np.zeros(replay.n_episodes, dtype=bool)
    kept[order[:n_kept]] = True
    if not (kept & (replay.split == TRAIN)).any():  # DR needs something outside `select`
        kept[order[replay.split[order] == TRAIN][:100]] = True
    return replay.subset(kept)
