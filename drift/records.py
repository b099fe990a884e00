"""What a drift check found, column by column: plain records that a report prints and a decision weighs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from drift.windows import ColumnKind, ColumnRole

Status = Literal["drifted", "stable", "not enough data"]


@dataclass(frozen=True, kw_only=True)
class ColumnDrift:
    """One column's comparison. Divergences are in nats; a number that does not exist is None.

    Attributes:
        status: `not enough data` where the column cannot be judged; `reason` then says why.
        role: what the column is of.
        psi, kl, kl_reverse, js: on the bins; `kl` is KL(live || reference), `kl_reverse` KL(reference || live), and
            PSI their sum.
        wasserstein: numeric columns only, in the column's unit, over the values that are not missing.
        typical_psi: about the median PSI of an unchanged night.
        threshold: PSI that an unchanged night exceeds in no column at the promised rate; drift takes that and
            `min_psi`.
        p_value: chance that an unchanged night shows any column this far out.
        since: of a drifted column the night from which on it stands out, as an ISO date.
        unseen_share: live rows whose label the reference does not hold, or holds too rarely for a bin of its own.
        bins, reference_probs, live_probs: label and the two shares of each bin.
    """

    name: str
    kind: ColumnKind
    exogenous: bool
    status: Status
    reason: str
    role: ColumnRole = "feature"
    reference_rows: int
    live_rows: int
    psi: float | None = None
    kl: float | None = None
    kl_reverse: float | None = None
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
    since: str | None = None

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
class JointDrift:
    """Whether the columns moved together in a way that no single one of them need show.

    Attributes:
        method: `classifier`, a two-sample test by the area under the ROC curve of a classifier that tells live rows
            from the reference's; or `mmd`, the squared maximum mean discrepancy.
        status: `not enough data` where it was not computed; `reason` then says why.
        statistic: that area (.5 where nothing tells the windows apart), or the squared discrepancy.
        typical: about what an unchanged night shows.
        threshold: what an unchanged night exceeds at the rate that this test was given.
        p_value: chance that an unchanged night goes this far.
        rows: of the reference and of the live window that were looked at.
        columns: the columns that tell most, each with its share of what the classifier can do with all of them.
    """

    method: Literal["classifier", "mmd"]
    status: Status
    reason: str
    statistic: float | None = None
    typical: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    rows: tuple[int, int] = (0, 0)
    columns: tuple[tuple[str, float], ...] = ()

    @property
    def drifted(self) -> bool:
        """Beyond chance at the rate that this test was given."""
        return self.status == "drifted"


@dataclass(frozen=True, kw_only=True)
class SlowDrift:
    """A column that moved over several nights, though none of them need stand out alone.

    Attributes:
        name: of the column.
        since: first night, ISO date, of the stretch up to the newest that stands out most.
        n_nights: in that stretch.
        psi: of the stretch against the reference, in nats.
        threshold: PSI that a stretch of as many unchanged nights exceeds at the rate that all stretches share, and at
            least the smallest size that matters.
        p_value: chance that unchanged nights show any column in any stretch this far out.
    """

    name: str
    since: str
    n_nights: int
    psi: float
    threshold: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class DriftEffect:
    """What a drifted column does to the champion: live episodes as they are, against the same ones with the column put
    back to how the reference has it.

    Attributes:
        column: its name.
        share_change: by how much the champion's action shares differ, half the sum of absolute differences, in [0, 1].
        value_change: live minus put back, of the champion's estimated value per episode, in units of the return; None
            where it has no Q-values.
        overlap_change: live minus put back, of the share of decisions in which the log takes the champion's likeliest
            action with at least a tenth of its probability; None where no behavior probabilities are known.
        sentence: the same in words and numbers.
    """

    column: str
    share_change: float
    value_change: float | None
    overlap_change: float | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Why a shift looks like poisoned or gamed data rather than like a changed world.

    Attributes:
        kind: what it is confined to, or the reward that rises while an outcome falls.
        column: what shifted.
        also: other columns that shifted with mostly the same episodes.
        where: the sources, policy versions or episodes it is confined to, or the outcome that falls.
        share: of the live episodes, that these are.
        sentence: what was found, in words and numbers.
    """

    kind: Literal["few sources", "one policy version", "few episodes", "reward against outcome"]
    column: str
    where: tuple[str, ...]
    share: float
    sentence: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NightlyDrift:
    """C columns in M nights since the reference, each night against it.

    Attributes:
        columns: (C,) names; nights: (M,) ISO dates, ascending, nights without an episode left out.
        n_episodes: (M,) that started in each.
        psi: (C, M) in nats; None where the night, or the reference for such a night, holds no entry.
        threshold: (C,) PSI from which the live window would be called drifted; None where none is known.
        relative: (M,) how much further than the live window chance takes a night of its size, about; empty for alike.
    """

    columns: tuple[str, ...]
    nights: tuple[str, ...]
    n_episodes: tuple[int, ...]
    psi: tuple[tuple[float | None, ...], ...]
    threshold: tuple[float | None, ...]
    relative: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """The comparison of two windows.

    The false-alarm rate is shared: half of it by the columns of the live window together, a quarter by the joint tests,
    a quarter by stretches of nights.

    Attributes:
        status: of the whole: drifted if any column is, `not enough data` if no column could be judged.
        sentence: the result in words and numbers.
        unit, n_units: what the null took as independent, and how many the reference holds; None where none was drawn.
        optimistic: the null knows nothing of shocks that a night's episodes share, so it alarms too often.
        joint: the tests of all columns at once.
        slow: columns that moved over several nights though the live window alone does not show it, the furthest first.
        effects: what the drifted columns do to the champion, the largest first.
        suspicions: signs of poisoned or gamed data.
        not_looked_for: which of these could not be looked for and why, as a clause; "" where all could.
        left_out: live episodes that were not compared, as the reference lacks their hours, as a clause; "" for none.
        nightly: night by night since the reference; None where nothing was compared.
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
    joint: tuple[JointDrift, ...] = ()
    slow: tuple[SlowDrift, ...] = ()
    effects: tuple[DriftEffect, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()
    not_looked_for: str = ""
    left_out: str = ""
    nightly: NightlyDrift | None = None

    @property
    def drifted_columns(self) -> tuple[ColumnDrift, ...]:
        """The drifted columns, the largest PSI first."""
        return tuple(sorted((c for c in self.columns if c.drifted), key=lambda c: -(c.psi or 0.0)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "columns": [column.to_json() for column in self.columns]}
