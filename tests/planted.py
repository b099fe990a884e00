"""Secrets that a test plants in the environment, and where anything of them is found afterwards."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

PLANTED = {
    "OFFLINE_DQN_PRIVACY_KEY": "70726976616379206b657920706c616e746564206279206120746573742e2e2e",
    "OFFLINE_DQN_SIGNING_KEY": "7369676e696e67206b657920706c616e746564206279206120746573742e2e2e",
    "OFFLINE_DQN_PAGE_URL": "json://pager:hunter2-of-the-pager@127.0.0.1:9/alert?token=tok-of-the-pager",
    "OFFLINE_DQN_TICKET_URL": "json://desk:hunter2-of-the-desk@127.0.0.1:9/tickets",
    "OFFLINE_DQN_SERVE_TOKENS": "act:token-for-decisions-planted,admin:token-for-admins-planted",
    "OFFLINE_DQN_METRICS_TOKEN": "token-for-the-metrics-planted",
    "OFFLINE_DQN_SENTRY_DSN": "http://0f1e2d3c4b5a-planted@127.0.0.1:9/1",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=key-of-the-collector-planted",
    "AWS_SECRET_ACCESS_KEY": "secret-access-key-planted",
    "MLFLOW_TRACKING_PASSWORD": "hunter2-of-mlflow",
    "PREFECT_SERVER_API_AUTH_STRING": "ada:hunter2-of-prefect",
}
"""By the variable that holds it."""

NEEDLES = (
    "70726976616379206b6579",
    "7369676e696e67206b6579",
    "hunter2-of-the-pager",
    "tok-of-the-pager",
    "hunter2-of-the-desk",
    "token-for-decisions",
    "token-for-admins",
    "token-for-the-metrics",
    "0f1e2d3c4b5a-planted",
    "key-of-the-collector",
    "secret-access-key-planted",
    "hunter2-of-mlflow",
    "hunter2-of-prefect",
)
"""The part of each that nobody may read."""


def spelled(secret: str) -> set[bytes]:
    """A secret as text, in base64 at each of its three offsets, as in a URL, and as UTF-16."""
    plain = secret.encode()
    # The characters of base64 that the secret alone decides, whatever stands around it.
    inside = [base64.b64encode(b"\0" * n + plain)[4 if n else 0 : -4] for n in range(3)]
    return {plain, quote(secret, safe="").encode(), secret.encode("utf-16-le"), *inside}


def found_in(folders: Iterable[Path], secrets: Iterable[str]) -> list[str]:
    """Every file below the folders that holds a secret in any spelling, and which."""
    spellings = {secret: spelled(secret) for secret in secrets}
    found = []
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            content = path.read_bytes()
            found += [f"{path}: {s}" for s, written in spellings.items() if any(w in content for w in written)]
    return found
