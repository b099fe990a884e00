"""Records of what a candidate changes, of what moves it, and of whether its own Q-values keep their word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RegionChange:
    """One region of the observations, and what is done there."""

    where: str
    n_steps: int
    n_episodes: int
    disagreement: float
    """Mean over the region's steps, in [0, 1]."""
    share_of_all: float
    """Share of this region in all disagreement."""
    candidate_shares: Mapping[str, float]
    """Average probability of each action."""
    other_shares: Mapping[str, float]
    """The same of the baseline; for the log the share of steps that took the action."""


@dataclass(frozen=True)
class ExampleStep:
    """One logged step, and what each policy would have done."""

    step: int
    """From 1, within the episode."""
    observation: Mapping[str, float | str | bool | None]
    action: str
    behavior_prob: float | None
    candidate_probs: Mapping[str, float]
    baseline_probs: Mapping[str, float]
    """Empty where the logging policy is the baseline: only the logged action's probability is known."""
    reward: float
    disagreement: float


@dataclass(frozen=True)
class ExampleEpisode:
    """An episode around the step on which the candidate departs most."""

    episode_id: str
    night: str
    where: str
    """The region of that step, in words."""
    peak_step: int
    n_steps: int
    """Of the whole episode; `steps` may be a stretch of it."""
    episode_return: float
    """Discounted, of the whole episode, as logged."""
    steps: tuple[ExampleStep, ...]


@dataclass(frozen=True)
class FeatureEffect:
    """What happens to the decisions when one feature's values are dealt anew among the steps."""

    feature: str
    probability_moved: float
    """Mean over steps of half the sum of absolute changes of the action probabilities, in [0, 1]."""
    gap_lost: float | None
    """Mean drop of Q(best action) - Q(best other one), in reward units; None for a policy without values."""
    decisions_turned: float
    """Share of steps whose most probable action changes."""
    spread: float
    """Standard deviation over the repeats of the number that ranks: `gap_lost`, or `probability_moved`."""


@dataclass(frozen=True)
class Changes:
    """Where and how the candidate departs from what is done today."""

    against: Literal["baseline", "log"]
    """"log": the logging policy is the baseline, and its probabilities are known for the logged actions alone."""
    disagreement: float
    """Mean over the gate steps, in [0, 1]: the probability that is moved to other actions; "log": at least that."""
    other_action_share: float
    """Share of steps on which the candidate's most probable action is another than the baseline's, or the logged."""
    regions: tuple[RegionChange, ...]
    """Those with the largest share of all disagreement first."""
    n_regions: int
    episodes: tuple[ExampleEpisode, ...]
    shown_features: tuple[str, ...]
    """Features that the episodes show, those that move the decision most first."""
    features: tuple[FeatureEffect, ...]
    """Strongest first; empty where there is one feature or no step with a choice."""
    n_permuted_steps: int
    n_repeats: int


@dataclass(frozen=True)
class QBin:
    """Steps with similar own Q-values."""

    n_steps: int
    own: float
    """Mean own value of the greedy action, in reward units."""
    evaluated: float | None
    """Mean of the same value, corrected by what the log shows of the next steps; None where it cannot be weighted."""
    low: float | None
    high: float | None
    """Two-sided interval of `evaluated`, by cluster."""
    disagreement: float | None
    """Mean standard deviation of the greedy action's value over an ensemble; None for one network."""


@dataclass(frozen=True)
class QCalibration:
    """A policy's own Q-values against the log, from low values to high."""

    bins: tuple[QBin, ...]
    n_ahead: int
    """Logged steps over which own values are corrected; beyond them the policy's own word is taken."""
    level: float
    excess: float | None
    """Mean over all steps of own minus evaluated, in reward units."""
    refused: str | None = None
    """Why nothing is evaluated, in one sentence; None where it is."""


@dataclass(frozen=True)
class NightDrift:
    """How far each column moved in each night of `gate` from the episodes that the candidate was fitted on."""

    columns: tuple[str, ...]
    """Those that moved furthest first."""
    nights: tuple[str, ...]
    """Ascending."""
    n_episodes: tuple[int, ...]
    """Of each night."""
    psi: tuple[tuple[float, ...], ...]
    """By column, then night, in nats."""
    allowed: tuple[tuple[float, ...], ...]
    """PSI that chance explains 99 times in 100 were each cluster one row, and at least the smallest that matters."""
    n_columns: int
    """In all; `columns` may be fewer."""
    n_nights: int
    """In all; `nights` are the newest."""
