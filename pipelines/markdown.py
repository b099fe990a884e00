"""Text of logs and settings inside Markdown that Prefect renders."""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"""([!-/:-@\[-`{-~])""")
"""Every ASCII punctuation mark: CommonMark takes each of them literally after a backslash."""


def as_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line: labels and names of a log make no link, no image and no tag.

    Line breaks and runs of blanks become one blank, as a new line could begin a list, a heading or a fence.

    Source: CommonMark 0.31, section 2.4, backslash escapes.
    """
    return _PUNCTUATION.sub(r"\\\1", " ".join(text.split()))
