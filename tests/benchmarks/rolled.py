"""Simulated episodes of different lengths, one after the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rolled(NamedTuple):
    """N episodes, T steps in all, F episodes that were cut."""

    states: NDArray[Any]
    """(T + F,) or (T + F, D): before every step, then where the cut episodes were left."""
    actions: NDArray[np.int64]
    """(T,)"""
    rewards: NDArray[np.float64]
    """(T,)"""
    behavior_prob: NDArray[np.float64]
    """(T,) with which the acting policy took the action."""
    terminated: NDArray[np.bool_]
    """(T,)"""
    next_row: NDArray[np.int64]
    """(T,) index into `states`; -1 after the end."""
    lengths: NDArray[np.int64]
    """(N,)"""


def flattened(
    states: NDArray[Any],
    actions: NDArray[np.int64],
    rewards: NDArray[np.float64],
    behavior_prob: NDArray[np.float64],
    lengths: NDArray[np.int64],
    ended: NDArray[np.bool_],
) -> Rolled:
    """Episodes that were simulated side by side.

    Args:
        states: (N, H + 1) or (N, H + 1, D); what lies beyond an episode's length is not read.
        actions, rewards, behavior_prob: (N, H), likewise.
        lengths: (N,) in [1, H].
        ended: (N,) whether the last step terminated; else the episode was cut there.
    """
    n, horizon = actions.shape
    within = np.arange(horizon) < lengths[:, None]
    n_steps, last = int(lengths.sum()), np.cumsum(lengths) - 1
    terminated = np.zeros(n_steps, dtype=bool)
    terminated[last[ended]] = True
    next_row = np.arange(1, n_steps + 1)
    next_row[last[ended]] = -1
    next_row[last[~ended]] = n_steps + np.arange(int((~ended).sum()))
    finals = states[np.arange(n), lengths][~ended]
    return Rolled(
        states=np.concatenate([states[:, :horizon][within], finals]),
        actions=actions[within],
        rewards=rewards[within],
        behavior_prob=behavior_prob[within],
        terminated=terminated,
        next_row=next_row,
        lengths=lengths,
    )


def drawn(probs: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) one index per row of (n, K) probabilities; never one of probability 0."""
    cumulative = np.cumsum(probs, axis=1)
    passed = rng.random(len(probs))[:, None] >= cumulative / cumulative[:, -1:]
    return np.asarray(passed.sum(axis=1), dtype=np.int64)
