"""The quarantine as a person reads it: rows grouped by reason, and their raw text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from datasets.duck import duck, literal
from datasets.lake import Lake
from datasets.privacy import SEALED, PrivacyKey

_NUMBER = r"-?\d+(\.\d+)?([eE][-+]?\d+)?"


@dataclass(frozen=True)
class ReasonGroup:
    """Quarantined rows with like reasons.

    Attributes:
        reason: with numbers as #, so that like goes with like.
        n_sealed: rows whose text is encrypted, because it could not be redacted.
        first_at, last_at: when the first and the last of them were quarantined.
        example: "source:line" of the newest of them.
    """

    reason: str
    n_rows: int
    n_sealed: int
    n_batches: int
    first_at: datetime
    last_at: datetime
    example: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "first_at": self.first_at.isoformat(), "last_at": self.last_at.isoformat()}


@dataclass(frozen=True)
class QuarantinedRow:
    """One row that did not fit, as it was written."""

    source: str
    source_line: int
    reason: str
    raw: str | None
    episode_id: str | None
    batch_id: str
    quarantined_at: datetime

    @property
    def is_sealed(self) -> bool:
        """Whether its text is encrypted."""
        return self.raw is not None and self.raw.startswith(SEALED)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "is_sealed": self.is_sealed, "quarantined_at": self.quarantined_at.isoformat()}


def masked_sql(reason: str) -> str:
    """SQL of a reason with its numbers as #."""
    return f"regexp_replace({reason}, {literal(_NUMBER)}, '#', 'g')"


def list_reasons(lake: Lake, *, batch: str | None = None) -> list[ReasonGroup]:
    """What is in quarantine, by reason, the most frequent first.

    Args:
        batch: id of a batch, or the beginning of it; by default all.
    """
    with duck() as connection:
        rows = connection.execute(
            f"""SELECT {masked_sql("reason")} AS masked, count(*) AS n, count(*) FILTER (starts_with(raw, '{SEALED}')),
                count(DISTINCT batch_id), min(quarantined_at), max(quarantined_at),
                arg_max(source || ':' || source_line, (quarantined_at, source, source_line))
            FROM {lake.scan("quarantine")} WHERE {chosen_sql(None, batch)}
            GROUP BY masked ORDER BY n DESC, masked"""
        ).fetchall()
    return [ReasonGroup(*row) for row in rows]


def show_rows(
    lake: Lake, *, reason: str | None = None, batch: str | None = None, limit: int = 20, key: PrivacyKey | None = None
) -> list[QuarantinedRow]:
    """Quarantined rows with their raw text, the newest batch first.

    Args:
        reason: how the reason begins, as it stands there or as `list_reasons` shows it.
        batch: id of a batch, or the beginning of it.
        key: opens sealed text; without it that is shown as it is stored.

    Raises:
        PrivacyError: a sealed text cannot be opened with `key`.
    """
    with duck() as connection:
        rows = connection.execute(
            f"""SELECT source, source_line, reason, raw, episode_id, batch_id, quarantined_at
            FROM {lake.scan("quarantine")} WHERE {chosen_sql(reason, batch)}
            ORDER BY quarantined_at DESC, batch_id DESC, source, source_line LIMIT {int(limit)}"""
        ).fetchall()
    found = [QuarantinedRow(*row) for row in rows]
    if key is None:
        return found
    return [replace(row, raw=key.unseal(row.raw)) if row.raw is not None and row.is_sealed else row for row in found]


def chosen_sql(reason: str | None, batch: str | None) -> str:
    """SQL condition on quarantined rows: how their reason begins, plain or masked, and how the id of their batch."""
    conditions = ["true"]
    if reason is not None:
        begins = [f"starts_with({text}, {literal(reason)})" for text in ("reason", masked_sql("reason"))]
        conditions.append(f"({' OR '.join(begins)})")
    if batch is not None:
        conditions.append(f"starts_with(batch_id, {literal(batch)})")
    return " AND ".join(conditions)
