"""How often the guard takes over ordinary decisions, and how often ones that it should, over many trainings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np

from datasets.contract import Contract
from datasets.encoding import fit_encoder
from datasets.observations import Observations
from datasets.replay import SELECT, TRAIN, Replay
from offline_dqn.architecture import Architecture
from offline_dqn.guard_config import GuardConfig
from offline_dqn.guard_fit import GuardFitter
from offline_dqn.guarded import GuardedPolicy
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import RulePolicy
from tests.benchmarks.outcomes import Outcome

CONTRACT = Contract.model_validate(
    {
        "name": "guarded",
        "gamma": 0.9,
        "features": {
            "cpu": {"type": "numeric"},
            "load": {"type": "numeric"},
            "p95_ms": {"type": "numeric", "nullable": True},
            "replicas": {"type": "numeric"},
            "zone": {"type": "categorical"},
            "busy": {"type": "boolean", "nullable": True},
            "trend": {"type": "vector", "length": 3},
        },
        "actions": {"names": ["down", "hold", "up"]},
    }
)
ZONES = ("a", "b", "c", "rare")
_MOST_ASKED = 100
"""Episodes of each kind that a training is asked about, one step of each: episodes are independent."""


@dataclass(frozen=True, kw_only=True)
class GuardCell:
    """One training: what is ordinary is learned, thresholds are set, and steps of other episodes are asked about."""

    world: str
    n_train: int = 400
    n_select: int = 600
    """Episodes, each a cluster unless `episodes_per_cluster` says otherwise."""
    n_steps: int = 10
    """Of an episode at most; half of them are shorter."""
    episodes_per_cluster: int = 1
    dependence: float = 0.9
    """Correlation of a step with the next."""
    tails: float = 0.0
    """0 for normal features; else degrees of freedom of a t distribution."""
    wild: float = 0.0
    """Share of rows, in training too, of which one feature is wild."""
    n_members: int = 3
    """Networks of the ensemble; 1 has nothing to disagree."""
    strange: str = ""
    """What is done to the rows that are asked about; "" leaves them ordinary."""
    false_alarm_share: float = 0.01
    promised: bool = True
    logs: float = 1.0

    def __call__(self, seed: int) -> Outcome:
        """How many of so many steps, each of its own episode, the guard takes over, and why."""
        rng = np.random.default_rng([seed, crc32(self.world.encode())])
        policy = guarded_policy(self, rng)
        rows = changed(some_rows(self, rng, _MOST_ASKED, n_steps=1)[0], self.strange, rng)
        reasons = policy.guard_reasons(rows)
        by_cause = {cause: int((reasons == cause).sum()) for cause in policy.guard.thresholds}
        held = bool(policy.guard.calibration.held)
        return {"asked": len(reasons), "fired": int((reasons != "").sum()), "held": held, **by_cause}


def guarded_policy(cell: GuardCell, rng: np.random.Generator) -> GuardedPolicy:
    """What one training would release: networks of random weights, with their guard."""
    train, select = (some_replay(cell, rng, n, split) for n, split in ((cell.n_train, TRAIN), (cell.n_select, SELECT)))
    encoder = fit_encoder(CONTRACT, train.observations)
    shape = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(16,), n_members=cell.n_members)
    weights = {
        name: (rng.normal(size=size) / np.sqrt(size[-2] if len(size) > 2 else 1)).astype(np.float32)
        for name, size in shape.parameter_shapes().items()
    }
    own = QPolicy(CONTRACT, encoder, shape, weights, reward_scale=1.0, exploration=0.1)
    config = GuardConfig(false_alarm_share=cell.false_alarm_share)
    return GuardFitter(train, select, RulePolicy(CONTRACT, (), otherwise="hold"), config).guarded(own)


def some_rows(
    cell: GuardCell, rng: np.random.Generator, n_episodes: int, n_steps: int
) -> tuple[Observations, np.ndarray]:
    """Steps of episodes whose features hang together within an episode, and the lengths of these."""
    lengths = rng.integers(1, n_steps + 1, n_episodes)
    lengths[: n_episodes // 2] = n_steps
    total, begin = int(lengths.sum()), np.concatenate([[0], np.cumsum(lengths)[:-1]])
    noise = _normal_or_heavy(cell, rng, (total, 8))
    keep, fresh = cell.dependence, np.sqrt(1.0 - cell.dependence**2)
    starts = np.zeros(total, dtype=bool)
    starts[begin] = True
    state = noise.copy()
    for t in np.flatnonzero(~starts):
        state[t] = keep * state[t - 1] + fresh * noise[t]
    load = 0.9 * state[:, 0] + np.sqrt(0.19) * state[:, 1]
    busy = (state[:, 4] > 0.6).astype(float)
    busy[rng.random(total) < 0.02] = np.nan
    p95 = np.exp(5.0 + 0.6 * state[:, 2] + 0.4 * load)
    p95[rng.random(total) < 0.01] = np.nan
    cpu = 0.5 + 0.1 * state[:, 0]
    wild = rng.random(total) < cell.wild
    cpu[wild] += rng.choice([-10.0, 10.0], int(wild.sum()))
    columns = {
        "cpu": cpu,
        "load": load,
        "p95_ms": p95,
        "replicas": np.floor(np.exp(1.2 + 0.4 * state[:, 3])) + 1.0,
        "zone": np.repeat(rng.choice(4, n_episodes, p=[0.5, 0.3, 0.195, 0.005]), lengths).astype(np.int32),
        "busy": busy,
        "trend": state[:, 5:8] + 0.5 * state[:, [0]],
    }
    return Observations(columns, {"zone": ZONES}), lengths


def _normal_or_heavy(cell: GuardCell, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(cell.tails, size) if cell.tails else rng.normal(size=size)


def changed(rows: Observations, how: str, rng: np.random.Generator) -> Observations:
    """The same steps as the policy was never trained for."""
    columns, zones = dict(rows.columns), rows.vocabularies["zone"]
    n = len(rows)
    if how == "one feature 5 sd away":
        columns["cpu"] = columns["cpu"] + 0.5 * rng.choice([-1.0, 1.0], n)
    elif how == "a combination that cannot be":
        columns["cpu"] = 0.5 + 0.2 * (sign := rng.choice([-1.0, 1.0], n))
        columns["load"] = -2.0 * sign
    elif how == "a new category":
        zones = tuple(f"new {zone}" for zone in zones)
    elif how == "seconds for milliseconds":
        columns["p95_ms"] = columns["p95_ms"] / 1000.0
    elif how == "two features swapped":
        columns["load"], columns["replicas"] = columns["replicas"], columns["load"]
    elif how == "two features missing":
        columns["p95_ms"], columns["busy"] = np.full(n, np.nan), np.full(n, np.nan)
    elif how:
        raise ValueError(f"unknown change '{how}'")
    return replace(rows, columns=columns, vocabularies={"zone": zones})


def some_replay(cell: GuardCell, rng: np.random.Generator, n_episodes: int, split: int) -> Replay:
    """Episodes of which only the observations matter."""
    rows, lengths = some_rows(cell, rng, n_episodes, cell.n_steps)
    total = len(rows)
    clusters = np.arange(n_episodes) // cell.episodes_per_cluster
    arrays: dict[str, Any] = {
        "available": np.ones((total, 3), dtype=bool),
        "actions": np.zeros(total, dtype=np.int64),
        "rewards": np.zeros(total),
        "terminated": np.zeros(total, dtype=bool),
        "truncated": np.zeros(total, dtype=bool),
        "next_row": np.full(total, -1),
        "behavior_prob": np.full(total, 1 / 3),
    }
    return Replay(
        contract=CONTRACT,
        digest="",
        observations=rows,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        episode_ids=np.arange(n_episodes).astype(str),
        clusters=clusters,
        nights=np.full(n_episodes, np.datetime64("2026-01-01")),
        policy_versions=np.full(n_episodes, ""),
        split=np.full(n_episodes, split, dtype=np.int8),
        **arrays,
    )


CHANGES = (
    "one feature 5 sd away", "a combination that cannot be", "a new category", "seconds for milliseconds",
    "two features swapped", "two features missing",
)  # fmt: skip

CELLS = (
    GuardCell(world="episodes of 10 steps, an ensemble of 3"),
    GuardCell(world="episodes of 10 steps, one network", n_members=1),
    GuardCell(world="clusters of 4 episodes", episodes_per_cluster=4, n_select=2_400),
    GuardCell(world="heavy tails, t with 3 degrees of freedom", tails=3.0),
    GuardCell(world="2 in 1,000 rows wild", wild=0.002),
    GuardCell(world="60 episodes to set thresholds on: nothing is promised", n_select=60, promised=False),
    *(GuardCell(world=f"ordinary but for {change}", strange=change, logs=0.2) for change in CHANGES),
    *(GuardCell(world=f"2 in 1,000 rows wild, ordinary but for {change}", wild=0.002, strange=change,
                logs=0.2) for change in CHANGES[:2]),
)  # fmt: skip
