"""A deadline: quick work in line, slow work on a thread, and what is overdue makes nobody wait."""

from __future__ import annotations

import threading
import time

import pytest

from pipelines.serving.timed_scorer import Deadline, LateError


def test_quick_work_is_done_in_line_and_slow_work_on_a_thread() -> None:
    deadline = Deadline(5.0)

    here, there = (deadline.within(time.perf_counter(), cost, threading.get_ident) for cost in (0.0001, 1.0))

    assert here == threading.get_ident() != there
    deadline.close()


def test_what_arrived_too_long_ago_is_late_at_once() -> None:
    with pytest.raises(LateError):
        Deadline(0.05).within(time.perf_counter() - 1, 0.0, lambda: pytest.fail("it must not be asked"))


def test_overdue_work_makes_nobody_else_wait() -> None:
    deadline, go_on = Deadline(0.2), threading.Event()
    with pytest.raises(LateError):
        deadline.within(time.perf_counter(), 1.0, go_on.wait)

    began = time.perf_counter()
    with pytest.raises(LateError):
        deadline.within(began, 1.0, lambda: pytest.fail("it must not queue up"))
    waited_s = time.perf_counter() - began

    go_on.set()
    deadline._lanes[0].overdue.result(timeout=10)  # type: ignore[union-attr]  # the work that is still under way
    assert waited_s < 0.2
    assert deadline.within(time.perf_counter() + 10, 1.0, lambda: "again") == "again"
    deadline.close()


def test_a_slow_candidate_does_not_make_the_champion_late() -> None:
    deadline, go_on = Deadline(0.2), threading.Event()
    with pytest.raises(LateError):
        deadline.within(time.perf_counter(), 1.0, go_on.wait, release=2)

    answer = deadline.within(time.perf_counter() + 10, 1.0, lambda: "in time", release=1)
    with pytest.raises(LateError):
        deadline.within(time.perf_counter(), 1.0, lambda: pytest.fail("it must not queue up"), release=2)

    go_on.set()
    assert answer == "in time"
    deadline.close()


def test_releases_that_are_gone_leave_no_thread_behind() -> None:
    deadline, before = Deadline(5.0), threading.active_count()
    for release in range(1, 20):
        assert deadline.within(time.perf_counter(), 1.0, lambda: "done", release=release) == "done"
    ended_by = time.monotonic() + 10
    while threading.active_count() > before + 4 and time.monotonic() < ended_by:
        time.sleep(0.01)
    assert threading.active_count() <= before + 4
    deadline.close()


def test_an_error_of_the_work_is_its_own() -> None:
    deadline = Deadline(5.0)
    for cost in (0.0, 1.0):
        with pytest.raises(ZeroDivisionError):
            deadline.within(time.perf_counter(), cost, lambda: 1 / 0)
    deadline.close()
