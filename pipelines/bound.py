"""Runs a Python module as `python -m` does, and ends with the process that started it, however that one ends.

    python -m pipelines.bound PARENT MODULE ARGUMENT ...

A server that a night started would otherwise outlive a night that was killed: SIGKILL runs no code in the victim, so
the survivor has to look. What the module started ends with it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

from pipelines.descent import descendants, end_all

_LOOK_EVERY_S = 0.5
_GRACE_S = 10.0
"""Seconds to end cleanly once the parent is gone."""


def main() -> None:
    """Runs the module that the arguments name."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def command(module: str, *arguments: object) -> list[str]:
    """The command line that runs a module bound to this process."""
    return [sys.executable, "-m", "pipelines.bound", str(os.getpid()), module, *map(str, arguments)]


def _end_with(parent: int) -> None:
    while os.getppid() == parent:  # an orphan is adopted by another process at once
        time.sleep(_LOOK_EVERY_S)
    end_all(descendants(os.getpid()), grace_s=_GRACE_S)  # first: who ends this module would leave them behind
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
