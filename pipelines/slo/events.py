"""What each objective counts, by night: from the metrics that are kept of every night, the server's own, and nights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise

from pipelines.metrics.history import NightMetrics
from pipelines.metrics.server import Counters
from pipelines.nights import NightRecord
from pipelines.slo.config import NightsConfig, SloConfig
from reports.error_budgets import NightEvents

_DAY = timedelta(days=1)

_HELPED = frozenset({"late", "guard"})
"""Values of `decided_by` where version 0 decided in the place of the release in charge."""


@dataclass(frozen=True)
class Counted:
    """Events of an objective by night, and, where there are none, why."""

    nights: Sequence[NightEvents]
    absent: str


def counted_events(
    config: SloConfig,
    nights: Mapping[date, NightMetrics],
    records: Sequence[NightRecord],
    *,
    now: datetime,
    reading: tuple[date, Counters] | None = None,
) -> dict[str, Counted]:
    """The events of every objective that is watched.

    Args:
        nights: what stands for each night, oldest first.
        records: of the nightly runs.
        now: by the clock.
        reading: what the policy server has counted by now, and the night that it is now; it stands in the place of
            that night's own reading.
    """
    found: dict[str, Counted] = {}
    server = _of_server(nights, reading)
    unread = "the policy server was not read in any night of the window ([metrics] server, docs/metrics.md)"
    for name in config.tables():
        if name == "availability":
            events = [NightEvents(n, c.answered + c.faults, c.faults) for n, c in server.items()]
            found[name] = Counted(events, unread)
        elif name == "latency" and config.latency is not None:
            found[name] = _in_time(server, config.latency.within_ms / 1000, unread)
        elif name == "safety":
            found[name] = _judged(nights, "safety_violation", "safety_violation_rate", bad_is_share=True)
        elif name == "success":
            found[name] = _judged(nights, "action_success", "action_success_rate", bad_is_share=False)
        elif name == "in_charge":
            found[name] = _in_charge(nights)
        elif name == "nights" and config.nights is not None:
            found[name] = _on_time(config.nights, records, now, config.window_nights)
    return found


def restarts(nights: Mapping[date, NightMetrics], reading: tuple[date, Counters] | None) -> list[tuple[date, date]]:
    """The readings between which the policy server was started again, as far as its counters show it.

    What it counted after the first of two and before that start was never read, and is in no budget.
    """
    readings = _readings(nights, reading)
    return [(earlier, later) for (earlier, was), (later, now) in pairwise(readings) if now.began_anew(was)]


def _of_server(nights: Mapping[date, NightMetrics], reading: tuple[date, Counters] | None) -> dict[date, Counters]:
    """What the policy server counted in each night, from one reading to the next."""
    counted, before = {}, None
    for night, counters in _readings(nights, reading):
        counted[night] = counters.since(before)
        before = counters
    return counted


def _readings(
    nights: Mapping[date, NightMetrics], reading: tuple[date, Counters] | None
) -> list[tuple[date, Counters]]:
    """What the policy server had counted when it was read, oldest first."""
    readings = {night: Counters.from_json(found.server) for night, found in nights.items() if found.server}
    if reading is not None:
        readings = {night: counters for night, counters in readings.items() if night < reading[0]}
        readings[reading[0]] = reading[1]
    return sorted(readings.items())


def _in_time(server: Mapping[date, Counters], within_s: float, unread: str) -> Counted:
    events = []
    for night, counters in server.items():
        quick = next((n for bound, n in counters.buckets.items() if float(bound) == within_s), None)
        if quick is None:
            return Counted((), f"the policy server of {night} counted no answers within {1000 * within_s:g} ms")
        events.append(NightEvents(night, counters.answered, counters.answered - quick))
    return Counted(events, unread)


def _judged(nights: Mapping[date, NightMetrics], series: str, key: str, *, bad_is_share: bool) -> Counted:
    events, absent = [], "no night of the window was measured; `offline-dqn metrics --refresh` does it now"
    for night, found in nights.items():
        share = found.values.of(f"offline_dqn_{series}_ratio")
        judged = found.values.of(f"offline_dqn_{series}_judged_decisions")
        absent = found.values.absent.get(key, absent)
        if share is not None and judged is not None:
            events.append(NightEvents(night, judged, round(judged * (share if bad_is_share else 1 - share))))
    return Counted(events, absent)


def _in_charge(nights: Mapping[date, NightMetrics]) -> Counted:
    events = []
    for night, found in nights.items():
        by = [
            (value.labels["decided_by"], value.value)
            for value in found.values.values
            if value.series == "offline_dqn_night_decisions" and value.labels["decided_by"] != "unknown"
        ]
        events.append(NightEvents(night, sum(n for _, n in by), sum(n for who, n in by if who in _HELPED)))
    return Counted(events, "no log of the window says who decided (`decided_by`)")


def _on_time(config: NightsConfig, records: Sequence[NightRecord], now: datetime, window_nights: int) -> Counted:
    """One event for each day of the deadline's zone whose deadline has passed since the first night that ended."""
    absent = "no deadline has passed since the first nightly run ended"
    ended = [(datetime.fromisoformat(r.ended_at), r.decision) for r in records if r.ended_at]
    if not ended:
        return Counted((), absent)
    first, today = min(at for at, _ in ended), now.astimezone(config.zone).date()
    events = []
    for day in (today - _DAY * k for k in range(window_nights)):
        by = datetime.combine(day, config.by, config.zone)
        begins = day if config.after < config.by else day - _DAY
        after = datetime.combine(begins, config.after, config.zone)
        if not first <= by <= now:
            continue
        in_time = any(after <= at <= by and decision != "batch held" for at, decision in ended)
        events.append(NightEvents(day, 1, 0 if in_time else 1))
    return Counted(events[::-1], absent)
