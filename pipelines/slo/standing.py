"""How the objectives of a workspace stand now, and what that forbids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from pipelines.metrics.history import MetricHistory
from pipelines.metrics.server import Counters, ReadingError, read_server
from pipelines.nights import read_nights
from pipelines.slo.config import ObjectiveConfig
from pipelines.slo.events import counted_events
from pipelines.workspace import Workspace
from reports.error_budgets import ErrorBudget, Objective, error_budget


@dataclass(frozen=True)
class Standing:
    """One objective.

    Attributes:
        objective: as configured.
        stops_promotions: whether its spent budget does.
        budget: None where nothing was counted in its window.
        absent: why nothing was counted.
    """

    objective: Objective
    stops_promotions: bool
    budget: ErrorBudget | None
    absent: str

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.budget is None:
            return "unknown"
        spent = ["spent"] if self.budget.spent else []
        burning = ["burning"] if self.budget.burning else []
        return ", ".join([*spent, *burning]) or "ok"

    @property
    def stops(self) -> bool:
        """Whether promotions are stopped for it."""
        return self.stops_promotions and self.budget is not None and self.budget.spent

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        known = {"objective": self.objective.share} if self.budget is None else self.budget.to_json()
        return {**known, "state": self.state, "stops_promotions": self.stops, "absent": self.absent or None}


def standings(workspace: Workspace, *, live: bool, now: datetime | None = None) -> tuple[list[Standing], list[str]]:
    """Every objective that is watched, and what could not be read.

    Args:
        live: ask the policy server what it has counted since the last night; else the records of nights alone tell.
        now: by the clock.
    """
    config = workspace.config.slo
    if not config.tables():
        return [], []
    now = (now or datetime.now(UTC)).astimezone(UTC)
    by_the_log = workspace.given_as_of is not None or workspace.config.ingest.as_of == "newest"
    today = workspace.as_of(workspace.open_lake()).astimezone(UTC).date() if by_the_log else now.date()
    reading, warnings = _read(workspace, today) if live else (None, [])
    nights, records = MetricHistory(workspace.metrics_path).nights(), read_nights(workspace.nights_path)
    counted = counted_events(config, nights, records, now=now, reading=reading)
    tables: Mapping[str, ObjectiveConfig] = config.tables()
    found = []
    for name, objective in config.objectives().items():
        # Runs are counted by the clock, and all else by the log's time, which for a simulated log is another.
        newest = now.date() if objective.nightly else today
        budget = error_budget(objective, counted[name].nights, newest)
        absent = counted[name].absent if budget is None else ""
        found.append(Standing(objective, tables[name].stops_promotions, budget, absent))
    return found, warnings


def _read(workspace: Workspace, today: date) -> tuple[tuple[date, Counters] | None, list[str]]:
    address, tables = workspace.config.metrics.server, workspace.config.slo.tables()
    if address is None or not {"availability", "latency"} & set(tables):
        return None, []
    try:
        return (today, read_server(address)), []
    except ReadingError as error:
        return None, [f"{error}; what it counted since the last night is missing from availability and latency"]


def why_stopped(workspace: Workspace) -> str:
    """Why nothing may be promoted now, in sentences; "" where no budget is spent."""
    found, _ = standings(workspace, live=True)
    spent = [standing for standing in found if standing.stops]
    if not spent:
        return ""
    listed = "; ".join(in_words(standing.budget) for standing in spent if standing.budget is not None)
    budgets = "error budget is spent" if len(spent) == 1 else "error budgets are spent"
    return f"The {budgets}: {listed}. `offline-dqn slo` shows it; `offline-dqn rollback` is never refused."


def in_words(budget: ErrorBudget) -> str:
    """An objective's budget as a clause."""
    objective = budget.objective
    what = "late" if objective.nightly else "bad"
    return (
        f"{objective.name} ({budget.n_bad:,.0f} {what} of {budget.n_events:,.0f} in {objective.window_nights} nights, "
        f"{budget.n_allowed:,.4g} allowed by {100 * objective.share:g} %)"
    )


def burns(found: Sequence[Standing]) -> list[str]:
    """Those that burn too fast, a clause each."""
    return [
        f"{s.objective.name} burns {s.budget.burn_rate:.3g} times too fast, {_until(s.budget)}"
        for s in found
        if s.budget is not None and s.budget.burning
    ]


def _until(budget: ErrorBudget) -> str:
    left = budget.nights_left
    return "and is spent" if left is None else f"and is spent in {left:.2g} nights if that goes on"
