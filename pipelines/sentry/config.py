"""`[sentry]`: whether failures are told to Sentry."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, model_validator

from datasets.settings import Settings

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SentryConfig(Settings):
    """Failures of nights and of the policy server, for Sentry; without a DSN none is told. Needs the extra `sentry`."""

    dsn: str | None = None
    """Name of the environment variable that holds the project's DSN, such as OFFLINE_DQN_SENTRY_DSN."""
    environment: str = "production"
    """Shown beside each failure, to tell several installations apart."""
    timeout_s: float = Field(2.0, gt=0, le=30)
    """Seconds that a flow which failed waits for Sentry; the policy server never waits."""
    repeat_s: float = Field(600.0, ge=0)
    """Seconds in which the same failure of a server is told once."""

    @model_validator(mode="before")
    @classmethod
    def _is_name(cls, values: Any) -> Any:
        # Before the fields are looked at: their errors quote the value, and a DSN holds a key.
        name = values.get("dsn") if isinstance(values, dict) else None
        if name is not None and not (isinstance(name, str) and _VARIABLE.fullmatch(name)):
            raise ValueError(
                "dsn is the name of an environment variable, and this is none. A DSN holds a key: export it, "
                'OFFLINE_DQN_SENTRY_DSN=..., and write dsn = "OFFLINE_DQN_SENTRY_DSN"'
            )
        return values
