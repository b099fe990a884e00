"""TensorBoard's event files of a training, written while it runs: `tensorboard --logdir WORKSPACE/tensorboard`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from offline_dqn.metrics import split_name
from offline_dqn.trained import Metrics

_logger = logging.getLogger(__name__)

_FLUSH_S = 5
"""Seconds that a measured number takes to reach the disk."""


class _SteadyClock:
    """In place of the module `time` in TensorBoard's writer: a clock that is set back by weeks would end its thread,
    and the training would wait for that thread for ever."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def time(self) -> float:
        return self._ahead + time.monotonic()


_STEADY = _SteadyClock()

_RUN = "all"
"""The run that holds what all learners share."""


@contextmanager
def event_files(folder: Path) -> Iterator[Callable[[int, Metrics], None]]:
    """Yields a function that writes the metrics of an update.

    Each learner is a run of its own, so that TensorBoard draws one chart per metric with a line for each. A training
    that was killed goes on in the same runs, and what it had written beyond its checkpoint is hidden. Files that cannot
    be written end the writing with a warning, never the training.

    Args:
        folder: of the runs; made if missing.
    """
    with ExitStack() as opened:
        runs: dict[str, Any] = {}
        broken = False

        def write(step: int, metrics: Metrics) -> None:
            nonlocal broken
            if broken:
                return
            try:
                _write(runs, folder, opened, step, metrics)
            except Exception as error:  # whatever it is, it must not cost the night
                broken = True
                _logger.warning("no TensorBoard files any more in %s: %s", folder, error)

        yield write


def _write(runs: dict[str, Any], folder: Path, opened: ExitStack, step: int, metrics: Metrics) -> None:
    # Imported here, not above: acting and querying need no TensorBoard, and nothing else here does.
    from tensorboardX import SummaryWriter, event_file_writer

    event_file_writer.time = _STEADY
    for name, value in metrics.items():
        learner, metric = split_name(name)
        run = learner or _RUN
        if run not in runs:
            runs[run] = SummaryWriter(str(folder / run), purge_step=step, flush_secs=_FLUSH_S)
            opened.callback(_close, runs[run])
        if math.isfinite(value):
            runs[run].add_scalar(metric, value, step)


def _close(writer: Any) -> None:
    with suppress(Exception):  # a full disk; the training is done
        writer.close()
