"""Gymnasium's CartPole-v1, many at once, and the controllers that log it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.rolled import Rolled, drawn, flattened

FloatArray = NDArray[np.float64]
ActionProbs = Callable[[FloatArray], FloatArray]
"""(n, 4) states of episodes 0 to n - 1 -> (n, 2) probabilities of pushing left and right."""

FEATURES = ("x", "x_speed", "angle", "angle_speed")
HORIZON = 500
_GRAVITY, _CART, _POLE, _HALF_LENGTH, _FORCE, _TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
_LARGEST_X, _LARGEST_ANGLE = 2.4, 12 * 2 * np.pi / 360

LOGGERS = (
    ((0.0, 0.0, 0.0, 0.0), 1.0),
    ((0.0, 0.0, 1.0, 0.0), 0.5),
    ((-0.3, -0.3, 1.0, 0.2), 0.3),
)
"""(weights, share of uniform moves): pushes right where the weighted state is positive. None of them is good: the
second chases the pole's angle and lets it swing, the third drifts off the track."""


def moved(states: FloatArray, actions: NDArray[np.int64]) -> FloatArray:
    """(n, 4) the next states, by Euler steps of .02 s.

    Source: Barto, Sutton & Anderson 1983, as Gymnasium's CartPole-v1 writes it.
    """
    x, x_speed, angle, angle_speed = states.T
    force = np.where(actions == 1, _FORCE, -_FORCE)
    total, pole_moment = _CART + _POLE, _POLE * _HALF_LENGTH
    cosine, sine = np.cos(angle), np.sin(angle)
    pushed = (force + pole_moment * angle_speed**2 * sine) / total
    angle_change = (_GRAVITY * sine - cosine * pushed) / (_HALF_LENGTH * (4.0 / 3.0 - _POLE * cosine**2 / total))
    x_change = pushed - pole_moment * angle_change * cosine / total
    return np.stack(
        [
            x + _TAU * x_speed,
            x_speed + _TAU * x_change,
            angle + _TAU * angle_speed,
            angle_speed + _TAU * angle_change,
        ],
        axis=1,
    )


def fallen(states: FloatArray) -> NDArray[np.bool_]:
    """(n,) whether the cart left the track or the pole fell."""
    return (np.abs(states[:, 0]) > _LARGEST_X) | (np.abs(states[:, 2]) > _LARGEST_ANGLE)


def loggers(which: NDArray[np.int64]) -> ActionProbs:
    """The controllers `LOGGERS[which[n]]`, each for its own episode."""
    weights = np.array([w for w, _ in LOGGERS])[which]
    epsilon = np.array([e for _, e in LOGGERS])[which]

    def probs(states: FloatArray) -> FloatArray:
        right = np.where((states * weights).sum(axis=1) > 0, 1.0 - epsilon / 2, epsilon / 2)
        return np.stack([1.0 - right, right], axis=1)

    return probs


def roll(probs: ActionProbs, n_episodes: int, rng: np.random.Generator) -> Rolled:
    """Episodes side by side, each cut after `HORIZON` steps. The starts are drawn before anything else."""
    seen = np.zeros((n_episodes, HORIZON + 1, 4))
    seen[:, 0] = rng.uniform(-0.05, 0.05, size=(n_episodes, 4))
    taken = np.zeros((n_episodes, HORIZON), dtype=np.int64)
    prob = np.ones((n_episodes, HORIZON))
    lengths, up = np.full(n_episodes, HORIZON), np.ones(n_episodes, dtype=bool)
    for step in range(HORIZON):
        action_probs = probs(seen[:, step])  # of fallen ones too: an episode keeps its place
        taken[:, step] = drawn(action_probs, rng)
        prob[:, step] = action_probs[np.arange(n_episodes), taken[:, step]]
        seen[:, step + 1] = moved(seen[:, step], taken[:, step])
        falls = up & fallen(seen[:, step + 1])
        lengths[falls] = step + 1
        up &= ~falls
        seen[~up, step + 1] = 0.0
        if not up.any():
            break
    return flattened(seen, taken, np.ones((n_episodes, HORIZON)), prob, lengths, ~up)
