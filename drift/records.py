"""What a drift check found, column by column: plain records that a report prints and a decision weighs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from drift.windows import ColumnKind

Status = Literal["drifted", "stable", "not enough data"]


@dataclass(frozen=True, kw_only=True)
class ColumnDrift:
    """One column's comparison. Divergences are in nats; a number that does not exist is None.

    Attributes:
        status: `not enough data` where the column cannot be judged; `reason` then says why.
        psi, kl, js: on the bins; KL is KL(live || reference).
        wasserstein: numeric columns only, in the column's unit, over the values that are not missing.
        typical_psi: about the median PSI of an unchanged night.
        threshold: PSI that an unchanged night exceeds in no column at the promised rate; drift takes that and
            `min_psi`.
        p_value: chance that an unchanged night shows any column this far out.
        unseen_share: live rows whose label the reference does not hold, or holds too rarely for a bin of its own.
        bins, reference_probs, live_probs: label and the two shares of each bin.
    """

    name: str
    kind: ColumnKind
    exogenous: bool
    status: Status
    reason: str
    reference_rows: int
    live_rows: int
    psi: float | None = None
    kl: float | None = None
    js: float | None = None
    wasserstein: float | None = None
    typical_psi: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    reference_missing_share: float | None = None
    live_missing_share: float | None = None
    unseen_share: float | None = None
    bins: tuple[str, ...] = ()
    reference_probs: tuple[float, ...] = ()
    live_probs: tuple[float, ...] = ()

    @property
    def drifted(self) -> bool:
        """Beyond chance at the promised rate, and large enough to matter."""
        return self.status == "drifted"

    def allowed(self, min_psi: float) -> float | None:
        """PSI from which the column drifts: its threshold, and never less than `min_psi`; None where there is none."""
        return None if self.threshold is None else max(self.threshold, min_psi)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """The comparison of two windows.

    Attributes:
        status: of the whole: drifted if any column is, `not enough data` if no column could be judged.
        sentence: the result in words and numbers.
        unit, n_units: what the null took as independent, and how many the reference holds; None where none was drawn.
        optimistic: the null knows nothing of shocks that a night's episodes share, so it alarms too often.
        reference_episodes, reference_nights, live_episodes, live_nights: sizes of the windows.
        effective_reference_episodes: what the weighted reference is worth in episodes.
    """

    columns: tuple[ColumnDrift, ...]
    status: Status
    sentence: str
    unit: Literal["night", "cluster"] | None
    n_units: int | None
    optimistic: bool
    false_alarm_rate: float
    min_psi: float
    reference_episodes: int
    effective_reference_episodes: float
    reference_nights: int
    live_episodes: int
    live_nights: int

    @property
    def drifted_columns(self) -> tuple[ColumnDrift, ...]:
        """The drifted columns, the largest PSI first."""
        return tuple(sorted((c for c in self.columns if c.drifted), key=lambda c: -(c.psi or 0.0)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "columns": [column.to_json() for column in self.columns]}
