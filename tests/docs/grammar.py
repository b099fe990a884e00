"""Whether a command that stands on a page exists: its words, its options, its make target, its module."""

from __future__ import annotations

import importlib.util
import re
import shlex
from functools import cache
from typing import Any

from tests.docs.pages import ROOT


@cache
def _program() -> Any:
    import typer

    from pipelines.cli import app

    return typer.main.get_command(app)


@cache
def make_targets() -> frozenset[str]:
    """The targets of the Makefile that have a name of their own."""
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def faults_of(command: str) -> list[str]:
    """What does not exist of a command of ours, in words; nothing for programs of others.

    Usage notation is understood: brackets are taken off, and `list|show` means both.
    """
    words = _words(command)
    while words and re.fullmatch(r"\w+=.*", words[0]):  # VARIABLE=value before a command
        words = words[1:]
    if words[:1] == ["offline-dqn"]:
        return [fault for reading in _readings(words[1:]) for fault in _faults_of_ours(reading)]
    if words[:1] == ["make"]:
        targets = [word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)]
        return [f"the Makefile has no target '{target}'" for target in targets if target not in make_targets()]
    if "-m" in words and words[0].rpartition("/")[2] in ("python", "python3", "torchrun"):
        module = words[words.index("-m") + 1]
        package = module.split(".")[0]
        ours = (ROOT / package).is_dir()
        return [f"there is no module {module}"] if ours and importlib.util.find_spec(module) is None else []
    return []


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        words = command.split()
    for place, word in enumerate(words):
        if word in ("|", "||", "&&", ";", "&", ">", ">>", "<") or word.startswith(("2>", ">", "<")):
            return words[:place]
    return words


def _readings(words: list[str]) -> list[list[str]]:
    """`batches list|show ID` as two commands, and without brackets."""
    plain = [word if " " in word else word.strip("[]").removesuffix("...") for word in words]
    for place, word in enumerate(plain[:2]):
        if re.fullmatch(r"[a-z-]+(\|[a-z-]+)+", word):
            return [[*plain[:place], one, *plain[place + 1 :]] for one in word.split("|")]
    return [plain]


def _faults_of_ours(words: list[str]) -> list[str]:
    found, path = _program(), ["offline-dqn"]
    rest = list(words)
    while getattr(found, "commands", None) and rest and not rest[0].startswith("-"):
        below = found.commands.get(rest[0])
        if below is None:
            return [] if found.invoke_without_command else [f"there is no `{' '.join([*path, rest[0]])}`"]
        path.append(rest.pop(0))
        found = below
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    named = [option for word in rest for option in word.split("|") if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", option)]
    return [
        f"`{' '.join(path)}` has no option {option}"
        for option in named
        if option.partition("=")[0] not in options | {"--help"}
    ]
