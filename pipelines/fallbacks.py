"""What a release left to version 0 in its live nights, by the log's `decided_by`."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.duck import duck, literal
from pipelines.workspace import Workspace

VERSION_ZERO = 0


@dataclass(frozen=True)
class Fallbacks:
    """Of the newest nights that hold decisions of a release.

    Attributes:
        release: whose decisions.
        n_decisions: that it was in charge of.
        n_guard, n_late: of them, those that version 0 made because its guard fired, or because scoring was late.
    """

    release: int
    n_decisions: int
    n_guard: int
    n_late: int

    @property
    def share(self) -> float:
        """Of decisions that version 0 made."""
        return (self.n_guard + self.n_late) / self.n_decisions

    def alert(self, most: float) -> str:
        """What to tell a person where that is more than `most`; "" where it is not."""
        if self.share <= most:
            return ""
        return (
            f"version 0 made {self.share:.1%} of release {self.release}'s {self.n_decisions:,} live decisions (guard "
            f"{self.n_guard / self.n_decisions:.1%}, late {self.n_late / self.n_decisions:.1%}), more than "
            f"guard.alert_share = {most:g}: see whether observations changed (`offline-dqn drift`) or the server is "
            "overloaded; after a change, train anew"
        )


def live_fallbacks(workspace: Workspace, release: int | None) -> Fallbacks | None:
    """Of the newest `drift.live_nights` nights with decisions of a release; None without any that say who decided."""
    if release in (None, VERSION_ZERO):
        return None
    assert release is not None
    lake = workspace.open_lake()
    own = f"policy_version = {literal(str(release))} AND decided_by IS NOT NULL"
    nights = workspace.config.drift.live_nights
    with duck() as connection:
        found = connection.execute(
            f"""WITH own AS (SELECT log_date, decided_by FROM {lake.scans(("steps",))["steps"]} WHERE {own}),
            newest AS (SELECT DISTINCT log_date FROM own ORDER BY log_date DESC LIMIT {nights})
            SELECT count(*), count(*) FILTER (decided_by = 'guard'), count(*) FILTER (decided_by = 'late')
            FROM own WHERE log_date IN (FROM newest)"""
        ).fetchone()
    return Fallbacks(release, *found) if found is not None and found[0] else None


def late_share(workspace: Workspace, champion: int | None) -> float:
    """Share of the champion's live decisions that came late; 0 where no log says who decided."""
    found = live_fallbacks(workspace, champion)
    return found.n_late / found.n_decisions if found is not None else 0.0
