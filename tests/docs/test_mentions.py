"""What the README and docs/ name exists: commands and options, make targets, pages in the navigation, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.grammar import faults_of
from tests.docs.pages import (
    NO_COMMANDS,
    ROOT,
    SHELL,
    blocks_of,
    commands_of,
    commands_on,
    indented_blocks_of,
    name_of,
    pages,
    spans_of,
)

PAGES = {name_of(page): page.read_text(encoding="utf-8") for page in pages()}


@pytest.mark.parametrize("name", PAGES)
def test_every_command_that_is_named_exists_with_its_options(name: str) -> None:
    named = [(command.line, command.bare) for command in commands_on(ROOT / name)] + list(spans_of(PAGES[name]))

    faults = [f"{name}:{line}: `{text}`: {fault}" for line, text in named for fault in faults_of(text)]

    assert not faults, "\n".join(faults)


def test_the_readme_lists_every_command() -> None:
    import typer

    from pipelines.cli import app

    table = PAGES["README.md"].partition("## What each command does")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| ", table.replace("\\|", "&"), re.MULTILINE)
    listed = [span.replace("&", "|") for row in rows for span in re.findall(r"`(.+?)`", row)]

    faults = [f"`{usage}`: {fault}" for usage in listed for fault in faults_of(f"offline-dqn {usage}")]
    assert not faults, "\n".join(faults)
    first_words = {word for usage in listed for word in usage.split()[0].split("|")}
    assert set(typer.main.get_command(app).commands) - first_words == set()


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_what_it_holds(name: str) -> None:
    unknown = [b for b in blocks_of(PAGES[name]) if b.language not in NO_COMMANDS | {SHELL}]

    assert not unknown, (
        f"{name}, line {unknown[0].line}: a block in '{unknown[0].language}'. Begin it with ```{SHELL} where it holds "
        f"commands, which a test then runs; else with one of {', '.join(sorted(NO_COMMANDS))}"
    )
    indented = indented_blocks_of(PAGES[name])
    assert not indented, f"{name}, line {indented[0]}: an indented block. Put it between ``` with its language"


@pytest.mark.parametrize("name", PAGES)
def test_commands_hide_in_no_block_of_another_language(name: str) -> None:
    hidden = [
        f"{name}, line {block.line}: {line}"
        for block in blocks_of(PAGES[name])
        if block.language in ("text", "")
        for line in block.text.splitlines()
        if re.match(r"(\$ )?(offline-dqn|\.venv/bin/\S+) [a-z]", line) and "[" not in line
    ]

    assert not hidden, "\n".join(["these are commands: put them into a block of their own, ```sh", *hidden])


def navigation() -> list[str]:
    """The pages that the site's navigation names."""

    class Loader(yaml.SafeLoader):
        """YAML as mkdocs reads it, whose tags for Python objects matter nothing here."""

    Loader.add_multi_constructor("", lambda *_: None)
    found: list[str] = []

    def gather(entries: Any) -> None:
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str):
                found.append(entry)
            else:
                for below in entry.values():
                    gather(below)

    gather(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"])
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    written = {name.removeprefix("docs/") for name in PAGES if name != "README.md"}
    listed = [page for page in navigation() if not page.startswith(("reference/", "changelog"))]

    missing = sorted(written - set(listed))
    assert not missing, f"in no navigation: {', '.join(missing)}. Give each a place under `nav` in mkdocs.yml"
    assert sorted(listed) == sorted(written)


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES["README.md"])
    assert links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_pages_that_are_named_are_links() -> None:
    """`docs/data.md` as a bare word is found by nobody on the site; within docs/ a page links to its neighbour."""
    bare = [
        f"{name}: {match[0]}"
        for name, text in PAGES.items()
        if name.startswith("docs/")
        for match in re.finditer(
            r"(?<![\[/\w`(])docs/[\w/]+\.md(?!\])", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        )
    ]
    assert not bare, "\n".join(bare)


def test_a_command_or_option_that_does_not_exist_is_named() -> None:
    assert faults_of("offline-dqn ingest logs --outcomes out --json") == []
    assert faults_of("offline-dqn batches list|show ID") == []
    assert faults_of("offline-dqn evaluate VERSION [--replay] | head") == []
    assert faults_of("offline-dqn igest") == ["there is no `offline-dqn igest`"]
    assert faults_of("offline-dqn batches drop ID") == ["there is no `offline-dqn batches drop`"]
    assert faults_of("offline-dqn evaluate 1 --reply") == ["`offline-dqn evaluate` has no option --reply"]
    assert faults_of("make everything") == ["the Makefile has no target 'everything'"]
    assert faults_of("python -m pipelines.nowhere") == ["there is no module pipelines.nowhere"]
    assert faults_of("curl --nonsense") == []


def test_commands_are_cut_where_the_shell_cuts_them() -> None:
    lines = "first one   # a '#' in a comment\nlong \\\n  line\n\nfor v in a b; do\n  echo '#'\ndone\ncat <<E\nx\nE\n"
    (block,) = blocks_of(f"```sh\n{lines}```\n")

    assert [command.bare for command in commands_of(block)] == [
        "first one",
        "long line",
        "for v in a b; do echo '#' done",
        "cat <<E x E",
    ]
    assert [command.line for command in commands_of(block)] == [2, 3, 6, 9]


def test_a_block_that_ends_in_the_middle_of_a_command_is_refused() -> None:
    (block,) = blocks_of("```sh\necho 'open\n```\n")
    with pytest.raises(ValueError, match="bash does not take this for a command"):
        commands_of(block)


def test_every_page_begins_with_its_title() -> None:
    assert [name for name, text in PAGES.items() if not text.startswith("# ")] == []
    assert all(Path(ROOT / name).exists() for name in PAGES)
