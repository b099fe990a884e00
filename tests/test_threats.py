"""docs/security.md: each row of its table of threats names tests, and those are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[str]:
    """The table of threats, a line each, without its head."""
    table = PAGE.partition("## Threats")[2].partition("\n## ")[0]
    return [line for line in table.splitlines() if line.startswith("|")][2:]


def test_there_is_a_table() -> None:
    assert len(rows()) >= 20


@pytest.mark.parametrize("row", rows(), ids=lambda row: re.sub(r"[^a-z]+", "-", row.split("|")[1].lower()).strip("-"))
def test_each_threat_names_tests_that_exist(row: str) -> None:
    threat, answer, tests = (cell.strip() for cell in row.strip("|").split("|"))
    named = _TEST.findall(tests)
    assert threat
    assert answer
    assert named, f"no test covers: {threat}"
    assert _TEST.sub("", tests).strip(" ,") == "", "the last cell holds tests alone"
    for path, name in named:
        assert (ROOT / path).is_file(), path
        functions = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)}
        assert name in functions, f"{path} holds no {name}"
