"""Connections that begin a request and never end its head: they are given up, so that they cannot use up the server."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedConnection(H11Protocol):
    """Closes a connection whose next request's head is not whole in time.

    uvicorn waits for the rest of a head, and for a first byte, forever, and every such connection counts towards
    `serve.max_waiting`. Between two requests its own, longer keep-alive time holds; bodies have theirs.
    """

    timeout_s: ClassVar[float]
    _given_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering:
            self._stop_waiting()
        elif self._given_up is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._given_up = self.loop.call_later(self.timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._given_up is not None:
            self._given_up.cancel()
            self._given_up = None

    def _give_up(self) -> None:
        self._given_up = None
        if not self._is_answering and not self.transport.is_closing():
            self.transport.close()


def timed_connection(timeout_s: float) -> type[TimedConnection]:
    """The protocol for a server, with the seconds in which the head of a request must have arrived."""
    return type("TimedConnection", (TimedConnection,), {"timeout_s": timeout_s})
