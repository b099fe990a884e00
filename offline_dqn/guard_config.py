"""The settings of the guard, readable without anything heavy."""

from __future__ import annotations

from pydantic import Field

from datasets.settings import Settings


class GuardConfig(Settings):
    """The `[guard]` table: when version 0 acts in place of a learned policy. Without `[baseline]` there is no guard."""

    enabled: bool = True
    """Whether candidates are trained with a guard. One that a release holds stays in it."""
    false_alarm_share: float = Field(0.01, gt=0, le=0.2)
    """Share of ordinary decisions that version 0 may take over, all three causes together."""
    max_rows: int = Field(50_000, ge=1_000)
    """Rows of `train` that say what is ordinary, and of `select` that thresholds are set on, at random."""
    alert_share: float = Field(0.05, gt=0, lt=1)
    """Share of a release's live decisions taken over by version 0, by the guard or because scoring was late, beyond
    which the night raises an alert."""
