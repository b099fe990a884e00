"""How the objectives of a workspace stand now, and what that forbids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pipelines.metrics.history import MetricHistory
from pipelines.metrics.server import Counters, ReadingError, read_server
from pipelines.nights import read_nights
from pipelines.slo.config import ObjectiveConfig
from pipelines.slo.events import counted_events, restarts
from pipelines.workspace import Workspace
from reports.error_budgets import ErrorBudget, Objective, error_budget

_OF_SERVER = frozenset({"availability", "latency"})
"""Objectives that the policy server counts."""

Reading = tuple[Counters | None, str]
"""What the policy server has counted, or why that is not known; neither where nothing rests on it."""


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


def standings(
    workspace: Workspace, *, live: bool, now: datetime | None = None, reading: Reading | None = None
) -> tuple[list[Standing], list[str]]:
    """Every objective that is watched, and what was never counted: what could not be read, or was lost to a restart.

    Args:
        live: ask the policy server what it has counted since the last night; else the records of nights alone tell.
        now: by the clock.
        reading: of the policy server, where it has been asked already.
    """
    if not workspace.config.slo.tables():
        return [], []
    now = (now or datetime.now(UTC)).astimezone(UTC)
    by_hand = workspace.given_as_of
    today = _newest_day(workspace, now) if by_hand is None else by_hand.astimezone(UTC).date()
    server, unread = (reading or read_now(workspace)) if live else (None, "")
    warnings = [f"{unread}; what it counted since the last night is missing from availability and latency"]
    return _standings(workspace, today, server, now), [
        *(warnings if unread else []),
        *_lost_to_restarts(workspace, today, server),
    ]


def _lost_to_restarts(workspace: Workspace, today: date, server: Counters | None) -> list[str]:
    """What availability and latency lack, since the policy server took it with it."""
    config = workspace.config.slo
    watched = [objective for name, objective in config.objectives().items() if name in _OF_SERVER]
    if not watched:
        return []
    first = today - timedelta(days=max(objective.window_nights for objective in watched) - 1)
    found = restarts(MetricHistory(workspace.metrics_path).nights(), None if server is None else (today, server))
    return [
        f"the policy server was started again between its readings of {earlier} and {later}: what it counted after the "
        "first of them and before that start is missing from availability and latency"
        for earlier, later in found
        if first <= later <= today
    ]


def _standings(workspace: Workspace, today: date, server: Counters | None, now: datetime) -> list[Standing]:
    config = workspace.config.slo
    nights, records = MetricHistory(workspace.metrics_path).nights(), read_nights(workspace.nights_path)
    reading = None if server is None else (today, server)
    counted = counted_events(config, nights, records, now=now, reading=reading)
    tables: Mapping[str, ObjectiveConfig] = config.tables()
    found = []
    for name, objective in config.objectives().items():
        # Runs are counted by the clock, and all else by the log's time, which for a simulated log is another.
        clock = config.nights if objective.nightly else None
        newest = today if clock is None else now.astimezone(clock.zone).date()
        budget = error_budget(objective, counted[name].nights, newest)
        absent = counted[name].absent if budget is None else ""
        found.append(Standing(objective, tables[name].stops_promotions, budget, absent))
    return found


def _newest_day(workspace: Workspace, now: datetime) -> date:
    """By the clock, or by the log's newest timestamp where that is configured; never as somebody gives it."""
    if workspace.config.ingest.as_of != "newest":
        return now.date()
    return replace(workspace, given_as_of=None).as_of(workspace.open_lake()).astimezone(UTC).date()


def read_now(workspace: Workspace) -> Reading:
    """What the policy server has counted, or why that is not known; neither where nothing rests on it."""
    address, tables = workspace.config.metrics.server, workspace.config.slo.tables()
    if address is None or not _OF_SERVER & set(tables):
        return None, ""
    try:
        return read_server(address), ""
    except ReadingError as error:
        return None, str(error)


@dataclass(frozen=True)
class Stopped:
    """What stops promotions now.

    Attributes:
        by: names of objectives: those that are spent, and those that nobody can tell.
        why: in sentences; "" where nothing does.
        remedy: what to do, in a sentence.
    """

    by: tuple[str, ...] = ()
    why: str = ""
    remedy: str = ""


def stopped_now(workspace: Workspace, *, now: datetime | None = None, reading: Reading | None = None) -> Stopped:
    """What forbids promotions: a spent budget, or a policy server that is to be asked for one and does not answer.

    The instant that was given for now plays no part, else another one would bring a spent budget back. The window ends
    at the clock or the log's newest timestamp, and also at the newest night that was measured if that lies later.

    Args:
        now: by the clock.
        reading: of the policy server, where it has been asked already.
    """
    tables = workspace.config.slo.tables()
    if not tables:
        return Stopped()
    now = (now or datetime.now(UTC)).astimezone(UTC)
    server, unread = reading or read_now(workspace)
    today = _newest_day(workspace, now)
    ends = sorted({today, max([today, *MetricHistory(workspace.metrics_path).nights()])})
    spent: dict[str, ErrorBudget] = {}
    for end in ends:
        for standing in _standings(workspace, end, server, now):
            if standing.stops and standing.budget is not None:
                spent[standing.objective.name] = standing.budget
    blind = [name for name, table in tables.items() if unread and name in _OF_SERVER and table.stops_promotions]
    why, remedy = [], []
    if spent:
        budgets = "error budget is spent" if len(spent) == 1 else "error budgets are spent"
        why.append(f"The {budgets}: {'; '.join(map(in_words, spent.values()))}.")
        remedy.append("Wait until the window of [slo] has left the cause behind.")
    if blind:
        why.append(
            f"The policy server cannot be asked what is left of {' and '.join(blind)}: {unread.removesuffix('.')}."
        )
        remedy.append("Start the policy server, or mend `server` under [metrics] in offline_dqn.toml.")
    if not why:
        return Stopped()
    why.append("`offline-dqn slo` shows it; `offline-dqn rollback` is never refused.")
    return Stopped(tuple(dict.fromkeys([*spent, *blind])), " ".join(why), " ".join(remedy))


def why_stopped(workspace: Workspace) -> str:
    """Why nothing may be promoted now, in sentences; "" where nothing stops it."""
    return stopped_now(workspace).why


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
