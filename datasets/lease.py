"""A lease: who is at work in a bucket, so that others wait instead of working in vain.

Nothing rests on it. What must not happen twice is decided by a conditional write; a holder that sleeps, loses the lease
and wakes up finds out there. So the lease may be taken from a holder that is not heard of, by the waiter's own clock:
clocks of two machines are never compared.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from datasets.locking import LockedError
from datasets.object_store import ObjectMissingError, ObjectStore, ObjectStoreError

QUIET_S = 30.0
"""Seconds without a sign of life after which a holder is taken for dead."""

_LOOK_EVERY_S = 0.5


@contextmanager
def leased(
    store: ObjectStore, key: str, what: str, *, machine: str, wait_s: float, quiet_s: float | None = None
) -> Iterator[None]:
    """Holds the lease `key`; waits up to `wait_s` seconds for another holder.

    Args:
        what: what it is about, in words.
        machine: an id of this machine's copy. A lease that another process of it has left is taken at once: the caller
            holds a lock of this machine, so that process is dead.
        quiet_s: default `QUIET_S`.

    Raises:
        LockedError: another machine is at work after the wait; names it.
        ObjectStoreError: the store does not answer, or refuses.
    """
    quiet_s = QUIET_S if quiet_s is None else quiet_s
    held = _Held(store, key, machine)
    held.take(what, wait_s=wait_s, quiet_s=quiet_s)
    stop = threading.Event()
    beating = threading.Thread(target=held.beat, args=(stop, quiet_s / 3), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        held.release()


class _Held:
    """One holder's view of a lease."""

    def __init__(self, store: ObjectStore, key: str, machine: str) -> None:
        self.store, self.key = store, key
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        self.said: dict[str, object] = {
            "holder": f"process {os.getpid()} on {socket.gethostname()} since {since}",
            "machine": machine,
            "id": uuid.uuid4().hex,
            "beat": 0,
        }

    def take(self, what: str, *, wait_s: float, quiet_s: float) -> None:
        deadline = time.monotonic() + wait_s
        seen, since = b"", time.monotonic()
        while True:
            try:
                standing, tag = self.store.get_tagged(self.key)
            except ObjectMissingError:
                if self.store.put_if_absent(self.key, self._content()):
                    return
                continue
            now = time.monotonic()
            if standing != seen:
                seen, since = standing, now
            other = json.loads(standing)
            is_free = other["holder"] is None or other["machine"] == self.said["machine"]
            if is_free or now - since >= quiet_s:
                if self.store.put_if_match(self.key, self._content(), tag):
                    return
                continue
            if now >= deadline:
                raise LockedError(
                    f"{what} is in use by {other['holder']}. Wait until it has ended, or end it: the lease is free "
                    f"{quiet_s:.0f} s after its last sign of life."
                )
            time.sleep(min(_LOOK_EVERY_S, quiet_s / 10))

    def beat(self, stop: threading.Event, every_s: float) -> None:
        while not stop.wait(every_s):
            with suppress(ObjectStoreError):  # the next beat may come through; if none does, others take over
                if not self._renew():
                    return  # taken from this process, which was not heard of; its commit will find out

    def release(self) -> None:
        self.said["holder"] = None
        with suppress(ObjectStoreError):  # it runs out by itself
            self._renew()

    def _renew(self) -> bool:
        standing, tag = self.store.get_tagged(self.key)
        self.said["beat"] = int(str(self.said["beat"])) + 1
        return json.loads(standing)["id"] == self.said["id"] and self.store.put_if_match(self.key, self._content(), tag)

    def _content(self) -> bytes:
        return json.dumps(self.said).encode()
