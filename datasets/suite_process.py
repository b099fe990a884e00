"""The process in which suites run, started with the first one.

Great Expectations takes seconds to import and 200 MB to hold, and its DuckDB driver prints a page of "leaked" warnings
when an interpreter that also holds torch ends. In a process of its own none of that reaches the user: it is started
once, reused for the next batch, and ends by itself when idle or when this process does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from datasets.errors import OfflineDqnError

_lock = threading.Lock()
_process: _SuiteProcess | None = None


class SuiteError(OfflineDqnError):
    """The suite could not be run, so nothing is known of the data."""


class _SuiteProcess:
    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        quiet = {"GX_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PYTHONPATH": path}
        # Not -m: a class in __main__ is not importable, and Great Expectations looks its classes up by module.
        command = [sys.executable, "-c", "from datasets.duckdb_datasource import serve; serve()"]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | quiet,
            start_new_session=True,  # Ctrl-C is for the process that asked; this one ends with its stdin
        )

    def ask(self, request: bytes) -> bytes:
        """The answer, or nothing if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            return b""
        return self._process.stdout.readline()

    def end(self) -> str:
        """Ends the process and returns what it last wrote to stderr."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request it never read
                    stream.close()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        self._errors.close()
        return text[-2000:].strip()


def warm_up() -> None:
    """Starts the process, which loads its libraries while this one does other work. Costs this one nothing."""
    global _process
    if _lock.acquire(blocking=False):  # busy means that it runs already
        try:
            _process = _process or _SuiteProcess()
        finally:
            _lock.release()


def run_suites(setup: list[str], suites: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """`datasets.duckdb_datasource.run_suites`, in its own process.

    Raises:
        SuiteError: an expectation, the SQL or the process failed; with the cause.
    """
    found: dict[str, list[dict[str, Any]]] = _asked({"ask": "suites", "setup": setup, "suites": suites})
    return found


def render_page(title: str, records: list[dict[str, Any]], not_judged: list[str]) -> str:
    """`datasets.docs_page.render_page`, in its own process.

    Raises:
        SuiteError: it could not be rendered; with the cause.
    """
    page: str = _asked({"ask": "page", "title": title, "records": records, "not_judged": not_judged})
    return page


def _asked(request: dict[str, Any]) -> Any:
    global _process
    line = json.dumps(request).encode() + b"\n"
    with _lock:
        for _attempt in range(2):  # it may have ended, idle, since it was last asked
            _process = _process or _SuiteProcess()
            try:
                answer = _process.ask(line)
            except BaseException:  # interrupted: a late answer must not meet the next question
                _process.end()
                _process = None
                raise
            if answer:
                break
            last_words = _process.end()
            _process = None
        else:
            raise SuiteError(
                f"The validation process ended before it answered. It last wrote: {last_words or 'nothing'}"
            )
    values = json.loads(answer)
    if "error" in values:
        cause = values["error"].strip().splitlines()[-1]
        raise SuiteError(f"The validation could not run: {cause}. The whole trace:\n{values['error']}")
    return values["answer"]
