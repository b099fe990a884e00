"""The canary's looks: every interval, on a thread beside the requests, by the clock of the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from pipelines.canary import CanaryWatch, Look
from pipelines.workspace import Workspace

_LOG = logging.getLogger("offline_dqn.serve")


class CanaryLooks:
    """Judges the workspace's canary again and again; what a look finds is done by the look.

    Args:
        workspace: whose canary.
        now: the instant of the log's clock; None where it has none yet.
    """

    def __init__(self, workspace: Workspace, now: Callable[[], datetime | None]) -> None:
        self._watch, self._now = CanaryWatch(workspace), now
        self._every_s = workspace.config.canary.interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
        self.last: Look | None = None
        """The newest look; None where no canary runs."""
        self.n_failed = 0
        """Looks that could not be made."""

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends that."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            now = self._now()
            if now is None:
                continue
            try:
                self.last = self._watch.evaluate(now)
            except Exception:  # requests go on whatever a look meets; the next one may find it mended
                self.n_failed += 1
                _LOG.exception("the canary could not be judged")
            else:
                if self.last is not None and self.last.did:
                    _LOG.warning("canary: %s", self.last.did)
