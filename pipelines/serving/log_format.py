"""How the policy server's own log tells of an error: where and what kind, and no observation."""

from __future__ import annotations

import logging
import traceback

from pipelines.sentry.events import chain, in_brief


class WithoutRows(logging.Formatter):
    """As its base, with tracebacks whose messages are those that may be told.

    They come from our own code and from the web server's alike, which logs what an application raises.
    """

    def formatException(self, ei: object) -> str:  # noqa: N802  # the base has named it
        """The frames of an error and of its causes, the first to happen first."""
        error = ei[1] if isinstance(ei, tuple) else None
        if not isinstance(error, BaseException):
            return ""
        told = ["".join([*traceback.format_tb(each.__traceback__), in_brief(each)]) for each in chain(error)]
        return "\n\nwhich led to\n\n".join(told[::-1])
