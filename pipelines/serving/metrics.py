"""What Prometheus is told: how fast and by whom decisions are made, and how the log and the releases stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipelines.serving.acting_releases import Acting, ActingReleases
from pipelines.serving.decision_log import DecisionLog
from pipelines.serving.releases_watch import ReleasesWatch
from reports.operating_metrics import ANSWER_BOUNDS_S


class Metrics:
    """Counts and times of one server; nothing here is global."""

    def __init__(
        self, acting: ActingReleases, logs: Iterable[tuple[str, DecisionLog]], news: ReleasesWatch | None = None
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(acting, tuple(logs), news))
        self._seconds = Histogram(
            "offline_dqn_act_seconds",
            "Seconds from the arrival of a request for decisions to its answer, by the release in charge.",
            ["release"],
            buckets=ANSWER_BOUNDS_S,
            registry=self._registry,
        )
        self._decisions = Counter(
            "offline_dqn_decisions",
            "Decisions, by the release in charge, who decided, and the action.",
            ["release", "decided_by", "action"],
            registry=self._registry,
        )
        self._forbidden = Counter(
            "offline_dqn_forbidden",
            "Decisions in which a constraint took an available action away.",
            ["constraint"],
            registry=self._registry,
        )
        self._guarded = Counter(
            "offline_dqn_guarded",
            "Decisions that a guard left to version 0.",
            ["release", "reason"],
            registry=self._registry,
        )
        self._refused = Counter(
            "offline_dqn_refused", "Requests that were refused, by cause.", ["cause"], registry=self._registry
        )
        self._failed = Counter(
            "offline_dqn_scoring_failures",
            "Answers of a release that could not be acted upon.",
            ["release"],
            registry=self._registry,
        )
        self._late = Counter(
            "offline_dqn_late", "Requests that a release missed the deadline of.", ["release"], registry=self._registry
        )
        self._outcomes = Counter(
            "offline_dqn_outcomes", "Outcomes, by what they were.", ["status"], registry=self._registry
        )
        self._children: dict[tuple[str, str, str], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def decided(self, release: str, decided_by: str, action: str, n: int = 1) -> None:
        """Decisions, n of a kind."""
        key = (release, decided_by, action)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._decisions.labels(*key)
        child.inc(n)

    def answered(self, release: str, seconds: float) -> None:
        """One request for decisions."""
        child = self._histograms.get(release)
        if child is None:
            child = self._histograms[release] = self._seconds.labels(release)
        child.observe(seconds)

    def forbidden(self, constraints: Iterable[str]) -> None:
        """The constraints that took actions away from one decision."""
        for name in constraints:
            self._forbidden.labels(name).inc()

    def guarded(self, release: str, reason: str) -> None:
        """One decision that a guard left to version 0."""
        self._guarded.labels(release, reason).inc()

    def refused(self, cause: str) -> None:
        """One request that was refused."""
        self._refused.labels(cause).inc()

    def failed(self, release: str) -> None:
        """One answer of a release that could not be acted upon."""
        self._failed.labels(release).inc()

    def late(self, release: str) -> None:
        """One request that a release missed the deadline of."""
        self._late.labels(release).inc()

    def told(self, status: str) -> None:
        """One outcome."""
        self._outcomes.labels(status).inc()

    def text(self) -> bytes:
        """The page, in Prometheus' text format."""
        return generate_latest(self._registry)


class _State(Collector):
    """What stands in memory already, read when it is asked for."""

    def __init__(
        self, acting: ActingReleases, logs: Sequence[tuple[str, DecisionLog]], news: ReleasesWatch | None
    ) -> None:
        self._acting, self._logs, self._news = acting, logs, news

    def collect(self) -> Iterator[Metric]:
        yield from _of_releases(self._acting.current)
        if self._news is not None and self._news.age_s is not None:
            yield GaugeMetricFamily(
                "offline_dqn_releases_seen_seconds",
                "Seconds since the bucket where releases lie was last asked what was decided.",
                self._news.age_s,
            )
        yield from _of_logs(self._logs)


def _of_releases(now: Acting) -> Iterator[Metric]:
    in_charge = GaugeMetricFamily("offline_dqn_champion", "The release that acts as champion: 1.", labels=["release"])
    in_charge.add_metric([str(now.champion.number)], 1)
    yield in_charge
    yield GaugeMetricFamily(
        "offline_dqn_disabled", "1 while the kill switch has version 0 act.", int(now.disabled is not None)
    )
    canary = GaugeMetricFamily("offline_dqn_canary_share", "Share of the traffic of a canary.", labels=["release"])
    if now.canary is not None:
        canary.add_metric([str(now.canary.release)], now.canary.share if now.candidate is not None else 0.0)
    yield canary
    refused = GaugeMetricFamily(
        "offline_dqn_release_refused", "1 for a release that should act and cannot.", labels=["release"]
    )
    for number in now.refused:
        refused.add_metric([str(number)], 1)
    yield refused


def _of_logs(logs: Sequence[tuple[str, DecisionLog]]) -> Iterator[Metric]:
    families = {
        "n_lines": GaugeMetricFamily("offline_dqn_log_lines", "Acknowledged lines.", labels=["log"]),
        "unsynced_bytes": GaugeMetricFamily("offline_dqn_log_unsynced_bytes", "Written, not flushed.", labels=["log"]),
        "unsynced_s": GaugeMetricFamily(
            "offline_dqn_log_unsynced_seconds", "Age of the oldest of them.", labels=["log"]
        ),
        "n_refused": GaugeMetricFamily("offline_dqn_log_refused_lines", "Lines that met a full log.", labels=["log"]),
        "n_sync_failures": GaugeMetricFamily("offline_dqn_log_sync_failures", "Flushes that failed.", labels=["log"]),
        "n_disturbed": GaugeMetricFamily("offline_dqn_log_disturbed", "Files changed by others.", labels=["log"]),
    }
    for name, log in logs:
        lag = log.lag
        for field, family in families.items():
            family.add_metric([name], getattr(lag, field))
    yield from families.values()
