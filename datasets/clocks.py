"""Timestamps that cannot be true: a row from the future, or a stray one that would be the newest of its log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from datasets.errors import OfflineDqnError

SLACK = timedelta(days=1)
"""How far a log's clock may be ahead of ours: time zones that were mixed up, not more."""

_STRAY_SHARE = 0.01
_STRAY_GAP = timedelta(days=7)


def latest_believable(now: datetime) -> datetime:
    """The last instant that a row taken in at `now` may carry."""
    return now + SLACK


class ClockError(OfflineDqnError):
    """This machine's clock cannot be right, and what it says would decide."""


def refuse_clock_set_back(files: Iterable[Path], now: datetime) -> None:
    """Refuses to judge rows by a clock that is earlier than the files they lie in: it would call them rows of the
    future, and put them into quarantine.

    Raises:
        ClockError: a file was written more than the slack after `now`.
    """
    written = {file: datetime.fromtimestamp(file.stat().st_mtime, UTC) for file in files}
    newest = max(written, key=lambda file: written[file], default=None)
    if newest is not None and written[newest] > latest_believable(now):
        raise ClockError(
            f"This machine's clock says {now:%Y-%m-%d %H:%M} UTC, and {newest} was written on "
            f"{written[newest]:%Y-%m-%d %H:%M} UTC: the clock was set back, or was not set at all since the machine "
            "started. Rows would be taken for rows of the future, so no log was read. Set the clock (`timedatectl`), "
            "or `touch` the file if its date is the wrong one, then run the same command again."
        )


@dataclass(frozen=True)
class NightTimes:
    """The rows of one day: how many, and the first and last of their timestamps."""

    n_rows: int
    oldest: datetime
    newest: datetime


def newest_plausible(nights: Iterable[NightTimes]) -> datetime | None:
    """The newest timestamp of a log, without what a stray clock wrote; None without any.

    Days at the end are taken for stray if they are more than a week behind the day before and hold fewer than a
    hundredth of the rows of a usual day: one row from 2099 must not time out every episode. Once more rows of such a
    time come in, it counts.
    """
    ordered = sorted(nights, key=lambda night: night.newest)
    usual = median(night.n_rows for night in ordered) if ordered else 0
    while len(ordered) > 1:
        before, last = ordered[-2:]
        if last.oldest - before.newest <= _STRAY_GAP or last.n_rows >= usual * _STRAY_SHARE:
            break
        ordered.pop()
    return ordered[-1].newest if ordered else None
