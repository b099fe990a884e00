"""What Sentry is told of a failure. Built from what may leave, not scrubbed of what may not: kinds of errors, places in
the code, and our own messages without their values. No local variable, argument, row, path or environment is in it.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from datasets.errors import OfflineDqnError, RowError

_MOST_FRAMES, _MOST_CAUSES, _MOST_TEXT = 50, 5, 500

_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://\S+")
_PATH = re.compile(r"(?<![\w.])/?(?:[\w.~@-]+/)+[\w.~@-]*")
_QUOTE = re.compile(r"(?<![a-z]{2})'|'(?!s )|[\"`{}«»‘’“”„‚]")
"""Where a value may begin; whose end nobody can tell, since it may hold quotes of its own. "the log's end" has none."""
_NUMBER = re.compile(r"[-+]?\d(?:[\d,._:+-]*\d)?(?:[eE][-+]?\d+)?")
_COMMAND = re.compile(r"`offline-dqn [a-z-]+(?=[ `])")
_LEAST_SECRET = 6
"""Characters of an environment variable's value that is looked for in messages."""


def failure_event(error: BaseException, tags: Mapping[str, object]) -> dict[str, Any]:
    """An event for a failure and its causes, the last one first to happen.

    Args:
        tags: what it happened to: the stage, the release, Prefect's run; no text of a log.
    """
    values = [_exception(each) for each in chain(error)]
    kept = {name: str(value)[:200] for name, value in tags.items() if value is not None and value != ""}
    return {
        "level": "error",
        "platform": "python",
        "exception": {"values": values[::-1]},
        "tags": kept,
        "fingerprint": fingerprint(error),
    }


def fingerprint(error: BaseException) -> list[str]:
    """What makes two failures the same: the kind of error, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{_module(frames[-1].filename)}:{frames[-1].name}" if frames else ""
    return [_kind(error), where]


def without_values(text: str) -> str:
    """A message of ours without what it was about: it ends at its first quote, backtick or brace, and numbers, paths
    and addresses before that are taken out. Of a command that we advise there, the name stays.

    What the environment holds is taken out first, wherever it stands.
    """
    for name, value in os.environ.items():
        if len(value) >= _LEAST_SECRET and value in text:
            text = text.replace(value, f"${name}")
    text = "".join(c if c.isprintable() else " " for c in text)
    quote, ending = _QUOTE.search(text), ""
    if quote is not None:
        command = _COMMAND.match(text, quote.start())
        text, ending = text[: quote.start()], "…" if command is None else f"{command[0]}` …"
    for pattern, stands_for in ((_URL, "URL"), (_PATH, "PATH"), (_NUMBER, "#")):
        text = pattern.sub(stands_for, text)
    return text[:_MOST_TEXT] + ending


def in_brief(error: BaseException) -> str:
    """What a trace, a server's log or an answer may say of a failure: nothing of a row or an observation.

    Our own messages without their values; of a library's, which may quote anything, the kind alone.
    """
    if isinstance(error, RowError):
        return error.without_row
    said = without_values(str(error)) if isinstance(error, OfflineDqnError) else getattr(error, "strerror", None)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def raised_in(error: BaseException) -> str:
    """The line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{_module(frames[-1].filename)}:{frames[-1].lineno}" if frames else "nowhere"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < _MOST_CAUSES:
        seen.add(id(current))
        yield current
        hidden = current.__suppress_context__ or current.__cause__ is not None
        current = current.__cause__ if hidden else current.__context__


def _exception(error: BaseException) -> dict[str, Any]:
    frames = [
        {"module": _module(f.filename), "function": f.name, "lineno": f.lineno, "in_app": _is_ours(f.filename)}
        for f in traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
    ]
    text = error.without_row if isinstance(error, RowError) else str(error)
    said = without_values(text) if isinstance(error, OfflineDqnError) else ""
    module = type(error).__module__
    return {"type": type(error).__name__, "module": module, "value": said, "stacktrace": {"frames": frames}}


def _kind(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__name__}"


_OURS = ("datasets", "drift", "offline_dqn", "pipelines", "reports")


def _module(path: str) -> str:
    """A file of code by its module: the folders above say where somebody has installed it."""
    parts = path.removesuffix(".py").split("/")
    for root in ("site-packages", "lib"):
        if root in parts:
            return ".".join(parts[len(parts) - parts[::-1].index(root) :])
    ours = next((i for i, part in reversed(list(enumerate(parts))) if part in _OURS), None)
    return ".".join(parts[ours:]) if ours is not None else parts[-1]


def _is_ours(path: str) -> bool:
    return "site-packages" not in path and _module(path).split(".")[0] in _OURS
