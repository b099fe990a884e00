"""What a Markdown page holds that a reader may type: blocks, the commands in them, and commands named in prose."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SHELL, NO_COMMANDS = "sh", frozenset({"json", "toml", "text", "csv", "yaml", "sql", "python", "html", "http"})
"""The one language whose blocks are run by a shell, and those that hold no command of one."""

_FENCE = re.compile(r"^( *)(`{3,}|~{3,}) *(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page that its text begins at."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """One command of a block as a shell would take it, comments and continued lines included."""

    text: str
    line: int

    @property
    def bare(self) -> str:
        """The command without its comment, on one line."""
        text = "\n".join(_without_comment(line) for line in self.text.split("\n"))
        return " ".join(text.replace("\\\n", " ").split())


def _without_comment(line: str) -> str:
    """The line up to the first `#` behind a space that stands in no quotes."""
    for match in re.finditer(r"\s+#", line):
        before = line[: match.start()]
        if before.count("'") % 2 == 0 and before.count('"') % 2 == 0:
            return before
    return line


def pages() -> list[Path]:
    """The README and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """The page's place below the project's folder, such as `docs/data.md`."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page, in its order, without the indentation that a list gives them."""
    return [
        Block(
            match[3],
            re.sub(rf"^{match[1]}", "", match[4], flags=re.MULTILINE),
            text.count("\n", 0, match.start(4)) + 1,
        )
        for match in _FENCE.finditer(text)
    ]


def indented_blocks_of(text: str) -> list[int]:
    """Lines at which an indented block of code begins: such a block has no language, so nobody knows what it holds."""
    lines = _FENCE.sub(lambda match: re.sub(r"[^\n]+", "", match[0]), text).split("\n")
    found, in_list = [], False
    for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), start=1):
        if line and not line.startswith(" "):
            in_list = bool(re.match(r"([-*+]|\d+\.) ", line))
        if line.startswith("    ") and not before.strip() and not in_list:
            found.append(number)
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a shell block: each the fewest lines that bash takes for complete."""
    commands: list[Command] = []
    lines = block.text.split("\n")
    start = 0
    for end, line in enumerate(lines, start=1):
        text = "\n".join(lines[start:end])
        if not text.strip() or all(each.lstrip().startswith("#") or not each.strip() for each in lines[start:end]):
            start = end
        elif not line.endswith("\\") and _is_complete(text):
            commands.append(Command(text, block.line + start))
            start = end
    if start < len(lines) and "\n".join(lines[start:]).strip():
        raise ValueError(f"bash does not take this for a command:\n{chr(10).join(lines[start:])}")
    return commands


@cache
def _is_complete(text: str) -> bool:
    if not re.search(r"['\"<(){}`]|\b(for|while|if|case|do|until)\b", text):
        return True  # nothing in it could be left open
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    return checked.returncode == 0 and not checked.stderr  # bash only warns of a here-document without its end


def commands_on(page: Path) -> list[Command]:
    """Every command of the page's shell blocks."""
    return [
        command
        for block in blocks_of(page.read_text(encoding="utf-8"))
        if block.language == SHELL
        for command in commands_of(block)
    ]


def spans_of(text: str) -> Iterator[tuple[int, str]]:
    """The code named in prose, with its line; code in fenced blocks is left out."""
    prose = _FENCE.sub(lambda match: re.sub(r"[^\n]+", "", match[0]), text)
    for paragraph in re.finditer(r"(?:[^\n]+\n?)+", prose):
        for match in _SPAN.finditer(paragraph[0]):
            yield prose.count("\n", 0, paragraph.start() + match.start()) + 1, " ".join(match[2].split())
