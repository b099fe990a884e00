"""A relay in front of a server on loopback, by which the server can be taken away and given back."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

HOST = "127.0.0.1"


class Relay:
    """Hands bytes on to a port, until the server is taken away.

    Attributes:
        port: where the relay listens.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def take_away(self) -> None:
        """From now on nobody listens, and who was connected is cut off."""
        self._shut(self._listener)
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            self._shut(connection)

    def give_back(self) -> None:
        """Listens again, at the same port."""
        self._listener = self._listen(self.port)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, self._to_port))
            except OSError:
                self._shut(client)
                continue
            with self._lock:
                self._open |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            self._shut(end)
            with self._lock:
                self._open.discard(end)

    @staticmethod
    def _shut(end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextlib.contextmanager
def relay(to_port: int) -> Iterator[Relay]:
    """A relay that is gone at the end."""
    relaying = Relay(to_port)
    try:
        yield relaying
    finally:
        relaying.take_away()
