"""The one base of every failure that a user can cause or mend."""

from __future__ import annotations


class OfflineDqnError(Exception):
    """An expected failure. Its text is the whole message: what was wrong, where, and what to do."""
