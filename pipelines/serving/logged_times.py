"""Instants as logs under a contract have them: what the server writes, and what it reads of its own logs again."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta

from datasets.contract import Contract

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def written_time(contract: Contract, at: datetime) -> str | float:
    """An instant as `time.format` of the contract has it; a strptime pattern may keep less than all of it."""
    form = contract.time.format
    if form == "iso":
        return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if "%" in form:
        return at.astimezone(_zone(contract)).strftime(form)
    micros = (at - _EPOCH) // timedelta(microseconds=1)
    return micros / 1e6 if form == "epoch_s" else micros / 1e3


def read_time(contract: Contract, value: object) -> datetime | None:
    """The instant that a log's value stands for; None where it is none."""
    form = contract.time.format
    try:
        if form in {"epoch_s", "epoch_ms"}:
            return _EPOCH + timedelta(seconds=float(str(value)) / (1 if form == "epoch_s" else 1000))
        text = str(value)
        found = datetime.fromisoformat(text) if form == "iso" else datetime.strptime(text, form)
    except (ValueError, OverflowError):
        return None
    return found.astimezone(UTC) if found.tzinfo is not None else found.replace(tzinfo=_zone(contract)).astimezone(UTC)


def _zone(contract: Contract) -> zoneinfo.ZoneInfo:
    return zoneinfo.ZoneInfo(contract.time.zone or "UTC")
