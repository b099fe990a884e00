"""The reference of the command line: every command with its arguments and options, from the program's own help."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

INTRODUCTION = """\
# Every command

As `offline-dqn COMMAND --help` prints them. `--workspace DIR` is the current folder where it is not given, and `--json`
prints one object instead of an account. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a negative verdict.
"""


def commands_page() -> str:
    """Markdown: a section per command, in the order of the alphabet."""
    import typer

    from pipelines.cli import app

    sections = [_section(path, found) for path, found in sorted(_commands((), typer.main.get_command(app)))]
    return "\n".join([INTRODUCTION, *sections])


def _commands(path: tuple[str, ...], found: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group, and the group itself where it does something of its own."""
    subcommands = getattr(found, "commands", {})
    if path and (not subcommands or found.invoke_without_command):
        yield path, found
    for name, subcommand in subcommands.items():
        if not subcommand.hidden:
            yield from _commands((*path, name), subcommand)


def _section(path: tuple[str, ...], found: Any) -> str:
    name = " ".join(path)
    lines = [
        f"## {name}",
        "",
        *_paragraphs(found.help or ""),
        "```text",
        f"offline-dqn {name}{_usage(found)}",
        "```",
        "",
    ]
    rows = [row for parameter in found.params if (row := _row(parameter)) is not None]
    if rows:
        lines += ["| | | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) + "\n" for paragraph in text.split("\n\n")]


def _usage(found: Any) -> str:
    arguments = [_argument(p) for p in found.params if p.param_type_name == "argument"]
    options = any(p.param_type_name == "option" for p in found.params)
    return "".join([" [OPTIONS]" if options else "", *(f" {argument}" for argument in arguments)])


def _argument(parameter: Any) -> str:
    name = parameter.display_name_raw.upper() + ("..." if parameter.nargs != 1 else "")
    return name if parameter.required else f"[{name}]"


def _row(parameter: Any) -> str | None:
    if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
        return None
    is_flag = bool(getattr(parameter, "is_flag", False))
    if parameter.param_type_name == "argument":
        shown = f"`{_argument(parameter)}`"
    else:
        value = "" if is_flag else f" {_value(parameter.type_descriptor.annotation)}"
        shown = ", ".join(f"`{name}{value}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    if parameter.required:
        text = "required"
    elif is_flag or callable(default) or default in (None, ""):
        text = ""
    else:
        text = f"`{getattr(default, 'value', default)}`"
    return f"| {_cell(shown)} | {_cell(parameter.help or '')} | {_cell(text)} |"


def _value(annotation: Any) -> str:
    """What stands for an option's value: its choices, or a word for its type."""
    inner = typing.get_args(annotation)
    if inner:
        return _value(inner[0])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(str(choice.value) for choice in annotation)
    return {int: "N", float: "X", Path: "PATH", datetime: "INSTANT"}.get(annotation, "TEXT")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
