"""The one base of every failure that a user can cause or mend."""

from __future__ import annotations


class OfflineDqnError(Exception):
    """An expected failure. Its text is the whole message: what was wrong, where, and what to do."""


class RowError(OfflineDqnError):
    """A failure on a row of data, whose text quotes that row: for whoever may read the data, at the terminal.

    Attributes:
        without_row: the same without anything of the row, for logs of servers, traces and answers.
    """

    def __init__(self, text: str, without_row: str = "") -> None:
        super().__init__(text)
        self.without_row = without_row or text
