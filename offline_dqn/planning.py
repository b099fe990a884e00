"""Planning on the counted model: certainty equivalence, expressed as a network so that it acts like any other.

Where observations come from a small set this is hard to beat: no approximation error, no learning rate, and an action
that the log never took at an observation is not taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.encoding import Encoder
from offline_dqn.architecture import Architecture
from offline_dqn.counted_model import Array, CountedModel, Observed
from offline_dqn.q_policy import QPolicy

_MOST_BACKUPS = 100_000


def plan(model: CountedModel, pessimism: float) -> Array:
    """(S, A) action values of the best policy on the counted model, in reward units.

    Args:
        model: what was counted.
        pessimism: standard errors that a counted mean is lowered by; 0 takes counts at their word. Single counts make
            the best of many actions look better than any is.

    Returns:
        Values; for an action never seen at an observation a step's noise less than the least of all, so that it is
        taken only where nothing else is available.

    Source: certainty equivalence (Kumar and Varaiya 1986, Stochastic Systems); lowered by a multiple of 1 / sqrt(n) as
    in Buckman et al. 2020, The Importance of Pessimism in Fixed-Dataset Policy Optimization (arXiv:2009.06799), eq. 6.
    Differs from it: the multiple is in units of the pooled noise of a step.
    """
    seen = model.counts > 0
    penalty = np.zeros_like(model.counts)
    values = _best_values(model, penalty)
    noise = model.step_noise(values)
    if pessimism > 0:
        penalty = pessimism * noise / np.sqrt(np.where(seen, model.counts, 1.0))
        values = _best_values(model, penalty)
    q_values = model.backed_up(values) - penalty
    least = float(q_values[seen].min())
    spread = noise or float(np.ptp(q_values[seen])) or 1.0
    return np.where(seen, q_values, least - spread)


def _best_values(model: CountedModel, penalty: Array) -> Array:
    """(S,) by value iteration; until the horizon where nothing is discounted."""
    seen, values = model.counts > 0, np.zeros(model.n_states)
    for _ in range(model.horizon if model.gamma == 1.0 else _MOST_BACKUPS):
        q_values = model.backed_up(values) - penalty
        best = np.where(seen, q_values, -np.inf).max(axis=1)
        before, values = values, np.where(seen.any(axis=1), best, q_values[seen].min())
        if model.settled(values, before):
            break
    return values


def isolates(observed: Observed, encoder: Encoder) -> bool:
    """Whether each observation can be told from all others by one unit: every column takes at most two values."""
    return _two_values(observed.keys, encoder) is not None


def as_policy(
    model: CountedModel, observed: Observed, encoder: Encoder, q_values: Array, exploration: float
) -> QPolicy:
    """A network that says exactly these values: one hidden unit per observation, which is 1 there and 0 elsewhere.

    An observation that was never counted gets, for each action, the mean of what it is worth over the counted ones.

    Raises:
        ValueError: a column of the encoded observations takes more than two values, so that no unit isolates one.
    """
    ends = _two_values(observed.keys, encoder)
    if ends is None:
        raise ValueError("a column of the encoded observations takes more than two values; plan only where isolates()")
    low, step, used = ends
    binary = np.where(used, (observed.keys - low) / step, 0.0)  # (S, D) of 0 and 1
    signs = np.where(used, 2.0 * binary - 1.0, 0.0)
    # With x = low + step * b the sum of signs * b is the number of ones at a match, and at least one less elsewhere.
    weight = signs / step
    bias = 1.0 - binary.sum(axis=1) - weight @ low
    architecture = Architecture(
        n_inputs=observed.keys.shape[1], n_actions=model.replay.n_actions, hidden=(len(observed.keys),)
    )
    visits = model.counts.sum(axis=1)
    elsewhere = np.average(q_values, axis=0, weights=visits)
    weights = {
        "hidden.0.weight": weight.T[None],
        "hidden.0.bias": bias[None, None],
        "head.weight": (q_values - elsewhere)[None],
        "head.bias": elsewhere[None, None],
    }
    return QPolicy(
        contract=model.replay.contract,
        encoder=encoder,
        architecture=architecture,
        weights={name: np.ascontiguousarray(w, dtype=np.float32) for name, w in weights.items()},
        reward_scale=1.0,
        exploration=exploration,
        snapshot_digest=model.replay.digest,
        config={"learner": "counted model"},
    )


def _two_values(keys: NDArray[np.float32], encoder: Encoder) -> tuple[Array, Array, NDArray[np.bool_]] | None:
    """(D,) lower value and distance of the two values of each column, and whether it tells observations apart.

    Slots of labels are 0 and 1 even where only one of them was seen: an unseen label must match nothing. A number that
    never varied is not looked at.
    """
    low, high = keys.min(axis=0).astype(np.float64), keys.max(axis=0).astype(np.float64)
    if not np.all((keys == low.astype(np.float32)) | (keys == high.astype(np.float32))):
        return None
    slots = np.concatenate([
        np.arange(encoding.size) >= (0 if encoding.kind == "labels" else len(encoding.mean))
        for encoding in encoder.features.values()
    ])  # fmt: skip
    low, high = np.where(slots, 0.0, low), np.where(slots, 1.0, high)
    used = high > low
    return low, np.where(used, high - low, 1.0), used
