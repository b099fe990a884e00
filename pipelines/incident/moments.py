"""An instant as somebody in a hurry writes it."""

from __future__ import annotations

from datetime import UTC, datetime

from pipelines.incident.captured import IncidentError


def moment_of(text: str) -> datetime:
    """The instant; in UTC where no zone is written.

    Raises:
        IncidentError: it is none.
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise IncidentError(
            f"'{text}' is no instant. Write it as 2026-01-07T10:30:00 (UTC), or with +02:00."
        ) from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
