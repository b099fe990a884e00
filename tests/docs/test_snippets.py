"""Settings, questions and Python on the pages: each is taken by the program as it stands there."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from datasets.contract import Contract
from datasets.settings import build_settings
from pipelines.config import PipelineConfig
from pipelines.workspace import open_workspace
from tests.docs.pages import ROOT, Block, blocks_of, name_of, pages

PAGES = {name_of(page): page.read_text(encoding="utf-8") for page in pages()}
SETTINGS, CONTRACT = (
    {field.alias or name for name, field in m.model_fields.items()} for m in (PipelineConfig, Contract)
)


def blocks_in(language: str) -> list[tuple[str, Block]]:
    """Every block of a language, with the page that it stands on."""
    return [(name, block) for name, text in PAGES.items() for block in blocks_of(text) if block.language == language]


def contract_with(fragment: dict[str, Any]) -> dict[str, Any]:
    """The autoscaler's contract with the tables of a fragment; a fragment that names the problem is a whole one."""
    if "name" in fragment:
        return fragment
    text = (resources.files("datasets") / "scenarios" / "autoscaler.toml").read_text(encoding="utf-8")
    contract = tomllib.loads(text) | fragment
    contract["features"] = tomllib.loads(text)["features"] | fragment.get("features", {})
    contract["episodes"] = {"cluster": "service"} | contract["episodes"]
    actions = fragment.get("actions", {})
    if "names" in actions or "bins" in actions:
        contract.pop("constraints")  # they forbid actions that are no longer there
    elif actions:
        names = tomllib.loads(text)["actions"]["names"]
        contract["actions"] = {"names": [*names, *(set(actions["caps"]) - set(names))], "safe": "hold"} | actions
    return contract


@pytest.mark.parametrize(("name", "block"), blocks_in("toml"), ids=lambda each: str(getattr(each, "line", each)))
def test_settings_on_a_page_are_taken_as_they_stand(name: str, block: Block) -> None:
    tables, where = tomllib.loads(block.text), f"{name}, line {block.line}"
    unknown = min(set(tables) - SETTINGS, set(tables) - CONTRACT, key=len)
    assert not unknown, f"{where}: neither offline_dqn.toml nor contract.toml has {', '.join(unknown)}"
    if set(tables) <= SETTINGS:
        build_settings(PipelineConfig, tables, where)
    else:
        build_settings(Contract, contract_with(tables), where)


def statements_of(block: Block) -> list[str]:
    """The questions of a block: each begins a line with SELECT, WITH, FROM or EXPLAIN."""
    parts = re.split(r"^(?=(?:SELECT|WITH|EXPLAIN)\b)", block.text, flags=re.MULTILINE)
    return [part for part in parts if part.strip()]


def test_questions_on_the_pages_are_answered(first_night: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(first_night, root)
    contract = root / "contract.toml"
    text = re.sub(r"^# (\[outcomes\]|attribution|default)", r"\1", contract.read_text(), flags=re.MULTILINE)
    contract.write_text(text, encoding="utf-8")  # whose view some questions are about
    workspace = open_workspace(root)
    asked = 0
    for name, block in blocks_in("sql"):
        if name == "docs/queries.md":
            continue  # tests/pipelines/test_queries.py asks these, and looks at the answers
        for question in statements_of(block):
            workspace.query(question)  # or a QueryError that names what is wrong
            asked += 1
    assert asked > 5


@pytest.mark.parametrize(("name", "block"), blocks_in("python"), ids=lambda each: str(getattr(each, "line", each)))
def test_python_on_a_page_imports_and_calls_what_exists(name: str, block: Block) -> None:
    tree = ast.parse(block.text, filename=name)
    modules: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            for alias in node.names:
                module = importlib.import_module(node.module)
                found = getattr(module, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
                modules[alias.asname or alias.name] = found
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{name}: {node.value.id}.{node.attr}"


def test_examples_are_what_their_pages_show() -> None:
    shown = [block for name, block in blocks_in("csv") if name == "docs/own_log.md"]
    log = (ROOT / "docs" / "examples" / "coupons" / "decisions.csv").read_text(encoding="utf-8")
    assert log.startswith(shown[0].text)
    (fragment,) = [block for name, block in blocks_in("toml") if name == "docs/own_log.md"]
    contract = tomllib.loads((ROOT / "docs" / "examples" / "coupons" / "contract.toml").read_text(encoding="utf-8"))
    for table, values in tomllib.loads(fragment.text).items():
        assert contract[table] | values == contract[table]
