"""Fitted Q evaluation: the value of a given policy at every logged step, until the episode ends as the log ends it.

Backward induction with a linear model on fixed random features, one factorisation for all iterations. A network would
need at least as many target updates as an episode has steps; this needs one small linear solve for each, and its answer
does not depend on an optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from datasets.encoding import Encoder
from datasets.errors import OfflineDqnError
from datasets.replay import Replay
from offline_dqn.fqe_config import FqeConfig

Array = NDArray[np.float64]
Features = NDArray[np.float32]

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

    basis: _Basis
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


def fit_q_evaluation(
    replay: Replay, evaluation_probs: Array, config: FqeConfig, *, encoder: Encoder, seed: int
) -> FittedQ:
    """Fit Q of the evaluation policy to logged episodes.

    The last logged step of an episode does not bootstrap, whatever its flags: what lies beyond the cut is no part of
    the estimand, so Q depends on time through the step index.

    Args:
        replay: the episodes to fit on.
        evaluation_probs: (T, A) probabilities of the evaluation policy at each step.
        config: see its fields.
        encoder: of observations.
        seed: of the random features, the held-out clusters and the drawn episodes.

    Raises:
        ValueError: evaluation_probs has another shape, or rows that do not sum to 1.
        FqeError: no step, or rewards that are not finite.

    Source: Le et al. 2019, Batch Policy Learning under Constraints (arXiv:1903.08738), algorithm 3.
    Differs from it: finite horizon, linear in random features, shrunk towards what all actions have in common.
    """
    _check(replay, evaluation_probs)
    rng = np.random.default_rng(seed)
    replay, evaluation_probs = _drawn(replay, evaluation_probs, config.max_steps, rng)
    # One thread: the matrices are small, threads that wait for each other on a busy machine cost ten times as much, and
    # the result does not depend on their number.
    with threadpool_limits(limits=1):
        basis = _Basis.drawn(replay, encoder, config, rng)
        induction = _Induction(replay, evaluation_probs, basis.features(replay))
        first, _ = induction.solve(config.ridges[len(config.ridges) // 2])
        ridge, errors = _chosen_ridge(induction, config.ridges, induction.targets(first), rng)
        coefficients, n_iterations = induction.solve(ridge, start=first)
    return FittedQ(basis, coefficients, ridge, induction.low, induction.high, n_iterations, errors)


def _chosen_ridge(
    induction: _Induction, ridges: tuple[float, ...], targets: Array, rng: np.random.Generator
) -> tuple[float, tuple[float, ...]]:
    """The shrinkage that predicts held-out clusters best, all candidates regressing on the same targets.

    Targets that moved with the candidate would favor the one whose own values are flattest. With a single cluster none
    can be held out, and the strongest is taken.
    """
    clusters = induction.replay.clusters[induction.replay.episode_of_step]
    codes, of_step = np.unique(clusters, return_inverse=True)
    if min(len(codes), len(ridges)) < 2:
        return max(ridges), ()
    fold = rng.permutation(len(codes))[of_step] % 2
    errors = np.zeros(len(ridges))
    for held_out in range(2):
        out = fold == held_out
        regression = _Regression(induction.features[~out], induction.replay.actions[~out], induction.n_actions)
        for i, ridge in enumerate(ridges):
            regression.factor(ridge)
            fitted = regression.solve(targets[~out])[:, induction.replay.actions[out]]
            residual = targets[out] - np.einsum("td,dt->t", induction.features[out], fitted)
            errors[i] += (residual**2).sum() / len(targets)
    best = min(range(len(ridges)), key=lambda i: (errors[i], -ridges[i]))  # among equals the strongest
    return ridges[best], tuple(errors.tolist())


class _Induction:
    """Backward induction over one replay dataset: regress on reward plus the next value, again and again."""

    def __init__(self, replay: Replay, evaluation_probs: Array, features: Features) -> None:
        self.replay, self.features, self.n_actions = replay, features, replay.n_actions
        follows = np.ones(replay.n_steps, dtype=bool)
        follows[replay.offsets[1:] - 1] = False
        self.inner = np.flatnonzero(follows)  # steps with a following step in their episode
        self.next_features = features[self.inner + 1]
        self.next_probs = evaluation_probs[self.inner + 1]
        self.regression = _Regression(features, replay.actions, replay.n_actions)
        self.horizon = int(replay.lengths.max())
        self.reward_size = float(np.abs(replay.rewards).max())
        gamma = replay.contract.gamma
        n_rewards = self.horizon if gamma == 1.0 else (1.0 - gamma**self.horizon) / (1.0 - gamma)
        self.low, self.high = (float(r) for r in (replay.rewards.min(), replay.rewards.max()))
        self.low, self.high = min(self.low, self.low * n_rewards), max(self.high, self.high * n_rewards)

    def targets(self, coefficients: Array) -> Array:
        """(T,) reward, plus the discounted value of the next step where the episode goes on."""
        next_values = np.einsum("ta,ta->t", self.next_probs, self.next_features @ coefficients.astype(np.float32))
        targets = self.replay.rewards.copy()
        targets[self.inner] += self.replay.contract.gamma * np.clip(next_values, self.low, self.high)
        return targets

    def solve(self, ridge: float, start: Array | None = None) -> tuple[Array, int]:
        """Coefficients (D', A) and the number of iterations; at most as many as the longest episode has steps."""
        self.regression.factor(ridge)
        targets = self.replay.rewards if start is None else self.targets(start)
        n_iterations, change = 0, np.inf
        while n_iterations < self.horizon and change > _TOLERANCE * self.reward_size:
            coefficients = self.regression.solve(targets)
            before, targets = targets, self.targets(coefficients)
            n_iterations, change = n_iterations + 1, float(np.abs(targets - before).max())
        return coefficients, n_iterations


class _Regression:
    """Ridge regression of targets on features by action, where each action's coefficients are common + its own.

    Both parts are shrunk alike, so that an action with few steps falls back on what all have in common, and everything
    falls back on the mean (the first feature is constant, and free in the common part).
    """

    def __init__(self, features: Features, actions: NDArray[np.int64], n_actions: int) -> None:
        self.rows = [np.flatnonzero(actions == a) for a in range(n_actions)]
        self.blocks = [features[rows] for rows in self.rows]
        self.grams = np.stack([(block.T @ block).astype(np.float64) for block in self.blocks])  # (A, D', D')
        self.size, self.constant = features.shape[1], float(features[0, 0])

    def factor(self, ridge: float) -> None:
        """Prepare for many solves with one strength of shrinkage."""
        self.ridge, eye = ridge, np.eye(self.size)
        self.own = _inverses(self.grams + ridge * eye)
        common = ridge * eye
        common[0, 0] = 1e-6 * ridge
        # Eliminating an action's own part leaves G - G (G + rI)^-1 G = r (I - r (G + rI)^-1) for the common one.
        common += ridge * (eye - ridge * self.own).sum(axis=0)
        self.common = _inverses(common)

    def solve(self, targets: Array) -> Array:
        """Coefficients (D', A) for targets (T,)."""
        center = float(targets.mean())
        centered = (targets - center).astype(np.float32)
        moments = np.stack([block.T @ centered[rows] for block, rows in zip(self.blocks, self.rows, strict=True)])
        common = self.common @ (self.ridge * np.einsum("aij,aj->i", self.own, moments))
        parts = np.einsum("aij,aj->ai", self.own, moments - self.grams @ common)
        coefficients: Array = (common + parts).T
        coefficients[0] += center / self.constant
        return coefficients


def _inverses(matrices: Array) -> Array:
    """Of symmetric positive definite matrices, one or a stack."""
    inverses: Array = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(matrices))).numpy()
    return inverses


@dataclass(frozen=True)
class _Basis:
    """Features of a step: a constant, the encoded observation, bends in time, and random cosines of both.

    Attributes:
        encoder: of observations.
        knots: (K,) step indices where the effect of time may bend.
        time_scale: steps per unit of time.
        directions, phases: (D + 1, R) and (R,) of the cosines; the last row is time's.
        size: of the constant, and of all cosines together; the root of the inputs' total variance, so that the three
            parts are shrunk alike.
    """

    encoder: Encoder
    knots: Array
    time_scale: float
    directions: Array
    phases: Array
    size: float

    @staticmethod
    def drawn(replay: Replay, encoder: Encoder, config: FqeConfig, rng: np.random.Generator) -> _Basis:
        """Knots along the step index, directions of lengths that suit the spread of the observations."""
        last = float(replay.step_in_episode.max())
        n_even = (config.n_time_knots + 1) // 2
        even = np.linspace(0.0, last, n_even, endpoint=False)
        shares = np.linspace(0.0, 1.0, config.n_time_knots - n_even, endpoint=False)
        knots = np.unique(np.round([*even, *np.quantile(replay.step_in_episode, shares)]))
        knots = knots[knots < last]  # beyond the last step nothing can bend; none for episodes of one step
        time_scale = max(last, 1.0)
        inputs = _inputs(replay, encoder, time_scale)
        room = config.max_coefficients // replay.n_actions - inputs.shape[1] - len(knots)
        n_random = min(config.n_random_features, max(room, 50))
        spread = float(np.sqrt(inputs.var(axis=0).sum())) or 1.0
        lengths = np.exp(rng.uniform(np.log(0.5), np.log(6.0), n_random)) / spread
        directions = rng.normal(size=(inputs.shape[1], n_random)) * lengths
        phases = rng.uniform(0.0, 2.0 * np.pi, n_random)
        return _Basis(encoder, knots, time_scale, directions, phases, spread)

    def features(self, replay: Replay) -> Features:
        """(T, D')."""
        inputs = _inputs(replay, self.encoder, self.time_scale)
        bends = np.maximum(inputs[:, -1:] - self.knots / self.time_scale, 0.0)
        cosines = self.size * np.sqrt(2.0 / max(len(self.phases), 1)) * np.cos(inputs @ self.directions + self.phases)
        constant = np.full((len(inputs), 1), self.size)
        return np.concatenate([constant, inputs[:, :-1], bends, cosines], axis=1, dtype=np.float32)


def _inputs(replay: Replay, encoder: Encoder, time_scale: float) -> Array:
    """(T, D + 1): the encoded observation of each step, and its time."""
    encoded = encoder.encode(replay.observations.take(np.arange(replay.n_steps))).astype(np.float64)
    return np.concatenate([encoded, replay.step_in_episode[:, None] / time_scale], axis=1)


def _drawn(replay: Replay, evaluation_probs: Array, max_steps: int, rng: np.random.Generator) -> tuple[Replay, Array]:
    """Whole random episodes of at most `max_steps` steps in all (at least one), with their probabilities."""
    if replay.n_steps <= max_steps:
        return replay, evaluation_probs
    order = rng.permutation(replay.n_episodes)
    n_drawn = max(1, int(np.searchsorted(np.cumsum(replay.lengths[order]), max_steps, side="right")))
    chosen = np.zeros(replay.n_episodes, dtype=bool)
    chosen[order[:n_drawn]] = True
    return replay.subset(chosen), evaluation_probs[chosen[replay.episode_of_step]]


def _check(replay: Replay, evaluation_probs: Array) -> None:
    if evaluation_probs.shape != (replay.n_steps, replay.n_actions):
        raise ValueError(
            f"evaluation_probs wants the shape (T, A) = {(replay.n_steps, replay.n_actions)}, found "
            f"{evaluation_probs.shape}"
        )
    if not np.allclose(evaluation_probs.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError("rows of evaluation_probs do not sum to 1")
    if replay.n_steps == 0:
        raise FqeError("there are no steps to fit a value to.")
    n_bad = int((~np.isfinite(replay.rewards)).sum())
    if n_bad:
        raise FqeError(f"reward is not finite in {n_bad} of {replay.n_steps} steps; drop those episodes.")
