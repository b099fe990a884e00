"""Says what somebody could not be told of: a failure that reaches nobody must leave a trace where one looks."""

from __future__ import annotations

import logging

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from pipelines import console


def warn_of_untold(*problems: str) -> None:
    """Each reason why somebody was not told, as a warning: in the log of the flow's run, or at the terminal.

    Args:
        problems: in words; empty ones are none.
    """
    for problem in filter(None, problems):
        _warn(f"not everybody was told of this failure: {problem}")


def _warn(text: str) -> None:
    try:
        logger = get_run_logger()
    except MissingContextError:  # such as in the worker, once the run's process is dead
        console.warn(text)
        return
    if logger.isEnabledFor(logging.WARNING):
        logger.warning(text)
    else:
        console.warn(text)  # the command line silences Prefect's log
