"""A release's answer within a deadline: in line where it surely is quick, otherwise on a thread."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDoneError
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, Contract, ImageFeature, NumericFeature, VectorFeature
from datasets.row_conditions import Record
from offline_dqn.decisions import Scorer

T = TypeVar("T")

_SURELY = 10
"""A release is asked in line where its measured time is this many times below the deadline; a thread costs about 50
microseconds, which is more than a small network takes."""
_LANES = 4
"""Releases that have a thread: champion and candidate, and those before them whose answers may be under way."""
_ROWS = 32
"""Rows of the larger of the two measurements."""


class LateError(Exception):
    """The answer is not there in time."""


class Deadline:
    """Keeps answers to their time. Asked from one thread at a time.

    An answer that is late goes on being computed, and nobody waits for it: until it is done, whatever wants its thread
    is late at once, so that one slow answer cannot queue up others behind it. Each release has a thread of its own: a
    slow candidate must not make the champion late, which it is compared with.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lanes: OrderedDict[int, _Lane] = OrderedDict()

    def within(self, arrived: float, estimated_s: float, work: Callable[[], T], *, release: int = 0) -> T:
        """What `work` returns.

        Args:
            arrived: when the request did, by `time.perf_counter`.
            estimated_s: how long the work is likely to take.
            work: the work.
            release: whose it is.

        Raises:
            LateError: it is not done in time; `work` may still run.
        """
        left = self.seconds - (time.perf_counter() - arrived)
        if left <= 0:
            raise LateError
        if estimated_s * _SURELY <= self.seconds:
            return work()
        lane = self._lane(release)
        if lane.overdue is not None and not lane.overdue.done():
            raise LateError
        future = lane.thread.submit(work)
        try:
            return future.result(timeout=left)
        except NotDoneError:
            lane.overdue = future
            raise LateError from None

    def _lane(self, release: int) -> _Lane:
        lane = self._lanes.get(release)
        if lane is None:
            lane = self._lanes[release] = _Lane(ThreadPoolExecutor(1, thread_name_prefix=f"scoring {release}"))
            if len(self._lanes) > _LANES:
                self._lanes.popitem(last=False)[1].close()
        self._lanes.move_to_end(release)
        return lane

    def close(self) -> None:
        """Ends the threads, without waiting for what is late."""
        for lane in self._lanes.values():
            lane.close()


@dataclass
class _Lane:
    """The thread of one release, and its answer that is late."""

    thread: ThreadPoolExecutor
    overdue: Future[Any] | None = None

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)


def measured_cost(scorer: Scorer, contract: Contract) -> Callable[[int], float]:
    """Seconds that a scorer is likely to take for n rows, from the middle of a few tries; it is warm afterwards.

    Args:
        scorer: is asked about made-up rows of the contract, everything permitted.
        contract: the policy's own, or one that has its features.
    """
    record = likely_record(contract)
    permitted = np.zeros((1, len(scorer.actions)), dtype=bool)
    permitted[0] = scorer.known
    one, many = (_middle_s(scorer, [record] * n, np.repeat(permitted, n, axis=0)) for n in (1, _ROWS))
    slope = max(0.0, (many - one) / (_ROWS - 1))
    return lambda n: one + slope * (n - 1)


def likely_record(contract: Contract) -> Record:
    """An observation that the contract allows: the middle of each range, the first label."""
    record: dict[str, object] = {}
    for name, feature in contract.features.items():
        if isinstance(feature, NumericFeature):
            low, high = feature.min, feature.max
            record[name] = (low + high) / 2 if low is not None and high is not None else (low or high or 0.0)
        elif isinstance(feature, CategoricalFeature):
            record[name] = feature.values[0] if feature.values else "a"
        elif isinstance(feature, VectorFeature):
            record[name] = [0.0] * feature.length
        else:
            record[name] = [0] * feature.size if isinstance(feature, ImageFeature) else False
    return record


def _middle_s(scorer: Scorer, records: Sequence[Record], permitted: NDArray[np.bool_]) -> float:
    took = []
    for _ in range(7):
        began = time.perf_counter()
        scorer.score(records, permitted)
        took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 2]
