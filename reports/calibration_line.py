"""The line of the calibration that fits an evaluation: how often the gate erred in the most similar simulated world.

`make calibrate` judges many simulated releases whose true values are known and ships, for each world, how often a
worse candidate passed and a better one did. What an evaluation can be likened by is known without the truth: the length
of its episodes, their number, the overlap, and the estimator that decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from reports.records import CalibrationLine, Evaluation

SHIPPED = "calibration.json"
"""Beside this module; written by `make calibrate`."""

FARTHEST = 3.0
"""Factor by which horizon, episodes or overlap may differ from a world that is still called similar."""


@dataclass(frozen=True, kw_only=True)
class CalibratedWorld:
    """What many simulated releases of one world showed, with the candidate as much worse as the margin allows."""

    world: str
    candidate: str
    """How it differs from the policy that wrote the log."""
    estimator: str
    """That decided in most logs."""
    horizon: float
    """Mean steps of an episode."""
    n_episodes: int
    """Of the gate."""
    overlap: float | None
    """Mean effective sample size of the deciding weights of the candidate, in shares of the episodes."""
    level: float
    """Stated chance to pass."""
    n_logs: int
    false_pass: float
    """Share of the logs in which it passed."""
    upper: float
    """One-sided 95 % upper limit of that chance."""
    held: bool
    """Whether that limit is at most 1.5 times the level."""
    power: float | None = None
    """Share of logs of the same world in which a better candidate passed; None where none was tried."""
    better: str | None = None
    """How that one differs."""


def fitting_line(
    *,
    horizon: float,
    n_episodes: int,
    overlap: float | None,
    estimator: str | None,
    level: float,
    worlds: Sequence[CalibratedWorld],
) -> CalibrationLine:
    """The most similar calibrated world in words, or that there is none.

    Similar is a world in which the same estimator decided, with horizon and episodes within a factor of `FARTHEST`, and
    an overlap that is not smaller by more than that; the nearest in logarithms is taken.

    Args:
        horizon: mean steps of an episode.
        n_episodes: of the gate.
        overlap: effective sample size of the candidate's weights in shares of the episodes; None where unknown.
        estimator: that decides; None where nothing does.
        level: alpha of the gate.
        worlds: the calibration.
    """
    own = f"H about {horizon:.0f}, {n_episodes:,} episodes"
    if estimator is None:
        return CalibrationLine(False, "Nothing decides here, so no calibrated error rate applies.")
    distances = [(_distance(w, horizon, n_episodes, overlap, level), w) for w in worlds if w.estimator == estimator]
    near = [(distance, world) for distance, world in distances if distance is not None]
    if not near:
        return CalibrationLine(
            False,
            f"No calibrated world is like this one ({own}{_overlap_words(overlap)}, {estimator} decides): how often "
            f"the gate errs here was not measured. {_range_words([w for _, w in distances])}",
        )
    world = min(near, key=lambda pair: pair[0])[1]
    passed = (
        f"In worlds like this (H about {world.horizon:.0f}, {world.n_episodes:,} episodes), worse candidates passed in "
        f"{world.false_pass:.1%} of {world.n_logs:,} logs at a stated {world.level:.0%}"
    )
    power = "." if world.power is None else f"; better ones in {world.power:.0%}."
    doubt = "" if world.held else f" That level is not shown to be held: the rate may be up to {world.upper:.1%}."
    return CalibrationLine(
        True,
        passed + power + doubt,
        world=f"{world.world}; {world.candidate}",
        horizon=world.horizon,
        n_episodes=world.n_episodes,
        overlap=world.overlap,
        level=world.level,
        false_pass=world.false_pass,
        upper=world.upper,
        n_logs=world.n_logs,
        power=world.power,
        held=world.held,
    )


def line_of(evaluation: Evaluation) -> CalibrationLine:
    """The line that fits an evaluation, from the calibration that came with this version."""
    deciding = (o for o in evaluation.overlaps if o.policy == "candidate" and o.decides)
    overlap = next((o.effective_sample_size for o in deciding), None)
    n_episodes = evaluation.counts.n_episodes
    return fitting_line(
        horizon=evaluation.counts.mean_length,
        n_episodes=n_episodes,
        overlap=None if overlap is None else overlap / n_episodes,
        estimator=evaluation.deciding_estimator,
        level=evaluation.alpha,
        worlds=shipped_worlds(),
    )


@cache
def shipped_worlds() -> tuple[CalibratedWorld, ...]:
    """The calibration that came with this version."""
    text = (resources.files("reports") / SHIPPED).read_text(encoding="utf-8")
    return tuple(CalibratedWorld(**row) for row in json.loads(text))


def _distance(
    world: CalibratedWorld, horizon: float, n_episodes: int, overlap: float | None, level: float
) -> float | None:
    """Sum of logarithms of the factors apart; None where one of them is too large."""
    apart = [abs(np.log(horizon / world.horizon)), abs(np.log(n_episodes / world.n_episodes))]
    if overlap is not None and world.overlap is not None:
        apart.append(np.log(world.overlap / max(overlap, 1e-9)) if overlap < world.overlap else 0.0)
    if max(apart) > np.log(FARTHEST):
        return None
    closeness = 0.0 if overlap is None or world.overlap is None else abs(np.log(world.overlap / max(overlap, 1e-9)))
    return float(sum(apart[:2]) + closeness + abs(np.log(level / world.level)))


def _overlap_words(overlap: float | None) -> str:
    return "" if overlap is None else f", an effective sample of {overlap:.0%} of them"


def _range_words(worlds: Sequence[CalibratedWorld]) -> str:
    if not worlds:
        return "No calibrated world was decided by it."
    horizons, sizes = [w.horizon for w in worlds], [w.n_episodes for w in worlds]
    overlaps = [w.overlap for w in worlds if w.overlap is not None]
    covered = f" and effective samples from {min(overlaps):.0%}" if overlaps else ""
    return (
        f"Calibrated are {min(horizons):.0f} to {max(horizons):.0f} steps, {min(sizes):,} to {max(sizes):,} "
        f"episodes{covered}, not every combination of them."
    )
