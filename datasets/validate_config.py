"""The settings of validation: the table `[validate]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from datasets.durations import seconds_of
from datasets.settings import Settings

Severity = Literal["hold", "warn", "off"]
"""What a broken expectation does: the batch is held, or it enters the lake with a warning; `off` leaves it out."""


class SeverityConfig(Settings):
    """`[validate.severity]`: what each comparison with recent nights does when it fails.

    By default only that holds a batch which no honest log can show: nights differ for good reasons.
    """

    volume_low: Severity = "warn"
    """A finished night with far fewer rows than recent ones."""
    volume_high: Severity = "warn"
    """A night with far more rows than recent ones."""
    freshness: Severity = "warn"
    """The newest row is older than `recent.max_age`, or lies in the future."""
    null_share: Severity = "warn"
    """A nullable feature is missing more often than is usual of recent nights."""
    quarantined: Severity = "warn"
    """A larger share of rows went to quarantine than is usual of recent batches."""
    new_labels: Severity = "warn"
    """Labels that neither recent nights nor the contract's `values` know."""
    vanished_actions: Severity = "warn"
    """An action that recent nights usually held is gone."""
    propensity_high: Severity = "hold"
    """1 / behavior_prob averages above 1 for an action: under the true probabilities it cannot."""
    propensity_low: Severity = "warn"
    """It averages below 1: wrong probabilities, or an action that is at times impossible without a logged mask."""


class RecentConfig(Settings):
    """`[validate.recent]`: how a batch is compared with recent nights."""

    n_nights: int = Field(default=28, ge=1)
    """Nights before a night that it is compared with."""
    fewest_nights: int = Field(default=7, ge=1)
    """With fewer of them known nothing is compared, and the result says so. A week, so that weekends are among them."""
    volume_factor: float = Field(default=2.0, gt=1.0)
    """A night may have this many times fewer (more) rows than the quieter (busier) tenth of recent nights."""
    max_age: str = "3d"
    """How old the newest row of a batch may be at `as_of`."""
    null_share_slack: float = Field(default=0.05, ge=0.0, le=1.0)
    """How far the share missing of a nullable feature may rise above what is usual of recent nights."""
    quarantined_slack: float = Field(default=0.01, ge=0.0, le=1.0)
    """How far the share quarantined may rise above what is usual of recent batches."""
    max_new_label_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of steps whose label may be new, feature by feature."""

    @field_validator("max_age")
    @classmethod
    def _duration(cls, max_age: str) -> str:
        seconds_of(max_age)
        return max_age


class PropensityLimits(Settings):
    """`[validate.propensity]`: how far the logged probabilities may be off before a batch is held or warned of."""

    level: float = Field(default=0.9999, gt=0.0, lt=1.0)
    """Level of the intervals by cluster, all actions together. One minus this is the share of sound batches that fail,
    so it is far above the level at which the report refuses an estimate."""
    slack: float = Field(default=0.02, ge=0.0)
    """Distance of an average from 1 that is no matter, such as that of rounded probabilities."""
    fewest_taken: int = Field(default=10, ge=2)
    """An action taken less often is not judged."""
    fewest_effective: float = Field(default=30.0, ge=2.0)
    """Nor is one whose taken rows, weighted by 1 / p, are worth fewer equally probable ones."""


class ValidateConfig(Settings):
    """`[validate]`: what a batch may look like and still enter the lake."""

    max_quarantined_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Largest share of a batch's new rows that may be in quarantine; above it the batch is held."""
    max_null_share: float = Field(default=0.2, ge=0.0, le=1.0)
    """Largest share of steps in which a nullable feature may be missing, feature by feature."""
    max_unseen_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest share of labels that a categorical feature's `values` do not list: above it, labels were renamed."""
    keep_docs: int = Field(default=60, ge=1)
    """Pages of validation results that are kept; older ones are made again when asked for."""
    recent: RecentConfig = RecentConfig()
    propensity: PropensityLimits = PropensityLimits()
    severity: SeverityConfig = SeverityConfig()
