"""The server's time: it never goes back, also where the system's clock does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_LOG = logging.getLogger("offline_dqn.serve")
_WORTH_TELLING_S = 1.0


class Clock:
    """Gives instants of which each lies behind all before it.

    Args:
        system: what the time is; only tests give another.
    """

    def __init__(self, system: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._system = system
        self._last = datetime.min.replace(tzinfo=UTC)
        self._is_behind = False

    def now(self) -> datetime:
        """The next instant; while the system's clock is behind, a microsecond after the last one."""
        now = self._system()
        if now <= self._last:
            behind_s = (self._last - now).total_seconds()
            if behind_s > _WORTH_TELLING_S and not self._is_behind:
                self._is_behind = True
                _LOG.error(
                    "the system's clock went back by %.1f s; until it has caught up, times stand still", behind_s
                )
            now = self._last + timedelta(microseconds=1)
        else:
            self._is_behind = False
        self._last = now
        return now
