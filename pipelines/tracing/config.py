"""`[tracing]`: where traces go, and which decisions have one."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from datasets.settings import Settings


class TracingConfig(Settings):
    """Traces of nights and decisions; without an endpoint there are none. Needs the extra `tracing`.

    Headers with keys or tokens stand in the environment: OTEL_EXPORTER_OTLP_HEADERS, as OpenTelemetry has it.
    """

    endpoint: str | None = None
    """Where an OpenTelemetry collector takes traces over HTTP, such as http://127.0.0.1:4318/v1/traces."""
    decisions_share: float = Field(0.0, ge=0, le=1)
    """Share of the policy server's decisions that are traced, chosen by their id; 0 traces nights alone."""
    timeout_s: float = Field(2.0, gt=0, le=30)
    """Seconds that the collector may take for a batch. A night waits about as long at its end, and never in between."""

    @model_validator(mode="before")
    @classmethod
    def _is_address(cls, values: Any) -> Any:
        # Before the fields are looked at: their errors quote the value, and what is wrong with it may be a password.
        address = values.get("endpoint") if isinstance(values, dict) else None
        if isinstance(address, str):
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.query:
                raise ValueError(
                    "endpoint wants an address such as http://127.0.0.1:4318/v1/traces, without user, password or "
                    "query; keys go into the environment, OTEL_EXPORTER_OTLP_HEADERS"
                )
        return values
