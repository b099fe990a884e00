"""Worlds with known values in which the gate is put to the test, and what one log of them shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from reports.evaluate_config import AssessmentConfig
from reports.gate import VALUE_CHECK, GateConfig, decide
from reports.records import Comparison, Evaluation
from tests.reports.worlds import Floats, Log, World, evaluate_trial, greedy, make_trial, simulate, small_world

Outcome = dict[str, Any]

_CONFIG = AssessmentConfig(n_replicates=2_000)


@dataclass(frozen=True, kw_only=True)
class GateCell:
    """One world, logging policy, candidate and size of log.

    The candidate of "equal" differs from the logging policy in every state and is worth exactly as much; "worse" is
    put exactly at the margin by taking its loss for the margin; "better" asks for power.
    """

    method: ClassVar[str] = "gate: DR with the true Q off by .2, bootstrap by cluster"
    world: str
    """What the world is, in words."""
    candidate: Literal["equal", "worse", "better"]
    n_episodes: int
    alpha: float = 0.05
    one_step: bool = False
    reward_shift: float = 0.0
    """Added to every reward: below -1 all rewards are costs."""
    behavior_exploration: float | None = None
    """Of a logging policy that is otherwise the best one; None is uniform."""
    candidate_exploration: float = 0.6
    cluster_size: int = 1
    """Episodes that share a shock and are known to belong together."""
    cluster_sd: float = 0.0
    disaster: float = 0.0
    """Loss that the second action brings in one of 1,000 steps, on top of rewards whose mean stays what it is."""
    logs: float = 1.0
    """How many logs are drawn, in shares of what was asked for."""

    def __call__(self, seed: int) -> Outcome:
        """What the gate makes of one log."""
        world, behavior, candidate, gain = _policies(self)
        gate = GateConfig(alpha=self.alpha, margin=max(-gain, 0.0))
        rng = np.random.default_rng([seed, crc32(f"{self.world} {self.candidate}".encode())])
        log = self._shaken(simulate(world, behavior, self.n_episodes, rng), rng)
        clusters = np.arange(self.n_episodes) // self.cluster_size
        trial = make_trial(world, log, behavior, candidate, clusters=clusters, nights=clusters % 7)
        return outcome_of(evaluate_trial(trial, _CONFIG, gate, seed), gate, gain)

    def _shaken(self, log: Log, rng: np.random.Generator) -> Log:
        shocks = rng.normal(0.0, self.cluster_sd, -(-self.n_episodes // self.cluster_size))
        episode = np.repeat(np.arange(self.n_episodes), np.diff(log.offsets))
        struck = rng.random(len(log.actions)) < 1e-3
        disasters = self.disaster * (log.actions == 1) * (1e-3 - struck)
        return Log(log.states, log.actions, log.rewards + shocks[episode // self.cluster_size] + disasters, log.offsets)


def outcome_of(evaluation: Evaluation, gate: GateConfig, gain: float) -> Outcome:
    """What is counted of one evaluation whose true difference is `gain`; None where nothing was said."""
    decision = decide(evaluation, gate)
    others = [check.name for check in decision.failed_checks if check.name != VALUE_CHECK]
    comparison = evaluation.comparison("baseline")
    models = [c for c in evaluation.comparisons if c.against == "baseline" and not c.binding]
    interval = comparison.interval if comparison is not None else None
    return {
        "passed": decision.passed,
        "refused": bool(others),
        "refused_by": others,
        "covered": None if interval is None else interval.low <= gain <= interval.high,
        "bound_passes": _bound_passes(comparison, gate),
        "model_passes": _bound_passes(models[0] if models else None, gate),
    }


def _bound_passes(comparison: Comparison | None, gate: GateConfig) -> bool | None:
    if comparison is None or comparison.lower_bound is None:
        return None
    return comparison.lower_bound > -gate.margin


@cache
def _policies(cell: GateCell) -> tuple[World, Floats, Floats, float]:
    """World, logging policy, candidate, and the true gain of the candidate."""
    world = small_world(reward_shift=cell.reward_shift)
    if cell.one_step:
        world = World(np.zeros_like(world.transitions), world.rewards, world.first)
    uniform = np.full((4, 2), 0.5)
    behavior = uniform if cell.behavior_exploration is None else greedy(world, cell.behavior_exploration)
    better = greedy(world, cell.candidate_exploration)
    candidate = better
    if cell.candidate == "worse":
        candidate = 1.0 - better
    elif cell.candidate == "equal":
        candidate = _equal(world, behavior, better)
    gain = world.value(candidate) - world.value(behavior)
    return world, behavior, candidate, 0.0 if cell.candidate == "equal" else gain


def _equal(world: World, behavior: Floats, better: Floats) -> Floats:
    """Better in some states and worse in the others by just as much."""
    for improved in _subsets(len(better)):

        def mixed(share: float, improved: NDArray[np.bool_] = improved) -> Floats:
            return np.where(improved[:, None], better, (1 - share) * better + share * (1 - better))

        def gain(share: float) -> float:
            return world.value(mixed(share)) - world.value(behavior)

        if gain(0.0) > 0.0 > gain(1.0):
            return mixed(float(optimize.brentq(gain, 0.0, 1.0, xtol=1e-14)))
    raise ValueError("No mixture of better and worse is worth as much as the logging policy.")


def _subsets(n: int) -> Iterator[NDArray[np.bool_]]:
    """Subsets of n states but the empty one and the whole, the largest first: the least is then given up elsewhere."""
    for size in range(n - 1, 0, -1):
        for chosen in combinations(range(n), size):
            yield np.isin(np.arange(n), chosen)


CELLS = (
    GateCell(world="one step, rewards of both signs, 400 episodes", candidate="equal", n_episodes=400, one_step=True),
    GateCell(world="4 steps, rewards of both signs, 400 episodes", candidate="equal", n_episodes=400),
    GateCell(
        world="one step, rewards of both signs, 400 episodes, alpha .01",
        candidate="equal", n_episodes=400, alpha=0.01, one_step=True, logs=2.5,
    ),
    GateCell(
        world="one step, costs, 400 episodes", candidate="equal", n_episodes=400, one_step=True, reward_shift=-3.0
    ),
    GateCell(world="4 steps, costs, 400 episodes", candidate="equal", n_episodes=400, reward_shift=-3.0),
    GateCell(
        world="4 steps, costs, poor overlap, 300 episodes",
        candidate="worse", n_episodes=300, reward_shift=-3.0, behavior_exploration=0.4, candidate_exploration=1.0,
    ),
    GateCell(
        world="4 steps, rewards of both signs, poor overlap, 300 episodes",
        candidate="worse", n_episodes=300, behavior_exploration=0.4, candidate_exploration=1.0,
    ),
    GateCell(
        world="4 steps, clusters of 5 episodes share a shock, 500 episodes",
        candidate="equal", n_episodes=500, cluster_size=5, cluster_sd=0.5,
    ),
    GateCell(
        world="one step, a disaster in 1 of 1,000, 400 episodes",
        candidate="equal", n_episodes=400, one_step=True, disaster=300.0,
    ),
    GateCell(world="4 steps, rewards of both signs, 400 episodes", candidate="better", n_episodes=400),
    GateCell(world="4 steps, rewards of both signs, 1,000 episodes", candidate="better", n_episodes=1_000),
    GateCell(world="4 steps, costs, 1,000 episodes", candidate="better", n_episodes=1_000, reward_shift=-3.0),
    GateCell(
        world="one step, costs, 1,000 episodes",
        candidate="better", n_episodes=1_000, one_step=True, reward_shift=-3.0,
    ),
)  # fmt: skip
