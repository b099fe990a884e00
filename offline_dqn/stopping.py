"""How a training is told to stop, for a reason that is none of its own."""

from __future__ import annotations

from datasets.errors import OfflineDqnError


class TrainingStoppedError(OfflineDqnError):
    """A training was told to stop; it goes on from its checkpoint."""
