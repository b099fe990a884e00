"""Pieces of one computation that do not know of each other; who works them out changes no bit of it.

The pieces are cut by the data and the settings alone, never by the number of workers; each brings the seeds that it
draws with; and what they found is put together in their order. So a core says what may be worked out apart, and an
edge (`pipelines.engines`) says where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from datasets.errors import OfflineDqnError

Item = TypeVar("Item")
Found = TypeVar("Found")


class NotSharedError(OfflineDqnError):
    """A worker that does not see the files that it was told of, or whose files are not seen."""


class Spread(Protocol):
    """Works out pieces, here or elsewhere."""

    def __call__(self, what: str, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """`function` of each item, in the order of the items.

        Args:
            what: a piece is called, such as "fold".
            function: looks at its item alone and changes nothing; both can be pickled.
            items: one for each piece.

        Raises:
            Exception: what the function raises, for the first item for which it does.
        """
        ...


def one_by_one(what: str, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:  # noqa: ARG001
    """Each piece after the other, in this thread."""
    return [function(item) for item in items]
