"""The lease: others wait, a holder that is not heard of loses it, and its own machine need not wait."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from datasets.lease import leased
from datasets.locking import LockedError
from datasets.object_store import ObjectStore, open_store


@pytest.fixture
def store(bucket_address: str) -> ObjectStore:
    return open_store(bucket_address)


def test_a_lease_that_is_taken_names_its_holder(store: ObjectStore) -> None:
    with (
        leased(store, "lease", "The lake", machine="one", wait_s=0),
        pytest.raises(LockedError, match=r"The lake is in use by process \d+ on .* since .* UTC\. .* free 30 s after"),
        leased(store, "lease", "The lake", machine="two", wait_s=0.2),
    ):
        pass
    with leased(store, "lease", "The lake", machine="two", wait_s=0):
        pass


def test_an_error_inside_frees_the_lease(store: ObjectStore) -> None:
    with suppress(KeyError), leased(store, "lease", "It", machine="one", wait_s=0):
        raise KeyError
    with leased(store, "lease", "It", machine="two", wait_s=0):
        pass


def test_what_another_process_of_this_machine_left_is_taken_at_once(store: ObjectStore) -> None:
    _left_behind(store, "one")
    with leased(store, "lease", "It", machine="one", wait_s=0):
        pass


def test_a_holder_that_is_not_heard_of_loses_the_lease_after_a_while(store: ObjectStore) -> None:
    _left_behind(store, "one")
    started = time.monotonic()
    with leased(store, "lease", "It", machine="two", wait_s=30, quiet_s=0.4):
        assert time.monotonic() - started >= 0.4


def test_a_holder_that_is_heard_of_keeps_it_however_long_it_works(store: ObjectStore) -> None:
    with (
        leased(store, "lease", "It", machine="one", wait_s=0, quiet_s=0.3),  # a sign of life every 0.1 s
        pytest.raises(LockedError),
        leased(store, "lease", "It", machine="two", wait_s=2.5, quiet_s=1.5),
    ):
        pass


def test_a_holder_that_lost_it_does_not_take_it_back(store: ObjectStore) -> None:
    with leased(store, "lease", "It", machine="one", wait_s=0, quiet_s=30):
        with leased(store, "lease", "It", machine="two", wait_s=30, quiet_s=0.1):
            pass  # took it over: the first gives no sign of life for 10 s
        holding = leased(store, "lease", "It", machine="three", wait_s=0)
        holding.__enter__()
    with pytest.raises(LockedError), leased(store, "lease", "It", machine="four", wait_s=0):
        pass  # the first has ended, and did not free what is no longer its own
    holding.__exit__(None, None, None)


def test_one_at_a_time_holds_it(store: ObjectStore) -> None:
    at_work, most = 0, 0

    def work(machine: str) -> None:
        nonlocal at_work, most
        with leased(store, "lease", "It", machine=machine, wait_s=60):
            at_work += 1
            most = max(most, at_work)
            time.sleep(0.02)
            at_work -= 1

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (at_work, most) == (0, 1)


def _left_behind(store: ObjectStore, machine: str) -> None:
    """As by a process that was killed: nobody frees it."""
    released = ObjectStore.put_if_match
    with pytest.MonkeyPatch.context() as patch, leased(store, "lease", "It", machine=machine, wait_s=0):
        patch.setattr(ObjectStore, "put_if_match", lambda *_: False)
    assert ObjectStore.put_if_match is released
