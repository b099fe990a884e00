"""The canary's looks: every interval, on a thread beside the requests, by the clock of the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from pipelines.canary import CanaryWatch, Look
from pipelines.workspace import Workspace

_LOG = logging.getLogger("offline_dqn.serve")
_BLIND_AFTER = 3
"""Looks in a row that fail before the candidate's traffic is held: one may have met a lock or a file half restored."""


class CanaryLooks:
    """Judges the workspace's canary again and again; what a look finds is done by the look.

    Args:
        workspace: whose canary.
        now: the instant of the log's clock; None where it has none yet.
        hold: is told whether the candidate may have no traffic, because nobody can see what it does.
    """

    def __init__(
        self, workspace: Workspace, now: Callable[[], datetime | None], hold: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._watch, self._now, self._hold = CanaryWatch(workspace), now, hold
        self._every_s = workspace.config.canary.interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
        self.last: Look | None = None
        """The newest look; None where no canary runs."""
        self.n_failed = 0
        """Looks in a row that could not be made."""

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends that."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> None:
        """Looks once, where the log has a clock."""
        now = self._now()
        if now is None:
            return
        try:
            self.last = self._watch.evaluate(now)
        except Exception:  # requests go on whatever a look meets; the next one may find it mended
            self.n_failed += 1
            _LOG.exception("the canary could not be judged")
            if self.n_failed == _BLIND_AFTER:
                _LOG.error(
                    "the canary could not be judged %d times in a row, so nobody would see its harm: the champion acts "
                    "alone until it can be. `offline-dqn canary status` says what is wrong",
                    self.n_failed,
                )
                self._hold(True)
            return
        if self.n_failed >= _BLIND_AFTER:
            _LOG.warning("the canary can be judged again")
            self._hold(False)
        self.n_failed = 0
        if self.last is not None and self.last.did:
            _LOG.warning("canary: %s", self.last.did)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.look()
