"""Text in Markdown, rendered by a CommonMark parser: it comes out as it went in."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipelines.markdown import as_markdown


def shown(text: str) -> str:
    """What a reader sees of a paragraph with nothing but this text in it; tags show as tags."""
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(f"Reason: {as_markdown(text)}")
    return html.unescape(re.sub(r"^<p>Reason: ?|</p>\n$", "", rendered))


@pytest.mark.parametrize(
    "text",
    [
        "slice region = <img src=x onerror=alert(1)>",
        "[click](javascript:alert(1)) ![pixel](//example.org/p.png) <https://example.org>",
        "`code` **bold** ~~gone~~ _it_ &lt; &#60; \\\\ | a | b |",
    ],
)
def test_nothing_in_a_label_is_markup(text: str) -> None:
    assert shown(text) == text


def test_a_label_begins_no_block() -> None:
    for text in ("```\n<b>", "a\n\n# Heading", "x\n- item", "x\n\n    code", "a\n***", "[a]: /x\n\n[a]"):
        assert shown(text) == " ".join(text.split()), text
    assert MarkdownIt().render(f"- {as_markdown('# no heading')}") == "<ul>\n<li># no heading</li>\n</ul>\n"


@given(st.text(st.characters(codec="ascii") | st.sampled_from("äé«»\u2028"), max_size=60))
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    assert shown(text) == " ".join(text.split()).replace("\0", "\ufffd")


def test_a_bare_address_becomes_no_link() -> None:
    assert as_markdown("www.example.org https://example.org a@example.org") == (
        r"www\.example\.org https\:\/\/example\.org a\@example\.org"
    )
