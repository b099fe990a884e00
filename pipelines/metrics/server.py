"""What the policy server counted since it was read last: how fast it answered, and how often it did."""

from __future__ import annotations

import math
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from datasets.errors import OfflineDqnError
from pipelines.metrics.values import Values
from reports.operating_metrics import SERVER_FAULTS

TOKEN_VARIABLE = "OFFLINE_DQN_METRICS_TOKEN"
"""Environment variable with the token of a server that wants one."""

_SECONDS, _REFUSED = "offline_dqn_act_seconds", "offline_dqn_refused"
_TIMEOUT_S = 5.0
_KEYS = ("decision_latency", "availability")


class ReadingError(OfflineDqnError):
    """The policy server's page of metrics could not be read."""


@dataclass(frozen=True)
class Counters:
    """What a server had counted when it was read.

    Attributes:
        buckets: requests answered within so many seconds, by the bound as Prometheus writes it; "+Inf" are all.
        faults: requests refused for a reason of the server's own.
    """

    buckets: Mapping[str, float] = field(default_factory=dict)
    faults: float = 0.0

    def since(self, earlier: Counters | None) -> Counters:
        """What was counted since; everything where the server has begun anew, or has other buckets."""
        if earlier is None or self.began_anew(earlier):
            return self
        buckets = {bound: n - earlier.buckets[bound] for bound, n in self.buckets.items()}
        return Counters(buckets, self.faults - earlier.faults)

    def began_anew(self, earlier: Counters) -> bool:
        """Whether a counter is lower than before, or has other buckets: the server was started again in between.

        One that has counted more since its start than it had before is not told from one that went on.
        """
        if set(earlier.buckets) != set(self.buckets):
            return True
        return self.faults < earlier.faults or any(n < earlier.buckets[bound] for bound, n in self.buckets.items())

    @property
    def answered(self) -> float:
        """Requests."""
        return self.buckets.get("+Inf", 0.0)

    def quantile(self, share: float) -> float | None:
        """Seconds within which a share of the requests was answered, linear in a bucket; None beyond the last bound.

        Source: Prometheus, histogram_quantile; which gives the last bound where we say that it is not known.
        """
        rank, below, low = share * self.answered, 0.0, 0.0
        for bound, n in sorted(((float(bound), n) for bound, n in self.buckets.items())):
            if n >= rank and math.isfinite(bound):
                return low + (bound - low) * (rank - below) / (n - below) if n > below else bound
            below, low = n, bound
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"buckets": dict(self.buckets), "faults": self.faults}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Counters:
        """What `to_json` wrote."""
        return cls(values["buckets"], values["faults"])


def read_counters(text: str) -> Counters:
    """The counters on a page of metrics, all releases together.

    Raises:
        ValueError: it is no page of metrics, or not that of a policy server.
    """
    buckets: dict[str, float] = {}
    faults, known = 0.0, False
    for family in text_string_to_metric_families(text):
        known = known or family.name == _SECONDS
        for sample in family.samples:
            if sample.name == f"{_SECONDS}_bucket":
                buckets[sample.labels["le"]] = buckets.get(sample.labels["le"], 0.0) + sample.value
            elif sample.name == f"{_REFUSED}_total" and sample.labels["cause"] in SERVER_FAULTS:
                faults += sample.value
    if not known:
        raise ValueError(f"it shows no {_SECONDS}, so it is no policy server's")
    return Counters(buckets, faults)


def server_metrics(address: str | None, earlier: Counters | None) -> tuple[Values, Counters | None]:
    """Latency and availability since the earlier reading, and this reading; or why they are not known.

    Args:
        address: of the page; None where none is configured.
        earlier: the reading before; None counts since the server's start.
    """
    if address is None:
        return _missing("no policy server is configured: `server` under [metrics] in offline_dqn.toml"), None
    try:
        now = read_server(address)
    except ReadingError as error:
        return _missing(str(error)), None
    return described(now.since(earlier)), now


def read_server(address: str) -> Counters:
    """What the policy server has counted since its start.

    Raises:
        ReadingError: its page cannot be read, or is none.
    """
    request = urllib.request.Request(address)
    if os.environ.get(TOKEN_VARIABLE):
        request.add_header("Authorization", f"Bearer {os.environ[TOKEN_VARIABLE]}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return read_counters(answer.read().decode())
    except (OSError, ValueError) as error:
        raise ReadingError(f"{address} could not be read: {error}") from error


def described(counted: Counters) -> Values:
    """The metrics of what was counted."""
    if not counted.answered + counted.faults:
        return _missing("the policy server was asked for nothing since it was read last")
    values = Values()
    values.add("offline_dqn_availability_ratio", counted.answered / (counted.answered + counted.faults))
    for series, share in (
        ("offline_dqn_decision_latency_p95_seconds", 0.95),
        ("offline_dqn_decision_latency_p99_seconds", 0.99),
    ):
        values.add(series, counted.quantile(share) if counted.answered else None)
    if values.of("offline_dqn_decision_latency_p95_seconds") is None:
        slow = "more than 5 % of the answers took longer than the last bucket of the histogram"
        values.missing("decision_latency", slow if counted.answered else "the policy server answered nothing")
    return values


def _missing(reason: str) -> Values:
    values = Values()
    for key in _KEYS:
        values.missing(key, reason)
    return values
