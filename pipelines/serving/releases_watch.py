"""Asks the bucket where releases lie what was decided, so that a promotion on another machine acts here, too."""

from __future__ import annotations

import logging
import threading
import time

from datasets.errors import OfflineDqnError
from pipelines.workspace import Workspace

_LOG = logging.getLogger("offline_dqn.serve")


class ReleasesWatch:
    """Keeps this machine's copy of the releases up to the bucket; `ActingReleases` looks at the copy.

    While the bucket cannot be asked, what acted goes on acting: the server needs it for nothing but news.

    Args:
        workspace: whose releases they are.
        every_s: seconds between two looks.
    """

    def __init__(self, workspace: Workspace, every_s: float) -> None:
        self._workspace = workspace
        self._every_s = every_s
        self._is_shared = workspace.config.store.releases_address is not None
        self._seen_at: float | None = None
        self._away = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch the bucket", daemon=True)

    @property
    def age_s(self) -> float | None:
        """Seconds since the bucket was last seen; None where releases lie in the workspace, or it never was."""
        return None if self._seen_at is None else time.monotonic() - self._seen_at

    def start(self) -> None:
        """Begins to ask; where releases lie in the workspace there is nothing to ask for."""
        if self._is_shared:
            self._thread.start()

    def stop(self) -> None:
        """Ends that."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=1.0)  # a request to a bucket that is away may take longer; it is not waited for

    def look(self) -> bool:
        """Asks once; whether the bucket answered. What changes is logged: that it is away, and that it is back."""
        if not self._is_shared:
            return True
        try:
            self._workspace.follow_releases()
        except (OfflineDqnError, OSError) as error:
            if str(error) != self._away:
                _LOG.error("what was decided about the releases cannot be asked, and what acts goes on: %s", error)
            self._away = str(error)
            return False
        if self._away:
            _LOG.warning("the bucket of the releases answers again")
        self._away, self._seen_at = "", time.monotonic()
        return True

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
            except Exception:  # what acts must go on acting, and the next look may fare better
                _LOG.exception("the bucket of the releases could not be asked; what acts goes on")
