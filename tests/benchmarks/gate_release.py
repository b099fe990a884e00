"""Releases whose true gain is known exactly, each judged by the whole evaluation and every check of the gate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal
from zlib import crc32

import numpy as np

from offline_dqn.fqe_config import FqeConfig
from reports.evaluate_config import EvaluateConfig
from reports.evaluation import evaluate_candidate
from reports.gate import GateConfig
from tests.benchmarks.gate_worlds import Conditions, Floats, GateWorld, TablePolicy, draw_log, gate_world, shifted
from tests.benchmarks.outcomes import Outcome, level_of, outcome_of
from tests.benchmarks.tables import soft_around

Direction = Literal["better", "equal", "worse", "looser", "riskier"]

TABLE_FQE = FqeConfig(n_random_features=0, ridges=(3.0,))
"""Values of a table are linear in its one-hot states: random cosines would add nothing but time."""


@dataclass(frozen=True, kw_only=True)
class GateCell:
    """One world, logger, candidate and size of log. Whatever wrote the log is the baseline.

    "equal" gains exactly as much as it loses; "worse", "looser" and "riskier" lie exactly at the margin, which is their
    true loss, or beyond it where `margin` is given; "better" asks for power.
    """

    table: str
    """Name of the world."""
    conditions: Conditions
    logger: float
    """Its share of uniform decisions; the others are the best ones."""
    direction: Direction
    shift: float
    """Probability that the candidate moves; see `shifted`."""
    margin: float | None = None
    note: str = ""
    """What else is special about the world."""
    alpha: float = 0.05
    limit: bool = False
    """Shown as a limit of the method, and no promise."""
    power: float | None = None
    """Promised share of passes of a better candidate."""
    logs: float = 1.0
    """How many logs are drawn, in shares of what was asked for."""

    @property
    def world(self) -> str:
        """The world, its logger and the log, in words."""
        conditions = self.conditions
        parts = [self.about, f"cut at {conditions.horizon} steps" if conditions.horizon > 1 else "one step"]
        parts.append(f"{conditions.n_episodes:,} gate episodes, logger {self.logger:.0%} uniform")
        parts += [self.note] if self.note else []
        return "; ".join(parts)

    @property
    def about(self) -> str:
        """The decision problem in a few words."""
        return gate_world(self.table, self.conditions.cost).about

    @property
    def candidate(self) -> str:
        """What the candidate does, in words."""
        uniform = self.shift + (1 - self.shift) * self.logger
        return {
            "better": f"better: {(1 - self.shift) * self.logger:.0%} uniform",
            "worse": f"worse: {self.shift:.0%} moved to the worst action",
            "riskier": f"worse: {self.shift:.0%} moved to the action with the disaster",
            "looser": f"worse: {uniform:.0%} uniform",
            "equal": f"equal: up to {self.shift:.0%} moved, half of the states for the better",
        }[self.direction] + ("" if self.margin is None else " (margin 0)")

    @property
    def at_margin(self) -> bool:
        """Whether the candidate is worth exactly the baseline minus the margin."""
        return self.direction != "better" and self.margin is None

    def __call__(self, seed: int) -> Outcome:
        """What the gate makes of one log."""
        release = release_of(self)
        log_name = f"{self.world} {self.candidate}"  # not the sizes of the search alone: cells shall not share logs
        rng = np.random.default_rng([seed, crc32(log_name.encode())])
        replay = draw_log(release.world, release.logger, self.conditions, rng)
        candidate = TablePolicy(replay.contract, release.world, release.candidate, release.action_values)
        loss = max(release.log_value - release.candidate_value, 0.0)
        gate = GateConfig(alpha=self.alpha, margin=loss if self.margin is None else self.margin)
        config = EvaluateConfig(n_replicates=2_000, level=level_of(seed), fqe=TABLE_FQE)
        evaluation = evaluate_candidate(
            replay, candidate=candidate, baseline=None, version_zero=None, candidate_name="candidate",
            baseline_name="the log", excluded={}, explain=False, config=config, gate_config=gate, seed=seed,
        )  # fmt: skip
        return outcome_of(evaluation, candidate_value=release.candidate_value, log_value=release.log_value)


@dataclass(frozen=True, eq=False)
class Release:
    """A cell's policies as (S, A) tables, the candidate's own Q-values, and the exact values over the horizon."""

    world: GateWorld
    logger: Floats
    candidate: Floats
    action_values: Floats
    candidate_value: float
    log_value: float


@cache
def release_of(cell: GateCell) -> Release:
    """The cell's policies and their values."""
    world, horizon = gate_world(cell.table, cell.conditions.cost), cell.conditions.horizon
    logger = soft_around(world.best_policy(), world.table.available, cell.logger)
    candidate = shifted(world, logger, cell.direction, cell.shift, cell.conditions)
    log_value = world.table.value(logger, horizon)
    return Release(
        world=world,
        logger=logger,
        candidate=candidate,
        action_values=world.table.action_values(candidate, horizon),
        candidate_value=log_value if cell.direction == "equal" else world.table.value(candidate, horizon),
        log_value=log_value,
    )
