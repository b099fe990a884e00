"""Settings of the night as a whole: the `[nightly]` table of offline_dqn.toml."""

from __future__ import annotations

from pydantic import Field

from datasets.settings import Settings


class TimeoutConfig(Settings):
    """Hours that a stage may take. A stage that takes longer hangs or was given too much; the night then fails."""

    ingest: float = Field(4.0, gt=0)
    drift: float = Field(2.0, gt=0)
    snapshot: float = Field(2.0, gt=0)
    train: float = Field(24.0, gt=0)
    evaluate: float = Field(6.0, gt=0)
    retention: float = Field(2.0, gt=0)


class NightlyConfig(Settings):
    """How a night is run, repeated and followed by a review."""

    timeout_hours: TimeoutConfig = TimeoutConfig()
    """By stage."""
    resume_within_hours: float = Field(20.0, ge=0)
    """Hours since its start within which a night that died is taken up where it stopped; an older one begins afresh,
    with the logs that have come since. Less than a day, so that the next scheduled night is one of its own."""
    review_days: float | None = Field(14.0, gt=0)
    """Days after its evaluation within which a candidate that passed must be promoted or rejected; then it lapses, and
    is evaluated again before it can be promoted. None: it waits for ever."""
