"""The receivers: what Apprise can send to, by the name of the environment variable that holds the address.

An address is a secret (a token, a password): nothing here returns, logs or raises one, and Apprise's own log is kept
silent because it quotes what it could not use.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.notify.notices import Message

_ANSWERED = re.compile(r"error=(\d{3})\b")


def deliver(variable: str, message: Message, *, timeout_s: float) -> str:
    """Sends a message to every address in an environment variable; "" when all took it, else what went wrong.

    Args:
        variable: its name; several addresses stand in it with spaces between.
        timeout_s: that each may take to connect, and to answer.
    """
    addresses = os.environ.get(variable, "").split()
    if not addresses:
        return f"{variable} is not set: export the receiver's Apprise URL under that name"
    try:
        with _overheard() as said:
            return _send(variable, addresses, message, timeout_s, said)
    except Exception as error:  # a library's own failure must not become the night's; its text may hold the address
        return f"the receiver in {variable} failed with {type(error).__name__}"


def _send(variable: str, addresses: list[str], message: Message, timeout_s: float, said: list[str]) -> str:
    import apprise  # late: it loads some hundred plug-ins

    told = apprise.Apprise()
    for address in addresses:
        if not told.add(address):
            return f"{variable} holds no URL that Apprise understands (its value is not shown: it may be a secret)"
    for server in told:
        server.socket_connect_timeout = server.socket_read_timeout = timeout_s
    kind = {
        "failure": apprise.NotifyType.FAILURE,
        "warning": apprise.NotifyType.WARNING,
        "success": apprise.NotifyType.SUCCESS,
    }[message.kind]
    taken = told.notify(body=message.text, title=message.title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT)
    return "" if taken else f"the receiver in {variable} {_why(said)}"


def _why(said: list[str]) -> str:
    status = next((found[1] for text in said if (found := _ANSWERED.search(text))), "")
    return f"answered with status {status}" if status else "could not be reached, or did not take the message"


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """Apprise's log, for us alone."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = logging.getLogger("apprise"), Kept()
    before = logger.propagate, logger.handlers[:], logger.level
    logger.propagate, logger.handlers, logger.level = False, [handler], logging.INFO
    # What carries the request logs its address too.
    carriers = [logging.getLogger(name) for name in ("urllib3", "requests", "httpx", "markdown")]
    levels = [carrier.level for carrier in carriers]
    for carrier in carriers:
        carrier.setLevel(logging.CRITICAL + 1)
    try:
        yield said
    finally:
        logger.propagate, logger.handlers, logger.level = before
        for carrier, level in zip(carriers, levels, strict=True):
            carrier.setLevel(level)
