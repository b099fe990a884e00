"""The settings of evaluation, readable without torch and scipy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datasets.settings import Settings
from offline_dqn.fqe_config import FqeConfig
from reports.deciding import DecidingConfig

IntervalMethod = Literal["percentile", "bca", "studentized", "student_t"]


class PropensityConfig(Settings):
    """Checking logged probabilities, and estimating missing ones."""

    check_level: float = Field(0.99, gt=0, lt=1)
    """Level at which all actions together must average to 1."""
    fewest_taken: int = Field(10, ge=2)
    """An action taken less often than this is listed as undecided instead of judged."""
    fewest_effective: float = Field(30.0, ge=2)
    """And so is one whose taken rows, weighted by 1 / p, are worth fewer equally probable ones than this: the average
    then hangs on a few rare rows, which a right log may well lack."""
    model: Literal["logistic", "boosting"] = "logistic"
    """What estimates missing probabilities: multinomial logistic regression or gradient-boosted trees."""
    calibration_share: float = Field(0.2, gt=0, lt=1)
    """Share of clusters kept from the first fit to calibrate it on."""


class AssessmentConfig(Settings):
    """How estimates and intervals are made."""

    level: float = Field(0.95, gt=0, le=0.99)
    """Level of the intervals shown in the report."""
    interval: IntervalMethod = "percentile"
    """How the shown intervals are made; what decides is the gate's. On skewed returns `studentized` errs least."""
    smallest_behavior_prob: float | None = Field(None, gt=0, lt=1)
    """Probability below which whatever wrote the log never takes an available action, by its design (an exploration
    share over the number of actions). It gives weights a largest possible value, which bounds by Hoeffding and
    Bernstein need; None: unknown."""
    n_replicates: int = Field(10_000, ge=2_000)
    """Bootstrap replicates; raised to 100 / alpha of the gate where that is more."""
    agreement_level: float = Field(0.99, gt=0, le=0.99)
    """Level of the interval of deciding minus checking estimator, which must contain 0."""
    largest_step_table: int = Field(20_000_000, ge=1)
    """Episodes times longest length up to which WPDIS and WDR are computed; beyond it WIS checks."""
    propensity: PropensityConfig = PropensityConfig()


class EvaluateConfig(AssessmentConfig):
    """The evaluation stage."""

    n_folds: int = Field(5, ge=2)
    """Folds of clusters among the gate episodes, each modelled by what lies outside it."""
    fqe: FqeConfig = FqeConfig()
    deciding: DecidingConfig = DecidingConfig()
    placebo_halves: int = Field(4_000, ge=400)
    """Random halves of the log in which a difference whose truth is 0 meets the gate's bound."""
    example_episodes: int = Field(4, ge=0, le=20)
    """Gate episodes that the report shows step by step, where the candidate departs most; 0 keeps logged rows out."""
