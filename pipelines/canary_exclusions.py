"""Whether what a canary tries rests on what somebody has taken out of the lake since it began."""

from __future__ import annotations

from pipelines.canary_state import Canary
from pipelines.excluding import Tainted, taint_of
from pipelines.workspace import Workspace


class ExclusionWatch:
    """Asks at every look, and works it out anew only after a commit: an exclusion is one, and so is an erasure."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: tuple[tuple[int, int], Tainted | None] | None = None

    def why_ended(self, canary: Canary) -> str:
        """Why the canary is over; "" where it is not.

        What its starter knew and overrode does not end it.

        Raises:
            OfflineDqnError, OSError: the lake or the snapshot cannot be read.
        """
        workspace = self._workspace
        if not (workspace.release_path(canary.release) / "training.json").exists():
            return ""  # nothing taught it here, so no exclusion means it, and there may be no lake
        key = (canary.release, workspace.open_lake().commit_number())
        if self._known is None or self._known[0] != key:
            self._known = key, taint_of(workspace, canary.release)
        tainted = self._known[1]
        if tainted is None or not new_rules(canary, tainted):
            return ""
        return f"release {canary.release} is on trial no more: {tainted.in_words} (`offline-dqn exclude list`)"


def new_rules(canary: Canary, tainted: Tainted) -> tuple[str, ...]:
    """Those exclusions that whoever started the canary has not overridden."""
    return tuple(name for name in tainted.rules if name not in canary.despite_excluded)
