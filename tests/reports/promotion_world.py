"""A world of continuous observations in which one policy writes the log and another one is promoted: what a promotion
alone moves, and what a change of the world does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract, contract_from_text
from datasets.observations import Observations
from datasets.replay import GATE, Replay

Floats = NDArray[np.float64]

CONTRACT = contract_from_text(
    """
name = "promoted"
gamma = 0.9
[features.load]
type = "numeric"
[features.busy]
type = "boolean"
[features.level]
type = "categorical"
[features.weather]
type = "numeric"
exogenous = true
[actions]
names = ["down", "hold", "up"]
""",
    "promoted",
)
_LEVELS = ("low", "middle", "high")


@dataclass(frozen=True)
class Leaning:
    """Softmax over the actions, the more uneven in the load the larger `slope`."""

    slope: float
    bias: float = 0.0
    contract: Contract = CONTRACT
    actions: tuple[str, ...] = CONTRACT.actions.names
    digest: str = ""

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> Floats:
        assert available.all()
        return _softmax(observations.columns["load"], self.slope, self.bias)

    def q_values(self, observations: Observations) -> Floats:
        load = observations.columns["load"]
        return np.stack([-((0.7 * load + lift) ** 2) for lift in (-0.5, 0.0, 0.5)], axis=1)

    def disagreement(self, observations: Observations) -> None:
        assert len(observations)


def logged(
    rng: np.random.Generator,
    policy: Leaning,
    *,
    n_nights: int,
    per_night: int,
    first_night: int = 0,
    n_steps: int = 6,
    night_sd: float = 0.0,
    push: float = 0.5,
    reward_shift: float = 0.0,
    version: str = "0",
) -> Replay:
    """Episodes of `n_steps` steps, a tenth of which end early. Noise grows with the load, so no residual is alike.

    Args:
        push: by how much `up` and `down` move the load; .5 in the unchanged world.
        reward_shift: added to each reward; 0 in the unchanged world.
        night_sd: standard deviation of the weather that a night's episodes share.
    """
    n = n_nights * per_night
    night = np.repeat(np.arange(n_nights), per_night)
    weather = rng.standard_normal(n) + night_sd * rng.standard_normal(n_nights)[night]
    load = np.empty((n, n_steps + 1))
    load[:, 0] = rng.standard_normal(n)
    actions = np.empty((n, n_steps), dtype=np.int64)
    probs = np.empty((n, n_steps))
    for t in range(n_steps):
        chances = _softmax(load[:, t], policy.slope, policy.bias)
        actions[:, t] = (rng.random(n)[:, None] > np.cumsum(chances, axis=1)).sum(axis=1).clip(max=2)
        probs[:, t] = chances[np.arange(n), actions[:, t]]
        noise = (0.3 + 0.3 * np.abs(load[:, t])) * rng.standard_normal(n)
        load[:, t + 1] = 0.7 * load[:, t] + push * (actions[:, t] - 1) + 0.1 * weather + noise
    rewards = -(load[:, 1:] ** 2) - 0.2 * (actions == 2) + reward_shift + 0.2 * rng.standard_normal(actions.shape)
    lengths = np.where(rng.random(n) < 0.1, rng.integers(1, n_steps + 1, n), n_steps)
    kept = np.arange(n_steps) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    ends = np.zeros(total, dtype=bool)
    ends[offsets[1:] - 1] = True
    cut = lengths == n_steps  # those at full length were cut off there, and what followed is known
    finals = np.flatnonzero(cut)
    next_row = np.arange(1, total + 1)
    next_row[offsets[1:] - 1] = -1
    next_row[offsets[1:][cut] - 1] = total + np.arange(len(finals))
    seen = np.concatenate([load[:, :-1][kept], load[finals, n_steps]])
    of_row = np.concatenate([np.repeat(np.arange(n), lengths), finals])
    columns = {
        "load": seen,
        "busy": (seen + 0.3 * rng.standard_normal(len(seen)) > 0.5).astype(np.float64),
        "level": np.digitize(seen + 0.3 * rng.standard_normal(len(seen)), [-1.0, 1.0]).astype(np.int32),
        "weather": weather[of_row],
    }
    return Replay(
        contract=CONTRACT,
        digest="",
        observations=Observations(columns, {"level": _LEVELS}),
        available=np.ones((len(seen), 3), dtype=bool),
        actions=actions[kept],
        rewards=rewards[kept],
        terminated=ends & ~np.repeat(cut, lengths),
        truncated=ends & np.repeat(cut, lengths),
        next_row=next_row,
        behavior_prob=probs[kept],
        offsets=offsets,
        episode_ids=np.array([f"e{first_night}-{i}" for i in range(n)], dtype=object),
        clusters=np.arange(n),
        nights=np.datetime64("2026-03-01") + first_night + night,
        policy_versions=np.full(n, version, dtype=object),
        split=np.full(n, GATE, dtype=np.int8),
    )


def _softmax(load: Floats, slope: float, bias: float) -> Floats:
    exponents = np.exp(np.outer(slope * load + bias, [-1.0, 0.0, 1.0]))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))
