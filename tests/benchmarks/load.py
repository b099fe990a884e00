"""A load generator that costs little: prebuilt requests over raw sockets, one process, latencies in nanoseconds."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Load:
    """What clients saw.

    Attributes:
        latencies_s: of every answered request.
        seconds: that it went on.
        n_failed: answers that were no 200, and connections that broke.
    """

    latencies_s: NDArray[np.float64]
    seconds: float
    n_failed: int

    @property
    def per_s(self) -> float:
        """Answered requests per second."""
        return len(self.latencies_s) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """A quantile of the latencies, in milliseconds."""
        return float(np.quantile(self.latencies_s, share)) * 1000


def request_bytes(path: str, body: bytes) -> bytes:
    """A POST over a connection that stays open."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0
        self.answer = b""

    def send(self, request: bytes) -> None:
        self.answer = b""
        self.sent_at = time.perf_counter_ns()
        self.socket.sendall(request)

    def is_answered(self) -> bool:
        """Reads what is there; whether that is the whole answer."""
        read = self.socket.recv(1 << 20)
        if not read:
            raise ConnectionError("the server closed the connection")
        self.answer += read
        end = self.answer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self.answer[:end].lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0])
        return len(self.answer) >= end + 4 + length


def drive(
    port: int,
    next_request: Callable[[], bytes],
    *,
    clients: int,
    seconds: float,
    on_answer: Callable[[bytes], None] | None = None,
) -> Load:
    """Clients that each ask again as soon as they are answered; it ends early where every connection broke.

    Args:
        port: on loopback.
        next_request: the bytes of one request.
        clients: at once.
        seconds: for how long.
        on_answer: is given each answer whole.
    """
    open_clients = [_Client(port) for _ in range(clients)]
    latencies: list[int] = []
    n_failed = 0
    with selectors.DefaultSelector() as selector:
        for client in open_clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        began = time.perf_counter()
        end = began + seconds
        for client in open_clients:
            client.send(next_request())
        n_open = clients
        while n_open and time.perf_counter() < end:
            for key, _ in selector.select(timeout=0.1):
                client = key.data
                try:
                    if not client.is_answered():
                        continue
                    latencies.append(time.perf_counter_ns() - client.sent_at)
                    n_failed += client.answer[9:12] != b"200"
                    if on_answer is not None:
                        on_answer(client.answer)
                    client.send(next_request())
                except OSError:
                    n_failed += 1
                    n_open -= 1
                    selector.unregister(client.socket)
        took = time.perf_counter() - began
    for client in open_clients:
        client.socket.close()
    return Load(np.array(latencies, dtype=np.float64) / 1e9, took, n_failed)
