"""How docstrings of this house are read where Markdown, or the reader of their sections, takes them otherwise."""

from __future__ import annotations

import re
from typing import Any

import griffe

_TOGETHER = re.compile(
    r"^(?P<margin> +)(?P<names>[a-z_]\w*(?:, [a-z_]\w*)+): (?P<said>.*(?:\n(?P=margin) +\S.*)*)", re.M
)


def apart(docstring: str) -> str:
    """`low, high: ends of the interval.` as a line for each, since a reference names each with its type.

    Only lines of an `Args:` or `Attributes:` section are touched.
    """
    sections = re.split(r"^(?=\S|\Z)", docstring, flags=re.MULTILINE)
    return "".join(
        _TOGETHER.sub(_lines, section) if section.startswith(("Args:", "Attributes:")) else section
        for section in sections
    )


def as_code(text: str) -> str:
    """`[row][column]` marked as code: Markdown would take it for a link."""
    return re.sub(r"(?<![`\w])((?:\[\w+\]){2,})(?!`)", r"`\1`", text)


def _lines(match: re.Match[str]) -> str:
    return "\n".join(f"{match['margin']}{name}: {match['said']}" for name in match["names"].split(", "))


class SharedSentences(griffe.Extension):
    """Rewrites docstrings as they are loaded; the files stay as they are."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_code(apart(obj.docstring.value))
