"""Fitted Q evaluation: the value of a given policy at every logged step, until the episode ends as the log ends it.

Backward induction with a linear model on fixed random features, one factorisation for all iterations. A network would
need at least as many target updates as an episode has steps; this needs one small linear solve for each, and its answer
does not depend on an optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from datasets.encoding import Encoder
from datasets.errors import OfflineDqnError
from datasets.replay import Replay
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.fqe_features import Array, Basis, Features
from offline_dqn.ridge import Regression
from offline_dqn.state_weights import Visits, fit_state_weights, state_weights

_TOLERANCE = 1e-3
"""Backward induction ends when no target moves by more than this share of the largest reward."""


class FqeError(OfflineDqnError):
    """Steps that no value can be fitted to."""


@dataclass(frozen=True)
class FittedQ:
    """Q(observation, action, step index) of one evaluation policy.

    Attributes:
        basis: the features of a step.
        coefficients: (D', A), of the features, by action.
        ridge: the chosen strength of shrinkage.
        low, high: smallest and largest return that rewards like the log's allow; values are cut there.
        n_iterations: of the last backward induction, until nothing moved.
        held_out_error: mean squared error of the last regression on held-out clusters, by candidate of `ridges`;
            empty where nothing could be compared.
    """

    basis: Basis
    coefficients: Array
    ridge: float
    low: float
    high: float
    n_iterations: int
    held_out_error: tuple[float, ...]

    def q_values(self, replay: Replay) -> Array:
        """(T, A) float64 in reward units: the value of each action at each step, then of the evaluation policy."""
        with threadpool_limits(limits=1):
            q_values: Array = self.basis.features(replay) @ self.coefficients
        return np.clip(q_values, self.low, self.high)


@dataclass(frozen=True)
class FittedWeights:
    """Marginalized weights of one policy, linear in the features of a step.

    Attributes:
        basis: the features.
        coefficients: (D',) of w - 1.
        ridge: the chosen strength of shrinkage towards 1.
    """

    basis: Basis
    coefficients: Array
    ridge: float

    def state_weights(self, replay: Replay) -> Array:
        """(T,) >= 0 of each step."""
        return state_weights(self.basis.features(replay), self.coefficients)


@dataclass(frozen=True)
class DirectValue:
    """The value of a policy by a model of its action values, and how each episode moved it.

    Attributes:
        value: mean value of the first steps, in reward units.
        influence: (N,) by how much each episode moved the estimate from what the others say: to first order the error
            of `value` is their sum, so independent clusters give its variance. 0 for episodes that were not drawn.
    """

    value: float
    influence: Array


@dataclass(frozen=True)
class HeldOutValues:
    """Action values at episodes that a model was not fitted on, and how far the fit itself moved them.

    Attributes:
        q_values: (T, A) at each step, in reward units; the mean of the members where there are several.
        member_values: (M,) mean value of the first steps by each member.
        influence: (N,) of the fitting episodes: to first order the sum is the error that the fit brings to the mean
            value of the first steps. None where it is not known.
        ridge: the strength of shrinkage, where there is one.
    """

    q_values: Array
    member_values: Array
    influence: Array | None
    ridge: float | None = None


class QEvaluation:
    """Logged episodes prepared for fitted Q evaluation of any number of policies.

    Features, Gram matrices and their factorisations depend on the log alone; a policy costs one backward induction.
    The last logged step of an episode does not bootstrap, whatever its flags: what lies beyond the cut is no part of
    the estimand, so Q depends on time through the step index.

    Source: Le et al. 2019, Batch Policy Learning under Constraints (arXiv:1903.08738), algorithm 3.
    Differs from it: finite horizon, linear in random features, shrunk towards what all actions have in common.
    """

    def __init__(
        self,
        replay: Replay,
        config: FqeConfig,
        *,
        encoder: Encoder,
        seed: int,
        episode_weights: Array | None = None,
    ) -> None:
        """Draw features and factor.

        Args:
            replay: the episodes to fit on.
            config: see its fields.
            encoder: of observations.
            seed: of the random features, the held-out clusters and the drawn episodes.
            episode_weights: (N,) > 0, how much each episode counts; 1 by default. Where episodes have to be drawn, the
                heaviest stay.

        Raises:
            FqeError: no step, or rewards that are not finite.
        """
        check_steps(replay)
        rng = np.random.default_rng(seed)
        weights = np.ones(replay.n_episodes) if episode_weights is None else episode_weights
        self._shape = replay.n_steps, replay.n_actions
        self._drawn = _drawn(replay, weights, config.max_steps, rng)
        kept = replay if self._drawn.all() else replay.subset(self._drawn)
        self._steps = self._drawn[replay.episode_of_step]
        self._config = config
        # One thread: the matrices are small, threads that wait for each other on a busy machine cost ten times as much,
        # and the result does not depend on their number.
        with threadpool_limits(limits=1):
            self._basis = Basis.drawn(kept, encoder, config, rng)
            self._log = _Log(kept, self._basis.features(kept), weights[self._drawn])
            self._halves = _halves(self._log, config.ridges, rng)

    def fit(self, evaluation_probs: Array) -> FittedQ:
        """Q of a policy with (T, A) probabilities at the steps of the replay.

        Raises:
            ValueError: evaluation_probs has another shape, or rows that do not sum to 1.
        """
        with threadpool_limits(limits=1):
            return self._fit(evaluation_probs)[1]

    def value(self, evaluation_probs: Array) -> tuple[FittedQ, DirectValue]:
        """The fit, and the mean value of the first steps with the influence of each episode.

        Source: Duan, Jia, Wang 2020, Minimax-Optimal Off-Policy Evaluation with Linear Function Approximation
        (arXiv:2002.09516): weights of the steps linear in their features, here by running the induction backwards.
        """
        with threadpool_limits(limits=1):
            induction, fitted = self._fit(evaluation_probs)
            value, influence = induction.influence(fitted)
        return fitted, DirectValue(value, self._everywhere(influence))

    def held_out(
        self, evaluation_probs: Array, held: Replay, held_probs: Array, *, like: HeldOutValues | None = None
    ) -> HeldOutValues:
        """Values of a policy at episodes outside the fit, and what each fitting episode moved at their first steps.

        Args:
            evaluation_probs: (T, A) of the policy at the steps of the fit.
            held: other episodes.
            held_probs: (T', A) of the policy at theirs.
            like: of another member, whose strength of shrinkage and influence are taken over; by default held-out
                clusters choose, and the influence is worked out.

        Raises:
            ValueError: probabilities have another shape, or rows that do not sum to 1.

        Source: as `value`, for the first steps of other episodes.
        """
        check_probs(held_probs, (held.n_steps, held.n_actions))
        first = held.offsets[:-1]
        with threadpool_limits(limits=1):
            induction, fitted = self._fit(evaluation_probs, None if like is None else like.ridge)
            features = self._basis.features(held)
            q_values = np.clip(features @ fitted.coefficients, fitted.low, fitted.high)
            if like is None:
                moments = features[first].T.astype(np.float64) @ (held_probs[first] / held.n_episodes)
                influence = self._everywhere(induction.fit_errors(fitted, moments))
        value = float((held_probs[first] * q_values[first]).sum(axis=1).mean())
        return HeldOutValues(q_values, np.array([value]), influence if like is None else like.influence, fitted.ridge)

    def _everywhere(self, influence: Array) -> Array:
        """(N,) with 0 for the episodes that were not drawn."""
        everywhere = np.zeros(len(self._drawn))
        everywhere[self._drawn] = influence
        return everywhere

    def fit_state_weights(self, ratios: Array) -> FittedWeights:
        """How much more often a policy visits what the log saw.

        Args:
            ratios: (T,) evaluation_prob / behavior_prob of each logged action of the replay.

        Raises:
            ValueError: ratios has another length, or one that is negative or not finite.
        """
        if ratios.shape != self._shape[:1] or not np.all(np.isfinite(ratios) & (ratios >= 0)):
            raise ValueError(f"ratios wants {self._shape[0]} finite numbers of at least 0")
        with threadpool_limits(limits=1):
            log = self._log
            visits = Visits(
                features=log.features,
                inner=log.inner,
                first=log.replay.offsets[:-1],
                reach=np.power(log.replay.contract.gamma, log.replay.step_in_episode.astype(np.float64)),
                gamma=log.replay.contract.gamma,
                ratios=ratios[self._steps],
            )
            held_out = self._halves[0].held_out if self._halves else np.zeros(log.replay.n_steps, dtype=bool)
            coefficients, ridge = fit_state_weights(visits, held_out)
        return FittedWeights(self._basis, coefficients, ridge)

    def _fit(self, evaluation_probs: Array, ridge: float | None = None) -> tuple[_Induction, FittedQ]:
        check_probs(evaluation_probs, self._shape)
        log, ridges = self._log, self._config.ridges
        induction = _Induction(log, evaluation_probs[self._steps])
        if ridge is not None:
            coefficients, n_iterations = induction.solve(ridge)
            return induction, FittedQ(self._basis, coefficients, ridge, log.low, log.high, n_iterations, ())
        first, _ = induction.solve(ridges[len(ridges) // 2])
        ridge, errors = _chosen_ridge(self._halves, log, ridges, induction.targets(first))
        coefficients, n_iterations = induction.solve(ridge, start=first)
        return induction, FittedQ(self._basis, coefficients, ridge, log.low, log.high, n_iterations, errors)


@dataclass(frozen=True)
class _Half:
    """A regression on half of the clusters, and the steps of the other half."""

    regression: Regression
    held_out: NDArray[np.bool_]


def _halves(log: _Log, ridges: tuple[float, ...], rng: np.random.Generator) -> tuple[_Half, ...]:
    """Two halves of the clusters; none where there is a single cluster, or nothing to choose between."""
    codes, of_step = np.unique(log.replay.clusters[log.replay.episode_of_step], return_inverse=True)
    if min(len(codes), len(ridges)) < 2:
        return ()
    fold = rng.permutation(len(codes))[of_step] % 2
    return tuple(
        _Half(
            Regression(log.features[~out], log.replay.actions[~out], log.replay.n_actions, log.weights[~out]),
            out,
        )
        for out in (fold == 0, fold == 1)
    )


def _chosen_ridge(
    halves: tuple[_Half, ...], log: _Log, ridges: tuple[float, ...], targets: Array
) -> tuple[float, tuple[float, ...]]:
    """The shrinkage that predicts held-out clusters best, all candidates regressing on the same targets.

    Targets that moved with the candidate would favor the one whose own values are flattest. With a single cluster none
    can be held out, and the strongest is taken.
    """
    if not halves:
        return max(ridges), ()
    errors = np.zeros(len(ridges))
    for half in halves:
        out = half.held_out
        features = log.features[out]
        for i, ridge in enumerate(ridges):
            fitted = half.regression.solve(targets[~out], ridge)
            residual = targets[out] - _of_actions(features @ fitted.astype(np.float32), log.replay.actions[out])
            errors[i] += (log.weights[out] * residual**2).sum() / log.weights.sum()
    best = min(range(len(ridges)), key=lambda i: (errors[i], -ridges[i]))  # among equals the strongest
    return ridges[best], tuple(errors.tolist())


class _Log:
    """What backward induction needs of the episodes, whatever the policy."""

    def __init__(self, replay: Replay, features: Features, episode_weights: Array) -> None:
        self.replay, self.features = replay, features
        self.weights = episode_weights[replay.episode_of_step]  # (T,)
        self.start_weights = episode_weights / episode_weights.sum()  # (N,)
        follows = np.ones(replay.n_steps, dtype=bool)
        follows[replay.offsets[1:] - 1] = False
        self.inner = np.flatnonzero(follows)  # steps with a following step in their episode
        self.next_features = features[self.inner + 1]
        self.regression = Regression(features, replay.actions, replay.n_actions, self.weights)
        self.horizon = int(replay.lengths.max())
        self.reward_size = float(np.abs(replay.rewards).max())
        self.low, self.high = return_bounds(replay)


class _Induction:
    """Backward induction for one policy: regress on reward plus the next value, again and again."""

    def __init__(self, log: _Log, evaluation_probs: Array) -> None:
        self.log, self.probs = log, evaluation_probs
        self.next_probs = evaluation_probs[log.inner + 1]
        self.gamma = log.replay.contract.gamma

    def targets(self, coefficients: Array) -> Array:
        """(T,) reward, plus the discounted value of the next step where the episode goes on."""
        log = self.log
        targets = log.replay.rewards.copy()
        targets[log.inner] += self.gamma * np.clip(self._next_values(coefficients), log.low, log.high)
        return targets

    def _next_values(self, coefficients: Array) -> Array:
        next_q = self.log.next_features @ coefficients.astype(np.float32)
        values: Array = np.einsum("ta,ta->t", self.next_probs, next_q)
        return values

    def solve(self, ridge: float, start: Array | None = None) -> tuple[Array, int]:
        """Coefficients (D', A) and the number of iterations; at most as many as the longest episode has steps."""
        log = self.log
        targets = log.replay.rewards if start is None else self.targets(start)
        n_iterations, change = 0, np.inf
        while n_iterations < log.horizon and change > _TOLERANCE * log.reward_size:
            coefficients = log.regression.solve(targets, ridge)
            before, targets = targets, self.targets(coefficients)
            n_iterations, change = n_iterations + 1, float(np.abs(targets - before).max())
        return coefficients, n_iterations

    def influence(self, fitted: FittedQ) -> tuple[float, Array]:
        """Mean value of the first steps, and (N,) the share of each episode in its error.

        The estimate is linear in the targets of every iteration (apart from the cuts), so what a step's target weighs
        in it is found by going through the iterations the other way round.
        """
        log, replay = self.log, self.log.replay
        first = replay.offsets[:-1]
        q_first = np.clip(log.features[first] @ fitted.coefficients, log.low, log.high)
        start_values = (self.probs[first] * q_first).sum(axis=1)
        value = float(log.start_weights @ start_values)
        spread = self.probs[first] * log.start_weights[:, None]
        moments = log.features[first].T.astype(np.float64) @ spread  # (D', A)
        return value, log.start_weights * (start_values - value) + self.fit_errors(fitted, moments)

    def fit_errors(self, fitted: FittedQ, moments: Array) -> Array:
        """(N,) the share of each episode in the error of a mean value with moments (D', A): features times probability.

        Each step's weight in that value times its residual, added up over the episode.
        """
        log, replay = self.log, self.log.replay
        next_values = self._next_values(fitted.coefficients)
        uncut = (next_values > log.low) & (next_values < log.high)
        step_weights, n_done, reach = np.zeros(replay.n_steps), 0, np.inf
        while n_done < log.horizon and reach > _TOLERANCE:
            found = log.regression.coefficients(moments.T, fitted.ridge).astype(np.float32)
            now = log.weights * _of_actions(log.features @ found, replay.actions)
            step_weights += now
            passed = self.gamma * now[log.inner] * uncut
            spread = (self.next_probs * passed[:, None]).astype(np.float32)
            moments, n_done = (log.next_features.T @ spread).astype(np.float64), n_done + 1
            reach = float(np.abs(passed).sum())
        targets = self.targets(fitted.coefficients)
        q_taken = _of_actions(log.features @ fitted.coefficients.astype(np.float32), replay.actions)
        errors: Array = np.add.reduceat(step_weights * (targets - q_taken), replay.offsets[:-1])
        return errors


def _of_actions(values: NDArray[np.floating], actions: NDArray[np.int64]) -> Array:
    """(T,) the value of each step's action out of (T, A)."""
    return np.asarray(values[np.arange(len(actions)), actions], dtype=np.float64)


def _drawn(replay: Replay, weights: Array, max_steps: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(N,) whole episodes of at most `max_steps` steps in all (at least one), the heaviest first, else at random."""
    if replay.n_steps <= max_steps:
        return np.ones(replay.n_episodes, dtype=bool)
    order = rng.permutation(replay.n_episodes)
    order = order[np.argsort(-weights[order], kind="stable")]
    n_drawn = max(1, int(np.searchsorted(np.cumsum(replay.lengths[order]), max_steps, side="right")))
    chosen = np.zeros(replay.n_episodes, dtype=bool)
    chosen[order[:n_drawn]] = True
    return chosen


def return_bounds(replay: Replay) -> tuple[float, float]:
    """Smallest and largest discounted return of an episode no longer than the longest, of rewards like the log's."""
    horizon, gamma = int(replay.lengths.max()), replay.contract.gamma
    n_rewards = float(horizon) if gamma == 1.0 else (1.0 - gamma**horizon) / (1.0 - gamma)
    low, high = float(replay.rewards.min()), float(replay.rewards.max())
    return min(low, low * n_rewards), max(high, high * n_rewards)


def check_probs(evaluation_probs: Array, shape: tuple[int, int]) -> None:
    """Refuses probabilities (T, A) of another shape, or whose rows do not sum to 1, with a ValueError."""
    if evaluation_probs.shape != shape:
        raise ValueError(f"evaluation_probs wants the shape (T, A) = {shape}, found {evaluation_probs.shape}")
    if not np.allclose(evaluation_probs.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError("rows of evaluation_probs do not sum to 1")


def check_steps(replay: Replay) -> None:
    """Refuses a replay without steps, or with rewards that are not finite, with an FqeError."""
    if replay.n_steps == 0:
        raise FqeError("there are no steps to fit a value to.")
    n_bad = int((~np.isfinite(replay.rewards)).sum())
    if n_bad:
        raise FqeError(f"reward is not finite in {n_bad} of {replay.n_steps} steps; drop those episodes.")
