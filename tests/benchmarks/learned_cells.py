"""Releases from beginning to end: candidates are learned on a log, one is chosen, and the gate judges that one.

The candidate differs from log to log, so it is worse in some and better in others, and what chose it was the best of
what it saw: the cells with a fixed candidate cannot show what that does to the gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from zlib import crc32

import numpy as np

from datasets.encoding import Encoder, fit_encoder
from datasets.replay import TRAIN, Replay
from offline_dqn.candidates import Candidate, counted_candidates, other_forms, simple_candidates
from offline_dqn.description import AnyPolicy
from offline_dqn.fqe_config import FqeConfig
from reports.evaluate_config import EvaluateConfig
from reports.evaluation import evaluate_candidate
from reports.gate import GateConfig
from reports.judging import Judge
from reports.select_config import SelectConfig
from reports.selection import select_candidate
from tests.benchmarks.gate_release import TABLE_FQE
from tests.benchmarks.gate_worlds import Conditions, Floats, GateWorld, draw_log, gate_world
from tests.benchmarks.outcomes import Outcome, level_of, outcome_of
from tests.benchmarks.tables import soft_around


def _dealt(horizon: int, n_episodes: int, noise: float = 0.0) -> Conditions:
    """As [snapshot] deals episodes by default: half to train on, a tenth to choose on, the rest to the gate."""
    return Conditions(horizon=horizon, n_episodes=n_episodes, noise=noise, n_others=1.5, select=1 / 6)


@dataclass(frozen=True, kw_only=True)
class LearnedCell:
    """Plans on the counted model, their softer forms and the simple policies compete; the log is the baseline."""

    table: str
    conditions: Conditions
    logger: float
    """Its share of uniform decisions; the others are the best ones."""
    exploration: float
    """Of whatever is learned."""
    alpha: float = 0.05
    limit: bool = False
    power: float | None = None
    logs: float = 0.1

    @property
    def world(self) -> str:
        """The world, its logger and the log, in words."""
        about = gate_world(self.table).about
        cut = f"cut at {self.conditions.horizon} steps" if self.conditions.horizon > 1 else "one step"
        return (
            f"{about}; {cut}; {self.conditions.n_episodes:,} gate episodes, logger {self.logger:.0%} uniform; "
            "learned, chosen and judged"
        )

    @property
    def candidate(self) -> str:
        """What it does."""
        return f"learned, {self.exploration:.0%} uniform"

    def __call__(self, seed: int) -> Outcome:
        """What the gate makes of what was learned on one log."""
        world, logger, log_value = _logger(self)
        horizon = self.conditions.horizon
        replay = draw_log(world, logger, self.conditions, np.random.default_rng([seed, crc32(self.world.encode())]))
        gate = GateConfig(alpha=self.alpha)
        config = EvaluateConfig(n_replicates=2_000, level=level_of(seed), fqe=TABLE_FQE)
        candidate = chosen(replay, gate, self.exploration, TABLE_FQE, seed)
        states = np.arange(world.table.n_states)
        probs = candidate.action_probs(world.observe(states), world.table.available)
        evaluation = evaluate_candidate(
            replay, candidate=candidate, baseline=None, version_zero=None, candidate_name="learned",
            baseline_name="the log", excluded={}, explain=False, config=config, gate_config=gate, seed=seed,
        )  # fmt: skip
        return outcome_of(evaluation, candidate_value=world.table.value(probs, horizon), log_value=log_value)


def chosen(replay: Replay, gate: GateConfig, exploration: float, fqe: FqeConfig, seed: int) -> AnyPolicy:
    """The best candidate on `select`, as a night would choose it, without networks."""
    train, select = replay.of_split(TRAIN), SelectConfig()
    encoder = fit_encoder(train.contract, train.observations)
    config = EvaluateConfig()
    judge = Judge(
        replay, encoder, baseline=None, baseline_wrote_select=False, config=select, fqe=fqe,
        propensity=config.propensity, gate=gate, n_gate_episodes=int((replay.split != TRAIN).sum()), seed=seed,
    )  # fmt: skip

    def forms(candidate: Candidate) -> Iterator[Candidate]:
        return other_forms(
            candidate, judge.episodes, None, temperatures=select.temperatures,
            support_thresholds=select.support_thresholds, mixture_shares=select.mixture_shares,
        )  # fmt: skip

    return select_candidate(_candidates(train, encoder, exploration, select), judge, other_forms=forms).policy


def _candidates(train: Replay, encoder: Encoder, exploration: float, select: SelectConfig) -> Iterator[Candidate]:
    yield from simple_candidates(train, exploration)
    yield from counted_candidates(
        train, encoder, exploration, pessimisms=select.pessimisms, largest=select.largest_counted
    )


@cache
def _logger(cell: LearnedCell) -> tuple[GateWorld, Floats, float]:
    world = gate_world(cell.table)
    logger = soft_around(world.best_policy(), world.table.available, cell.logger)
    return world, logger, world.table.value(logger, cell.conditions.horizon)


CELLS = (
    LearnedCell(table="one step", conditions=_dealt(1, 400, 1.0), logger=0.3,
                exploration=0.3, logs=0.3),
    LearnedCell(table="one step", conditions=_dealt(1, 400, 1.0), logger=0.8,
                exploration=0.3),
    LearnedCell(table="5 steps", conditions=_dealt(60, 400, 1.0), logger=0.3,
                exploration=0.3, logs=0.3),
    LearnedCell(table="FrozenLake 4x4", conditions=_dealt(100, 1_000), logger=0.5,
                exploration=0.3),
)  # fmt: skip
